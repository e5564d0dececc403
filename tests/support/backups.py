"""Backups in memory, and what a store holds, for comparison."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
from collections.abc import Callable, Iterable
from typing import Any

import redis

from vidlex.service.access.key_store import KeyStore
from vidlex.service.backup.lines import LineWriter
from vidlex.service.backup.snapshot import Written, header_of, write_snapshot
from vidlex.service.labels.store.label_store import LabelStore
from vidlex.service.labels.store.model_pointer import ModelPointerStore
from vidlex.service.labels.store.namespaces import list_namespaces
from vidlex.service.labels.store.records import Label


def backup_of(client: redis.Redis, on_labels: Callable[[int], object] = lambda _: None) -> tuple[io.BytesIO, Written]:
    file = io.BytesIO()
    writer = LineWriter(file, **header_of(client))
    written = write_snapshot(client, writer, on_labels=on_labels)
    writer.finish()
    return file, written


def labels_in(client: redis.Redis, namespace: str = "default") -> list[Label]:
    store = LabelStore(client, namespace)
    found: list[Label] = []
    while (page := store.list(1000, found[-1].id if found else None)).data:
        found += page.data
    return found


def content_of(client: redis.Redis) -> dict[str, Any]:
    """Everything that a backup must bring back; without the time of a key's last use."""
    found: dict[str, Any] = {}
    for namespace in list_namespaces(client):
        store = LabelStore(client, namespace)
        generations = store.generations()
        found[namespace] = {
            "labels": labels_in(client, namespace),
            "revision": store.revision(),
            "generations": generations,
            "vectors": {f: client.hgetall(f"vidlex:{{{namespace}}}:vectors:{f}") for f in generations},
            "calibrations": {f: store.calibration(f) for f in generations},
            "requests": {key: client.hgetall(key) for key in client.keys(f"vidlex:{{{namespace}}}:request:*")},
        }
    return found | {"keys": KeyStore(client).load()[1], "model": ModelPointerStore(client).get()}


def lines_of(file: io.BytesIO) -> list[dict[str, Any]]:
    """Without the last one."""
    return [json.loads(line) for line in gzip.decompress(file.getvalue()).splitlines()[:-1]]


def backup_with(lines: Iterable[dict[str, Any] | bytes]) -> io.BytesIO:
    """A file of any lines, with a correct checksum."""
    raw = b"".join(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in lines)
    end = {"kind": "end", "lines": raw.count(b"\n"), "sha256": hashlib.sha256(raw).hexdigest()}
    return io.BytesIO(gzip.compress(raw + json.dumps(end).encode() + b"\n"))
