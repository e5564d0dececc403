"""The migration from schema 2 to 3: checksums for every whole record, and nothing else is changed."""

from __future__ import annotations

import json
from typing import Any

import pytest
import redis

from support.stores import add
from vidlex.migrations import m003_record_checksums
from vidlex.migrations.runner import VERSION_KEY, find_migrations, migrate, pending
from vidlex.service.errors import LabelCorrupt
from vidlex.service.labels.store.label_store import LabelStore
from vidlex.service.labels.store.records import LabelChanges, label_from_json, label_to_json, split_checksum
from vidlex.service.labels.store.verify import verify_namespace

UP_TO_3 = find_migrations()[:3]
RECORDS = "vidlex:{default}:records"


def write_schema_2(client: redis.Redis, num_labels: int) -> dict[str, bytes]:
    """Labels as version 2 of the service wrote them: the records, without checksums."""
    store = LabelStore(client)
    for i in range(num_labels):
        add(store, f"Label {i} ü", aliases=(f"other {i}",), metadata={"crc32": "01234567"})
    records: Any = client.hgetall(RECORDS)
    old = {label_id.decode(): split_checksum(raw)[0] for label_id, raw in records.items()}
    client.hset(RECORDS, mapping=old)
    client.set(VERSION_KEY, 2)
    return old


def checksums(client: redis.Redis) -> list[bytes | None]:
    records: Any = client.hvals(RECORDS)
    return [split_checksum(raw)[1] for raw in records]


def test_records_without_checksums_are_readable_and_get_them(client: redis.Redis) -> None:
    old = write_schema_2(client, 1200)
    store = LabelStore(client)
    labels = {label_id: store.get(label_id) for label_id in old}
    assert verify_namespace(client) == [] and set(checksums(client)) == {None}
    assert pending(client, UP_TO_3) == {"m003_record_checksums": {"namespaces": 1, "records": 1200}}
    assert migrate(client, UP_TO_3) == ["m003_record_checksums"]
    assert None not in checksums(client)
    assert {label_id: store.get(label_id) for label_id in old} == labels
    assert verify_namespace(client) == []
    # Exactly what the service itself writes.
    records: Any = client.hgetall(RECORDS)
    for label_id, raw in records.items():
        assert raw.decode() == label_to_json(label_from_json(label_id.decode(), raw))
        # A service of schema 2 can still read it.
        data = json.loads(raw)
        assert data.pop("crc32") and data == json.loads(old[label_id.decode()])
    assert m003_record_checksums.plan(client) == {"namespaces": 1, "records": 0}


def test_damaged_records_are_left_alone(client: redis.Redis) -> None:
    old = write_schema_2(client, 4)
    first, second, third, fourth = sorted(old)
    damaged = {first: old[first][:-10], second: b"[1]", third: old[third].replace(b'"name"', b'"nam\x00"')}
    client.hset(RECORDS, mapping=damaged)
    assert migrate(client, UP_TO_3) == ["m003_record_checksums"]
    records: Any = client.hgetall(RECORDS)
    assert {label_id: records[label_id.encode()] for label_id in damaged} == damaged
    store = LabelStore(client)
    assert [label.id for label in store.list().data] == [fourth]
    for label_id in damaged:
        with pytest.raises(LabelCorrupt):
            store.get(label_id)


def test_what_a_service_of_schema_2_writes_afterwards_is_readable(client: redis.Redis) -> None:
    write_schema_2(client, 2)
    migrate(client, UP_TO_3)
    store = LabelStore(client)
    label = store.list().data[0]
    raw: Any = client.hget(RECORDS, label.id)
    client.hset(RECORDS, label.id, json.dumps({k: v for k, v in json.loads(raw).items() if k != "crc32"}))
    assert store.get(label.id) == label
    store.update(label.id, LabelChanges(threshold=0.5))
    assert None not in checksums(client)
