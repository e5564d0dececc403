"""Similarities of kept features, which are float16, with labels: the arithmetic of ``POST /classify``.

Every similarity is one inner product of one label with one segment, by the code and at the alignment of the label
index, so that a kept video scores as it would if its features were classified, whatever the other labels are. A matrix
product would be up to three times as fast for a hundred labels, but its last digits depend on the number of rows, and
OpenBLAS shares it with threads that wait in busy loops, which on a loaded machine takes far longer.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from vidlex.service.labels.index.vector_slabs import FLOAT16_SCALE, PIECE_BYTES, aligned_empty, widen_float16

_FLOATS_PER_ROW = 16  # rows begin at multiples of 64 bytes


class Queries:
    """V vectors [V, D], padded and scaled for products with float16 rows."""

    def __init__(self, vectors: NDArray[np.float32]) -> None:
        self.dim = vectors.shape[1]
        self.stride = -(-self.dim // _FLOATS_PER_ROW) * _FLOATS_PER_ROW
        self.rows = aligned_empty(len(vectors), self.stride)  # [V, stride]
        self.rows[:, : self.dim] = vectors
        self.rows[:, self.dim :] = 0
        self.rows *= FLOAT16_SCALE

    def __len__(self) -> int:
        return len(self.rows)

    def products(self, features: NDArray[np.float16]) -> NDArray[np.float32]:
        """[V, n] of features [n, D]."""
        out = np.empty((len(self.rows), len(features)), np.float32)
        for start, wide in self._pieces(features):
            np.vecdot(self.rows[:, None], wide[None], out=out[:, start : start + len(wide)])
        return out

    def _pieces(self, features: NDArray[np.float16]) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Parts of ``features`` as float32 [m, stride], scaled; each is overwritten by the next."""
        size = max(1, PIECE_BYTES // (4 * self.stride))
        buffer = aligned_empty(min(size, len(features)), self.stride)
        buffer[:, self.dim :] = 0
        for start in range(0, len(features), size):
            rows = features[start : start + size]
            wide = buffer[: len(rows)]
            widen_float16(rows, wide[:, : self.dim])
            yield start, wide
