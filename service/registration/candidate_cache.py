"""Vectors of the candidate labels that were last asked for: in memory, bounded by bytes, each namespace by itself."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from vidlex.service.registration.byte_lru import ByteBounded

_ENTRY_BYTES = 500
"""What an entry takes beside its name's characters and its numbers: objects, and places in the dictionary."""


class CandidateCache:
    """Of one model, for all of its namespaces. Thread-safe. What was not used for longest goes when it is full."""

    def __init__(self, max_bytes: int) -> None:
        self._lock = threading.Lock()
        self._vectors = ByteBounded[tuple[str, str], NDArray[np.float32]](max_bytes)

    @property
    def num_bytes(self) -> int:
        return self._vectors.num_bytes

    def __len__(self) -> int:
        return len(self._vectors)

    def get(self, namespace: str, names: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """Those of ``names`` whose vectors [D] are there."""
        with self._lock:
            found = {name: self._vectors.get((namespace, name)) for name in names}
        return {name: vector for name, vector in found.items() if vector is not None}

    def put(self, namespace: str, vectors: Mapping[str, NDArray[np.float32]]) -> None:
        """Keep the vectors [D] of these names; known ones are replaced."""
        with self._lock:
            for name, vector in vectors.items():
                # A copy: a row of a larger array would keep all of it in memory, uncounted.
                num_bytes = _ENTRY_BYTES + 4 * len(name) + vector.nbytes
                self._vectors.put((namespace, name), vector.copy(), num_bytes)
