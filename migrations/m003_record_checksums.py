"""Schema 3: every record has a checksum. Frozen.

A record ends with the member ``crc32``: 8 hexadecimal digits, the CRC-32 of the label's id and of the record without
that member. Services of schema 2 ignore the member, and what they still write has none: both may run during the
migration.

New keys:

    vidlex:{NS}:quarantine           hash    label id -> damaged record that a repair has set aside
    vidlex-schema:{schema}:id        string  identifies the store; made by the service
    vidlex-schema:{schema}:replaced  set     ids of the stores that this one replaces

Damaged records are left as they are, for ``vidlex labels verify --repair``. Each batch is one transaction, which writes
only records without a checksum, so an interrupted run can be repeated.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from typing import Any

import redis

NUMBER = 3
BATCH = 500
_TRIES = 1000
_MEMBERS = {
    "name",
    "aliases",
    "categories",
    "parents",
    "threshold",
    "metadata",
    "created_at_ms",
    "updated_at_ms",
    "revision",
}


def plan(client: Any) -> dict[str, int]:
    counts = {"namespaces": 0, "records": 0}
    for base in _namespaces(client):
        counts["namespaces"] += 1
        for ids in _pages(client, f"{base}:records"):
            counts["records"] += len(_records_with_checksum(client, base, ids))
    return counts


def apply(client: Any) -> None:
    for base in _namespaces(client):
        for ids in _pages(client, f"{base}:records"):
            _write_batch(client, base, ids)


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


def _write_batch(client: Any, base: str, ids: list[bytes]) -> None:
    for _ in range(_TRIES):
        with client.pipeline(transaction=True) as pipe:
            try:
                pipe.watch(f"{base}:changes")
                records = _records_with_checksum(pipe, base, ids)
                if records:
                    pipe.multi()
                    pipe.hset(f"{base}:records", mapping=records)
                    pipe.execute()
                return
            except redis.WatchError:
                continue  # a service wrote to the namespace at the same time
    raise ValueError(f"{base} changed during every attempt; stop the services that use it")


def _records_with_checksum(client: Any, base: str, ids: list[bytes]) -> dict[bytes, bytes]:
    found = {}
    for label_id, raw in zip(ids, client.hmget(f"{base}:records", ids), strict=True):
        if raw is not None and _is_whole(raw):
            checksum = zlib.crc32(raw, zlib.crc32(label_id))
            found[label_id] = raw[:-1] + b',"crc32":"%08x"}' % checksum
    return found


def _is_whole(raw: bytes) -> bool:
    try:
        record = json.loads(raw)
    except (ValueError, RecursionError):
        return False
    return isinstance(record, dict) and set(record) == _MEMBERS and raw.endswith(b"}")
