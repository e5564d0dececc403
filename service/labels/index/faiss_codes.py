"""Short codes of many vectors, searched by FAISS in parts that run on different cores.

Product quantisation stores 4 bits for each pair of a vector's numbers, a sixteenth of float32; FAISS's "fast scan"
compares 32 codes at once in registers. Of P parts, slot ``s`` is number ``s // P`` of part ``s % P``: parts stay
equally long, and a filter on neighbouring slots is spread over all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidlex.service.machine.cpus import num_cpus

# Memory bandwidth limits the gain from more cores, which remain free for other searches.
MAX_PARTS = 4


class FaissCodes:
    """Codes of slots 0 to ``num`` - 1. ``add`` must not run concurrently with other methods; ``search`` may."""

    def __init__(self, parts: Sequence[Any], num: int = 0) -> None:
        # IndexIVFPQFastScan with a single list each (the flat index has no filter) and equal quantisers.
        self._parts = tuple(parts)
        self.num = num

    @classmethod
    def train(cls, vectors: NDArray[np.float32], num_parts: int | None = None) -> FaissCodes:
        """Train the quantisers on ``vectors`` [n, d], d even. By default one part per core, at most MAX_PARTS."""
        import faiss

        d = vectors.shape[1]
        first = faiss.IndexIVFPQFastScan(faiss.IndexFlatIP(d), d, 1, d // 2, 4, faiss.METRIC_INNER_PRODUCT)
        first.by_residual = False
        first.train(vectors)
        more = (num_parts or min(MAX_PARTS, num_cpus())) - 1
        return cls([first, *(faiss.clone_index(first) for _ in range(more))])

    @property
    def dim(self) -> int:
        return int(self._parts[0].d)

    def copy(self) -> FaissCodes:
        import faiss

        return FaissCodes([faiss.clone_index(part) for part in self._parts], self.num)

    def add(self, vectors: NDArray[np.float32]) -> None:
        for p, part in enumerate(self._parts):
            part.add(np.ascontiguousarray(vectors[(p - self.num) % len(self._parts) :: len(self._parts)]))
        self.num += len(vectors)

    def search(self, features: NDArray[np.float32], num: int, allowed: NDArray[np.bool_] | None) -> NDArray[np.intp]:
        """Slots of the best ``num`` codes among ``allowed`` [self.num] for each of ``features`` [B, D], D <= d.

        Best first for each of the features, concatenated.
        """
        _, slots = self.scored(features, num, allowed)
        return slots[slots >= 0]

    def scored(
        self, features: NDArray[np.float32], num: int, allowed: NDArray[np.bool_] | None
    ) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
        """As ``search``: inner products with the codes, best first, and slots; [B, n] with slot -1 where there are
        fewer."""
        queries = np.zeros((len(features), self._parts[0].d), np.float32)
        queries[:, : features.shape[1]] = features

        def search(p: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
            mask = None if allowed is None else allowed[p :: len(self._parts)]
            return _search_part(self._parts[p], queries, num, mask)

        others = [_executor().submit(search, p) for p in range(1, len(self._parts))]
        found = [search(0), *(other.result() for other in others)]
        scores = np.concatenate([scores for scores, _ in found], axis=1)  # [B, P * num]
        slots = np.concatenate(
            [np.where(ids < 0, -1, ids * len(self._parts) + p) for p, (_, ids) in enumerate(found)], axis=1
        )
        order = np.argsort(np.where(slots < 0, np.inf, -scores), axis=1, kind="stable")[:, :num]
        best = np.take_along_axis(slots, order, axis=1).astype(np.intp)
        return np.take_along_axis(scores, order, axis=1), best


def set_faiss_threads(num: int) -> None:
    import faiss

    faiss.omp_set_num_threads(num)  # for calls from the current thread


def _search_part(
    part: Any, queries: NDArray[np.float32], num: int, allowed: NDArray[np.bool_] | None
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    import faiss

    set_faiss_threads(1)  # FAISS reads a single list with a single thread
    library: Any = faiss  # its annotations lack the arguments that its Python wrapper adds
    selector = None if allowed is None else library.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
    parameters = library.IVFSearchParameters(sel=selector, nprobe=1)
    scores, ids = part.search(queries, max(1, min(num, part.ntotal)), params=parameters)
    return scores, ids  # [B, min(num, part.ntotal)]; id -1 where fewer are allowed


@cache
def _executor() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(num_cpus(), thread_name_prefix="label-scan")
