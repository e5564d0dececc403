"""Vectors of the candidate labels that were last asked for: in memory, bounded by bytes, each namespace by itself."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

_ENTRY_BYTES = 500
"""What an entry takes beside its name's characters and its numbers: objects, and places in the dictionary."""


class CandidateCache:
    """Of one model, for all of its namespaces. Thread-safe. What was not used for longest goes when it is full."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._vectors: OrderedDict[tuple[str, str], NDArray[np.float32]] = OrderedDict()
        self._num_bytes = 0

    @property
    def num_bytes(self) -> int:
        return self._num_bytes

    def __len__(self) -> int:
        return len(self._vectors)

    def get(self, namespace: str, names: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """Those of ``names`` whose vectors [D] are there."""
        found = {}
        with self._lock:
            for name in names:
                vector = self._vectors.get((namespace, name))
                if vector is not None:
                    self._vectors.move_to_end((namespace, name))
                    found[name] = vector
        return found

    def put(self, namespace: str, vectors: Mapping[str, NDArray[np.float32]]) -> None:
        """Keep the vectors [D] of these names; known ones are replaced."""
        with self._lock:
            for name, vector in vectors.items():
                key = (namespace, name)
                self._forget(key)
                # A copy: a row of a larger array would keep all of it in memory, uncounted.
                self._vectors[key] = vector.copy()
                self._num_bytes += _num_bytes(key, vector)
                while self._num_bytes > self._max_bytes:
                    self._forget(next(iter(self._vectors)))

    def _forget(self, key: tuple[str, str]) -> None:
        vector = self._vectors.pop(key, None)
        if vector is not None:
            self._num_bytes -= _num_bytes(key, vector)


def _num_bytes(key: tuple[str, str], vector: NDArray[np.float32]) -> int:
    return _ENTRY_BYTES + 4 * len(key[1]) + vector.nbytes
