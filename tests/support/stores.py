"""A real store server for tests, and labels and vectors to store in it."""

from __future__ import annotations

import os
import signal
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import redis
from numpy.typing import NDArray

from support.processes import until
from vidlex.service.errors import VidlexError
from vidlex.service.labels.embedded.server import EmbeddedStore
from vidlex.service.labels.store.identity import StoreGuard, ensure_store_id
from vidlex.service.labels.store.indexed_label import IndexedLabel
from vidlex.service.labels.store.label_store import LabelStore
from vidlex.service.labels.store.records import Label, NewLabel
from vidlex.service.labels.store.redis_types import Guard

FINGERPRINT = "encoder-1"
DIM = 5


@contextmanager
def running_store(folder: Path) -> Iterator[redis.Redis]:
    with EmbeddedStore(folder) as embedded:
        yield embedded.client()


def restart_server(embedded: EmbeddedStore) -> None:
    """Stop the server and wait until the supervisor has started the next one."""
    pid = embedded.pid
    assert pid is not None
    os.kill(pid, signal.SIGTERM)
    until(lambda: embedded.pid not in (None, pid))


def guard_of(client: redis.Redis) -> Guard:
    """As of a service that has opened this store."""
    guard = StoreGuard()
    guard.store_id = ensure_store_id(client).encode()
    return guard.check


def url_of(client: redis.Redis) -> str:
    return f"unix://{quote(client.get_connection_kwargs()['path'])}"


def vector_of(text: str, dim: int = DIM) -> NDArray[np.float32]:
    """A unit vector that depends on the text only."""
    vector = np.random.default_rng(zlib.crc32(text.encode())).standard_normal(dim).astype(np.float32)
    return vector / np.linalg.norm(vector)


def label_id(number: int) -> str:
    return f"lbl_{number:024d}"


def label_of(number: int, categories: tuple[str, ...] = (), name: str | None = None) -> IndexedLabel:
    """A label that is in no store."""
    return IndexedLabel(label_id(number), name or f"label {number}", categories, None)


def add_label(store: LabelStore, new: NewLabel, vector: NDArray[np.float32] | None = None) -> Label:
    (result,) = store.add_many([(new, vector_of(new.name) if vector is None else vector)], FINGERPRINT)
    if isinstance(result, VidlexError):
        raise result
    return result


def add(store: LabelStore, name: str, **fields: Any) -> Label:
    return add_label(store, NewLabel(name, **fields))


def all_vectors(store: LabelStore, fingerprint: str = FINGERPRINT) -> dict[str, NDArray[np.float32]]:
    found = {}
    for rows in store.scan(fingerprint, batch=3):
        for row in rows:
            if row.vector is not None:
                assert row.vector.dtype == np.float32
                found[row.label.id] = row.vector
    return found


def names_without_vector(store: LabelStore, fingerprint: str) -> list[str]:
    return [row.label.name for rows in store.scan(fingerprint, batch=3) for row in rows if row.vector is None]
