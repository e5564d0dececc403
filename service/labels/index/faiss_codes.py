"""Short codes of many vectors, read by FAISS in parts that lie in different cores at the same time.

A code holds four bits for each two numbers of a vector (product quantisation; FAISS's "fast scan" compares 32 codes at
once from registers), a sixteenth of float32. Slot ``s`` is number ``s // P`` of part ``s % P``: parts stay equally long
whatever is added, and a filter on neighbouring slots spares none of them work.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_PARTS = 4
"""More cores are left to other searches: the memory hardly feeds more."""


class CodeScan:
    """Codes of slots 0 to ``num`` - 1. ``add`` is for whoever made it, before others know it; then read only."""

    def __init__(self, parts: Sequence[Any], num: int = 0) -> None:
        """``parts``: of faiss.IndexIVFPQFastScan with a single list (the flat one takes no filter) and equal
        quantisers."""
        self._parts = tuple(parts)
        self.num = num

    @classmethod
    def trained(cls, vectors: NDArray[np.float32], num_parts: int | None = None) -> CodeScan:
        """Empty, with quantisers learned from ``vectors`` [n, d], d even. By default a part for each core, up to
        MAX_PARTS."""
        import faiss

        d = vectors.shape[1]
        first = faiss.IndexIVFPQFastScan(faiss.IndexFlatIP(d), d, 1, d // 2, 4, faiss.METRIC_INNER_PRODUCT)
        first.by_residual = False
        first.train(vectors)
        more = (num_parts or min(MAX_PARTS, os.cpu_count() or 1)) - 1
        return cls([first, *(faiss.clone_index(first) for _ in range(more))])

    def copy(self) -> CodeScan:
        """One that grows by itself."""
        import faiss

        return CodeScan([faiss.clone_index(part) for part in self._parts], self.num)

    def add(self, vectors: NDArray[np.float32]) -> None:
        """Codes of the next slots: [n, d]."""
        for place, part in enumerate(self._parts):
            part.add(np.ascontiguousarray(vectors[(place - self.num) % len(self._parts) :: len(self._parts)]))
        self.num += len(vectors)

    def likeliest(self, features: NDArray[np.float32], num: int, allowed: NDArray[np.bool_] | None) -> NDArray[np.intp]:
        """Slots of the best ``num`` codes for each of [B, D] among ``allowed`` [self.num], likeliest first, all behind
        each other. D is at most the d of the codes."""
        queries = np.zeros((len(features), self._parts[0].d), np.float32)
        queries[:, : features.shape[1]] = features

        def search(place: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
            mask = None if allowed is None else allowed[place :: len(self._parts)]
            return _search(self._parts[place], queries, num, mask)

        others = [_threads().submit(search, place) for place in range(1, len(self._parts))]
        found = [search(0), *(other.result() for other in others)]
        scores = np.concatenate([scores for scores, _ in found], axis=1)  # [B, P * num]
        slots = np.concatenate(
            [np.where(ids < 0, -1, ids * len(self._parts) + place) for place, (_, ids) in enumerate(found)], axis=1
        )
        order = np.argsort(np.where(slots < 0, np.inf, -scores), axis=1, kind="stable")[:, :num]
        best = np.take_along_axis(slots, order, axis=1)
        chosen: NDArray[np.intp] = best[best >= 0].astype(np.intp)
        return chosen


def use_threads(num: int) -> None:
    """Threads of FAISS's own for what the calling thread asks of it: OpenMP keeps it for each thread."""
    import faiss

    faiss.omp_set_num_threads(num)


def _search(
    part: Any, queries: NDArray[np.float32], num: int, allowed: NDArray[np.bool_] | None
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Scores and numbers within the part, each [B, min(num, all)]; -1 where there are no more."""
    import faiss

    use_threads(1)  # a single list is read by a single thread
    library: Any = faiss  # its own types are those of C++, from before Python's arguments are added
    selector = None if allowed is None else library.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
    parameters = library.IVFSearchParameters(sel=selector, nprobe=1)
    scores, ids = part.search(queries, max(1, min(num, part.ntotal)), params=parameters)
    return scores, ids


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="label-scan")
