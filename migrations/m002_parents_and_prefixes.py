"""Schema 2: labels have parents and can be searched by prefix. Frozen.

New keys per namespace:

    vidlex:{NS}:texts                zset    normalised name or alias, NUL, label id; score 0
    vidlex:{NS}:children:<label id>  zset    ids of the labels that name this one as a parent, score 0
    vidlex:{NS}:request:<digest>     hash    state of a request with an Idempotency-Key, for a day
    vidlex:{NS}:lease:<digest>       string  token of the request's worker, for seconds
    vidlex:{NS}:turn                 string  token of the writer with priority, for two seconds

Every record has ``parents``, a list of label ids, which is empty at first; there are no ``children`` keys yet.

Each batch is one transaction on keys of one namespace, and so of one hash slot. It writes only missing fields, so an
interrupted run can be repeated.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import redis

NUMBER = 2
BATCH = 500
_TRIES = 1000


def plan(client: Any) -> dict[str, int]:
    counts = {"namespaces": 0, "records": 0, "texts": 0}
    for base in _namespaces(client):
        counts["namespaces"] += 1
        for ids in _pages(client, f"{base}:records"):
            counts["records"] += len(_records_with_parents(client, base, ids))
        for texts in _pages(client, f"{base}:names"):
            counts["texts"] += len(_missing_texts(client, base, texts))
    return counts


def apply(client: Any) -> None:
    for base in _namespaces(client):
        for ids in _pages(client, f"{base}:records"):
            _write_batch(client, base, _write_records, ids)
        for texts in _pages(client, f"{base}:names"):
            _write_batch(client, base, _write_texts, texts)


def _namespaces(client: Any) -> Iterator[str]:  # vidlex:{NS}
    for key in client.scan_iter(match="vidlex:{*}:changes", count=1000):
        yield key.decode().removesuffix(":changes")


def _pages(client: Any, key: str) -> Iterator[list[bytes]]:
    """A field that exists throughout is returned at least once."""
    page: list[bytes] = []
    cursor = 0
    while True:
        cursor, fields = client.hscan(key, cursor, count=BATCH)
        page += fields
        while len(page) >= BATCH or (page and cursor == 0):
            yield page[:BATCH]
            page = page[BATCH:]
        if cursor == 0:
            return


def _write_batch(client: Any, base: str, write: Callable[[Any, str, list[bytes]], bool], fields: list[bytes]) -> None:
    for _ in range(_TRIES):
        with client.pipeline(transaction=True) as pipe:
            try:
                pipe.watch(f"{base}:changes")
                if write(pipe, base, fields):
                    pipe.execute()
                return
            except redis.WatchError:
                continue  # a service wrote to the namespace at the same time
    raise ValueError(f"{base} changed during every attempt; stop the services that use it")


def _write_records(pipe: Any, base: str, ids: list[bytes]) -> bool:
    records = _records_with_parents(pipe, base, ids)
    if not records:
        return False
    pipe.multi()
    pipe.hset(f"{base}:records", mapping=records)
    return True


def _write_texts(pipe: Any, base: str, texts: list[bytes]) -> bool:
    missing = _missing_texts(pipe, base, texts)
    if not missing:
        return False
    pipe.multi()
    pipe.zadd(f"{base}:texts", dict.fromkeys(missing, 0))
    return True


def _records_with_parents(client: Any, base: str, ids: list[bytes]) -> dict[bytes, str]:
    found = {}
    for label_id, raw in zip(ids, client.hmget(f"{base}:records", ids), strict=True):
        record = {} if raw is None else json.loads(raw)
        if record and "parents" not in record:
            found[label_id] = json.dumps(record | {"parents": []}, ensure_ascii=False, separators=(",", ":"))
    return found


def _missing_texts(client: Any, base: str, texts: list[bytes]) -> list[bytes]:
    owners = client.hmget(f"{base}:names", texts)
    members = [text + b"\0" + owner for text, owner in zip(texts, owners, strict=True) if owner is not None]
    scores = client.zmscore(f"{base}:texts", members) if members else []
    return [member for member, score in zip(members, scores, strict=True) if score is None]
