"""Writes the content of a store to a backup while others write to the store. Reads only: no lock, no script.

A namespace is scanned page by page. Then its change stream tells which labels changed in the meantime; they are read
again, until one transaction reads the last of them together with a stream that has nothing newer. The namespace in the
backup is what it was at that revision.
"""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

import redis

from vidlex.service.access.api_keys import record_from_json
from vidlex.service.access.key_store import KEYS, REVISION, USED
from vidlex.service.backup.entries import NamespaceEnd, RequestEntry, end_fields, label_fields, request_fields
from vidlex.service.backup.lines import BackupError, LineWriter
from vidlex.service.labels.store.calibrations import CalibrationCorrupt, calibration_from_json
from vidlex.service.labels.store.changes import ChangeCorrupt, Head, token_of
from vidlex.service.labels.store.connection import store_errors
from vidlex.service.labels.store.identity import read_store_id
from vidlex.service.labels.store.label_reader import LabelReader
from vidlex.service.labels.store.model_pointer import ModelPointerStore
from vidlex.service.labels.store.namespaces import list_namespaces
from vidlex.service.labels.store.records import Label, label_from_json
from vidlex.service.labels.store.redis_keys import (
    MODEL_POINTER_KEY,
    REPLACED_KEY,
    RESTORE_STATE_KEY,
    Keys,
    is_fingerprint,
    is_label_id,
    parse_change_entry_id,
    parse_key,
)
from vidlex.service.labels.store.redis_types import RedisPipeline, typed_client
from vidlex.service.labels.store.transaction import read_head
from vidlex.service.labels.store.vectors import VectorCorrupt, check_vector, decode_vector

_PAGE_LABELS = 200
# Answers of an older version, which may be larger, are not worth a backup: they expire within a day.
MAX_REQUEST_BYTES = 2**20
_SCAN_COUNT = 1000
_MAX_SCANS = 5  # of a namespace whose changes are trimmed faster than it can be read
_MAX_ROUNDS = 100_000  # until a moment between two writes is found: the first one usually

OnLabels = Callable[[int], object]


@dataclass
class Written:
    """What a backup holds. ``damaged`` names what could not be read and was left out."""

    namespaces: dict[str, NamespaceEnd] = field(default_factory=dict)
    num_keys: int = 0
    damaged: list[str] = field(default_factory=list)


def write_snapshot(client: redis.Redis, writer: LineWriter, *, on_labels: OnLabels = lambda _: None) -> Written:
    """Write every entry; the caller calls ``writer.finish``. Raises BackupError, StoreUnavailable, OSError."""
    written = Written()
    commands = typed_client(client)
    with store_errors():
        if commands.exists(RESTORE_STATE_KEY):
            raise BackupError("a restore of this store has not ended; run `vidlex restore` again first")
        _write_access(client, writer, written)
        if commands.get(MODEL_POINTER_KEY) is not None:
            try:
                pointer = ModelPointerStore(client).get()
            except (ValueError, KeyError, TypeError):
                written.damaged.append("the model pointer")
            else:
                writer.write("model", pointer=None if pointer is None else asdict(pointer))
    for namespace in list_namespaces(client):
        with store_errors():
            written.namespaces[namespace] = _Namespace(client, namespace, writer, written.damaged, on_labels).write()
    return written


