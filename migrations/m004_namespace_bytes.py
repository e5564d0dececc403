"""Schema 4: a namespace counts the bytes of its labels, and an emptied one is forgotten. Frozen.

    vidlex:{NS}:bytes  string  for each label 256, and the UTF-8 of its name, aliases, categories, ids of parents and of
                               the compact JSON of its metadata

Of a namespace without labels the generations are removed; if it has no calibrations either, its stream, which is all
that is left, expires after a day. Each namespace is one transaction, so an interrupted run can be repeated. Damaged
records count nothing. What services of schema 3 still write is not counted, until ``vidlex labels verify --repair``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import redis

NUMBER = 4
BATCH = 500
FORGET_SECONDS = 24 * 3600
_OVERHEAD_BYTES = 256
_TRIES = 100
_TRIES_BEFORE_TURN = 3
_TURN_MS = 30_000


def plan(client: Any) -> dict[str, int]:
    return {"namespaces": sum(1 for _ in _namespaces(client))}


def apply(client: Any) -> None:
    for base in _namespaces(client):
        _migrate(client, base)


def _namespaces(client: Any) -> Iterator[str]:  # vidlex:{NS}
    for key in client.scan_iter(match="vidlex:{*}:changes", count=1000):
        yield key.decode().removesuffix(":changes")


def _migrate(client: Any, base: str) -> None:
    turn = f"{base}:turn"  # for which services wait before they write
    try:
        for number in range(_TRIES):
            if number >= _TRIES_BEFORE_TURN:
                client.set(turn, "migration", px=_TURN_MS)
            if _attempt(client, base):
                return
    finally:
        if client.get(turn) == b"migration":
            client.delete(turn)
    raise ValueError(f"{base} changed during every attempt; stop the services that use it")


def _attempt(client: Any, base: str) -> bool:
    with client.pipeline(transaction=True) as pipe:
        try:
            pipe.watch(f"{base}:changes")
            num_bytes = sum(map(_size, _records(pipe, base)))
            generations = pipe.hkeys(f"{base}:generations")
            is_empty = not pipe.zcard(f"{base}:order")
            is_forgotten = is_empty and not pipe.hlen(f"{base}:calibrations")
            pipe.multi()
            pipe.set(f"{base}:bytes", num_bytes)
            if is_empty:
                vectors = [f"{base}:vectors:".encode() + fingerprint for fingerprint in generations]
                pipe.unlink(f"{base}:bytes", f"{base}:generations", *vectors)
            if is_forgotten:
                pipe.expire(f"{base}:changes", FORGET_SECONDS)
            pipe.execute()
            return True
        except redis.WatchError:
            return False  # a service wrote to the namespace at the same time


def _records(client: Any, base: str) -> Iterator[bytes]:
    low = b"-"
    while ids := client.zrange(f"{base}:order", low, "+", bylex=True, offset=0, num=BATCH):
        yield from (raw for raw in client.hmget(f"{base}:records", ids) if raw is not None)
        low = b"(" + ids[-1]


def _size(raw: bytes) -> int:
    try:
        record = json.loads(raw)
        texts = [record["name"], *record["aliases"], *record["categories"], *record["parents"]]
        texts.append(json.dumps(record["metadata"], ensure_ascii=False, separators=(",", ":")))
        return _OVERHEAD_BYTES + sum(len(text.encode()) for text in texts)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return 0
