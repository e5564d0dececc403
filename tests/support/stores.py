"""A real store server for tests, and labels and vectors to put into it."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import redis
from numpy.typing import NDArray

from vidlex.service.labels.embedded.server import EmbeddedStore
from vidlex.service.labels.store.label_store import LabelStore
from vidlex.service.labels.store.records import Label, NewLabel, make_label

FINGERPRINT = "encoder-1"
DIM = 5


@contextmanager
def running_store(folder: Path) -> Iterator[redis.Redis]:
    with EmbeddedStore(folder) as embedded:
        yield embedded.client()


def vector_of(text: str, dim: int = DIM) -> NDArray[np.float32]:
    """A unit vector that follows from the text alone."""
    vector = np.random.default_rng(zlib.crc32(text.encode())).standard_normal(dim).astype(np.float32)
    return vector / np.linalg.norm(vector)


def label_id(number: int) -> str:
    return f"lbl_{number:024d}"


def label_of(number: int, categories: tuple[str, ...] = (), name: str | None = None) -> Label:
    """A label without a store, for the index."""
    new = NewLabel(name or f"label {number}", categories=categories)
    return make_label(label_id(number), new, created_at_ms=0, updated_at_ms=0, revision=number)


def add(store: LabelStore, name: str, **fields: Any) -> Label:
    return store.add(NewLabel(name, **fields), vector_of(name), FINGERPRINT)


def all_vectors(store: LabelStore, fingerprint: str = FINGERPRINT) -> dict[str, NDArray[np.float32]]:
    found = {}
    for labels, vectors in store.vectors(fingerprint, batch=3):
        assert vectors.dtype == np.float32 and len(labels) == len(vectors)
        found.update({label.id: vector for label, vector in zip(labels, vectors, strict=True)})
    return found