def header_of(client: redis.Redis) -> dict[str, Any]:
    """Members of a backup's header. Raises StoreUnavailable."""
    store_id = read_store_id(client)
    commands: Any = client
    with store_errors():
        replaced = sorted(raw.decode("ascii", "replace") for raw in commands.smembers(REPLACED_KEY))
    ids = [] if store_id is None else [store_id]
    return {"created_at_ms": time.time_ns() // 1_000_000, "store_ids": [*ids, *replaced]}


def _write_access(client: redis.Redis, writer: LineWriter, written: Written) -> None:
    with client.pipeline(transaction=True) as pipe:
        pipe.get(REVISION)
        pipe.hgetall(KEYS)
        pipe.hgetall(USED)
        revision, records, used = pipe.execute()
    writer.write("access", revision=int(revision or 0))
    for key_id, raw in sorted(records.items()):
        try:
            record = record_from_json(raw)
            if record.id.encode() != key_id:
                raise ValueError("the record of another key")
        except ValueError:
            written.damaged.append(f"the API key {key_id.decode(errors='replace')}")
            continue
        used_at = used.get(key_id, b"")
        used_at_ms = int(used_at) if used_at.isdigit() else None
        writer.write("key", record=json.loads(record.to_json()), used_at_ms=used_at_ms)
        written.num_keys += 1


class _Namespace:
    def __init__(
        self, client: redis.Redis, name: str, writer: LineWriter, damaged: list[str], on_labels: OnLabels
    ) -> None:
        self._client = typed_client(client)
        self._reader = LabelReader(client, name)
        self._keys = Keys(name)
        self._name = name
        self._writer = writer
        self._damaged = damaged
        self._on_labels = on_labels
        # Labels that are listed but cannot be read, and vectors that the service would compute again:
        self._bad_labels: dict[str, None] = {}
        self._bad_vectors: dict[tuple[str, str], None] = {}

    def write(self) -> NamespaceEnd:
        self._writer.write("namespace", name=self._name)
        for _ in range(_MAX_SCANS):
            self._bad_labels.clear()
            self._bad_vectors.clear()
            head = read_head(self._client, self._keys)
            self._write_requests()
            for ids in self._pages():
                self._write_labels(ids)
                self._on_labels(len(ids))
            end = self._catch_up(head)
            if end is not None:
                self._writer.write("namespace_end", **end_fields(end))
                self._damaged += [f"label {label_id} of namespace {self._name}" for label_id in self._bad_labels]
                self._damaged += [f"the vector of {i} by encoder {f}" for i, f in self._bad_vectors]
                return end
            self._writer.write("again")
        raise BackupError(f"the namespace {self._name} changes faster than it can be read; try again later")

    def _catch_up(self, head: Head) -> NamespaceEnd | None:
        """None if the stream does not tell all that has changed since ``head``."""
        changed: dict[str, None] = {}
        for _ in range(_MAX_ROUNDS):
            try:
                changes = self._reader.changes(head.revision)
            except ChangeCorrupt:
                return None
            for change in changes:
                if not change.follows(head):
                    return None
                head = change.head
                changed.update(dict.fromkeys(change.label_ids))
            if len(changed) > _PAGE_LABELS:
                for ids in batches(changed, _PAGE_LABELS):
                    self._write_labels(ids)
                changed.clear()
            else:
                end = self._write_end(head, list(changed))
                if end is not None:
                    return end
                current = self._reader.head()
                if current.revision <= head.revision and current != head:
                    return None  # another history
        raise BackupError(f"the namespace {self._name} changes all the time; try again later")

    def _write_end(self, head: Head, changed: Sequence[str]) -> NamespaceEnd | None:
        """The last changes and all counts, from one transaction at ``head``; None if there is a newer revision."""
        keys, generations = self._keys, self._generations()
        with self._client.pipeline(transaction=True) as pipe:
            pipe.xrevrange(keys.changes, count=1)
            pipe.hgetall(keys.generations)
            pipe.hgetall(keys.calibrations)
            pipe.zcard(keys.order)
            for fingerprint in generations:
                pipe.hlen(keys.vectors(fingerprint))
            self._queue_labels(pipe, changed, generations)
            newest, stored, calibrations, num_labels, *rest = pipe.execute()
        current = Head(head.revision, "")
        if newest:
            current = Head(parse_change_entry_id(newest[0][0]), token_of(newest[0][1]))
        if current != head or _dims(stored) != generations:
            return None
        self._write_rows(changed, generations, rest[len(generations) :])
        found = {}
        for name, raw in calibrations.items():
            fingerprint = name.decode(errors="replace")
            try:
                if not is_fingerprint(name):
                    raise CalibrationCorrupt("of no encoder")
                found[fingerprint] = calibration_from_json(raw)
            except CalibrationCorrupt:
                self._damaged.append(f"the calibration of encoder {fingerprint} of namespace {self._name}")
        num_vectors = dict(zip(generations, rest[: len(generations)], strict=True))
        return NamespaceEnd(head.revision, num_labels - len(self._bad_labels), generations, num_vectors, found)

    def _write_labels(self, ids: Sequence[str]) -> None:
        generations = self._generations()
        with self._client.pipeline(transaction=True) as pipe:
            self._queue_labels(pipe, ids, generations)
            replies = pipe.execute()
        self._write_rows(ids, generations, replies)

    def _queue_labels(self, pipe: RedisPipeline, ids: Sequence[str], generations: Iterable[str]) -> None:
        if ids:
            pipe.hmget(self._keys.records, ids)
            pipe.zmscore(self._keys.order, ids)
            for fingerprint in generations:
                pipe.hmget(self._keys.vectors(fingerprint), ids)

    def _write_rows(self, ids: Sequence[str], generations: dict[str, int], replies: Sequence[Sequence[Any]]) -> None:
        absent = []
        records, scores, *columns = replies or ((), ())
        for i, (label_id, raw) in enumerate(zip(ids, records, strict=True)):
            self._bad_labels.pop(label_id, None)
            label = None if raw is None else _label_or_none(label_id, raw)
            if label is None:
                absent.append(label_id)
                if scores[i] is not None:
                    self._bad_labels[label_id] = None
                continue
            vectors = {}
            for (fingerprint, dim), column in zip(generations.items(), columns, strict=True):
                self._bad_vectors.pop((label_id, fingerprint), None)
                if column[i] is None:
                    continue
                if _is_vector(column[i], dim):
                    vectors[fingerprint] = column[i]
                else:
                    self._bad_vectors[label_id, fingerprint] = None
            self._writer.write("label", **label_fields(label, vectors))
        if absent:
            self._writer.write("removed", ids=absent)

    def _write_requests(self) -> None:
        for key in self._client.scan_iter(match=self._keys.request("*"), count=_SCAN_COUNT):
            parsed = parse_key(key)
            if parsed is None or parsed.argument is None:
                continue
            with self._client.pipeline(transaction=True) as pipe:
                pipe.hgetall(self._keys.request(parsed.argument))
                pipe.pttl(self._keys.request(parsed.argument))
                fields, ttl_ms = pipe.execute()
            if fields and ttl_ms > 0 and sum(map(len, fields.values())) < MAX_REQUEST_BYTES:
                expires_at_ms = time.time_ns() // 1_000_000 + ttl_ms
                entry = RequestEntry(parsed.argument, {n.decode(): v for n, v in fields.items()}, expires_at_ms)
                self._writer.write("request", **request_fields(entry))

    def _pages(self) -> Iterator[list[str]]:
        low = b"-"  # by id, not by offset: steps in between neither hide nor repeat a label
        while True:
            members = self._client.zrange(self._keys.order, low, "+", bylex=True, offset=0, num=_PAGE_LABELS)
            if not members:
                return
            ids = [member.decode(errors="replace") for member in members]
            self._bad_labels.update((label_id, None) for label_id in ids if not is_label_id(label_id))
            yield [label_id for label_id in ids if is_label_id(label_id)]
            low = b"(" + members[-1]

    def _generations(self) -> dict[str, int]:
        return _dims(self._client.hgetall(self._keys.generations))


def batches(items: Iterable[str], size: int) -> Iterator[list[str]]:
    left = iter(items)
    while batch := list(islice(left, size)):
        yield batch


def _dims(fields: Mapping[bytes, bytes]) -> dict[str, int]:
    # What is damaged counts as missing, as in the service.
    return {f.decode(): int(dim) for f, dim in fields.items() if is_fingerprint(f) and dim.isdigit()}


def _label_or_none(label_id: str, raw: bytes) -> Label | None:
    try:
        return label_from_json(label_id, raw)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _is_vector(raw: bytes, dim: int) -> bool:
    try:
        check_vector(decode_vector(raw, dim))
    except (VectorCorrupt, ValueError, struct.error):
        return False
    return True
