"""In-memory LRU cache of candidate labels' vectors, bounded in bytes, keyed by namespace and name."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

import numpy as np
from cachetools import LRUCache
from numpy.typing import NDArray

_OVERHEAD_BYTES = 700  # of one entry, in addition to its name and vector


class _Entry(NamedTuple):
    vector: NDArray[np.float32]
    num_bytes: int


class CandidateCache:
    """Of one model, for all its namespaces. Thread-safe."""

    def __init__(self, max_bytes: int) -> None:
        self._lock = threading.Lock()
        self._entries: LRUCache[tuple[str, str], _Entry] = LRUCache(max_bytes, getsizeof=lambda x: x.num_bytes)

    @property
    def num_bytes(self) -> int:
        return int(self._entries.currsize)

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, namespace: str, names: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        with self._lock:
            entries = {name: self._entries.get((namespace, name)) for name in names}
        return {name: entry.vector for name, entry in entries.items() if entry is not None}

    def put(self, namespace: str, vectors: Mapping[str, NDArray[np.float32]]) -> None:
        with self._lock:
            for name, vector in vectors.items():
                # A copy: a view would hold all of the array it belongs to in memory, uncounted.
                entry = _Entry(vector.copy(), _OVERHEAD_BYTES + 4 * len(name) + vector.nbytes)
                with suppress(ValueError):  # larger than the cache
                    self._entries[namespace, name] = entry
