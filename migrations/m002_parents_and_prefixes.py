"""Schema 2: labels have parents, and are found by the beginning of a name. Frozen.

New beside the keys of schema 1, per namespace:

    vidlex:{NS}:texts                zset    normalised name or alias, NUL, label id; score 0
    vidlex:{NS}:children:<label id>  zset    ids of the labels that name this one as a parent, score 0
    vidlex:{NS}:request:<digest>     hash    a request with an Idempotency-Key, for a day
    vidlex:{NS}:lease:<digest>       string  who works on that request, for seconds
    vidlex:{NS}:turn                 string  which writer the others let pass, for a second

and every record has ``parents``, a list of label ids. No label of schema 1 has any, so ``children`` starts empty.

Works in batches, each one transaction on keys of one namespace, so of one hash slot. A batch writes only what is
missing: after a kill the next run reads what is done and goes on with the rest.
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
    """What ``apply`` would still have to do."""
    counts = {"namespaces": 0, "records": 0, "texts": 0}
    for base in _namespaces(client):
        counts["namespaces"] += 1
        for ids in _pages(client, f"{base}:records"):
            counts["records"] += len(_old_records(client, base, ids))
        for texts in _pages(client, f"{base}:names"):
            counts["texts"] += len(_missing_texts(client, base, texts))
    return counts


def apply(client: Any) -> None:
    for base in _namespaces(client):
        for ids in _pages(client, f"{base}:records"):
            _in_step(client, base, _write_records, ids)
        for texts in _pages(client, f"{base}:names"):
            _in_step(client, base, _write_texts, texts)


def _namespaces(client: Any) -> Iterator[str]:
    """``vidlex:{NS}`` of every namespace that was ever written to."""
    for key in client.scan_iter(match="vidlex:{*}:changes", count=1000):
        yield key.decode().removesuffix(":changes")


def _pages(client: Any, key: str) -> Iterator[list[bytes]]:
    """The fields of a hash. Those there all the time come at least once."""
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


def _in_step(client: Any, base: str, write: Callable[[Any, str, list[bytes]], bool], fields: list[bytes]) -> None:
    """One batch. A service that writes to the namespace meanwhile is not overwritten: the batch is done again."""
    for _ in range(_TRIES):
        with client.pipeline(transaction=True) as pipe:
            try:
                pipe.watch(f"{base}:changes")
                if write(pipe, base, fields):
                    pipe.execute()
                return
            except redis.WatchError:
                continue
    raise ValueError(f"{base} is being written to all the time; stop the services that use it")


def _write_records(pipe: Any, base: str, ids: list[bytes]) -> bool:
    old = _old_records(pipe, base, ids)
    if not old:
        return False
    pipe.multi()
    pipe.hset(f"{base}:records", mapping=old)
    return True


def _write_texts(pipe: Any, base: str, texts: list[bytes]) -> bool:
    missing = _missing_texts(pipe, base, texts)
    if not missing:
        return False
    pipe.multi()
    pipe.zadd(f"{base}:texts", dict.fromkeys(missing, 0))
    return True


def _old_records(client: Any, base: str, ids: list[bytes]) -> dict[bytes, str]:
    """Those without ``parents``, with it."""
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
