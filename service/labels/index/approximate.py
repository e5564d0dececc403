"""Approximate search in large vocabularies: FAISS selects candidates by short codes, which are then compared exactly.

All codes are scanned, so recall does not depend on clusters of vectors, and filters apply within the scan. A label may
be missing, but the similarities equal those of an exact search to the last digit.

Codes are immutable. Labels added later are compared exactly with every video until a background thread has built new
codes. Each build measures how many candidates it takes to find TARGET_RECALL of the exact best labels. If the largest
number is not enough, searches stay exact.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vidlex.service.labels.index.faiss_codes import FaissCodes, set_faiss_threads
from vidlex.service.labels.index.vector_slabs import VectorSlabs

RECALL_AT = 50
TARGET_RECALL = 0.995
MAX_TOP_K = 250  # a larger top_k is searched exactly
MIN_LABELS = 20_000  # an exact search of fewer labels takes no longer
MAX_UNCODED_LABELS = 8192  # with more labels without codes, new codes are built
_CANDIDATE_COUNTS = (250, 500, 1000, 2000, 4000, 8000)
# Codes are trained again once the number of labels exceeds this multiple of those at the last training.
_MAX_GROWTH = 4
_MAX_TRAINING_VECTORS = 16_384
_ADD_BATCH = 16_384
_NUM_QUERIES = 32

_log = logging.getLogger(__name__)

# The label index's slabs, their number of slots, and the live ones among these
ReadContent = Callable[[], tuple[VectorSlabs, int, NDArray[np.intp]]]


@dataclass(frozen=True)
class RecallStats:
    num_labels: int
    # Mean share of the exact best RECALL_AT that was found, over queries near random labels.
    recall: float
    num_candidates: int
    is_exact: bool


@dataclass(frozen=True, eq=False)
class ApproximateIndex:
    slabs: VectorSlabs
    codes: FaissCodes
    num_trained: int
    stats: RecallStats

    @property
    def num(self) -> int:
        return self.codes.num  # slots from here on have no codes

    def is_usable(self, slabs: VectorSlabs, num_videos: int, num_allowed: int, top_k: int) -> bool:
        if self.slabs is not slabs or self.stats.is_exact or not 0 < top_k <= MAX_TOP_K or num_allowed < MIN_LABELS:
            return False
        return num_videos * self._num_candidates(top_k) * 4 < num_allowed

    def candidates(
        self, features: NDArray[np.float32], allowed: NDArray[np.bool_] | None, top_k: int
    ) -> NDArray[np.intp]:
        """Slots below ``num``, ascending: candidates for the best ``top_k`` of each video [B, D] among ``allowed``."""
        mask = None if allowed is None else allowed[: self.num]
        return np.unique(self.codes.search(features, self._num_candidates(top_k), mask))

    def _num_candidates(self, top_k: int) -> int:
        return self.stats.num_candidates * max(RECALL_AT, top_k) // RECALL_AT


class ApproximateIndexBuilder:
    def __init__(self) -> None:
        self.newest: ApproximateIndex | None = None
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def start_if_stale(self, slabs: VectorSlabs, num: int, read_content: ReadContent) -> None:
        if not _is_stale(self.newest, slabs, num):
            return
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._work, args=(read_content,), name="label-codes", daemon=True
                )
                self._thread.start()

    def wait(self, timeout_seconds: float) -> bool:
        thread = self._thread
        if thread is not None:
            thread.join(timeout_seconds)
        return self._thread is None

    def _work(self, read_content: ReadContent) -> None:
        try:
            while True:
                with self._lock:
                    slabs, num, slots = read_content()
                    if not _is_stale(self.newest, slabs, num):
                        self._thread = None
                        return
                self.newest = _build(self.newest, slabs, num, slots)
        except Exception:
            _log.exception("building label codes failed; searches continue without new codes")
            with self._lock:
                self._thread = None


def _build(old: ApproximateIndex | None, slabs: VectorSlabs, num: int, slots: NDArray[np.intp]) -> ApproximateIndex:
    """Encode the first ``num`` slots, of which ``slots`` are live; extends a copy of ``old`` where possible."""
    started = time.monotonic()
    set_faiss_threads(max(1, (os.cpu_count() or 1) // 2))
    if old is not None and old.slabs is slabs and num <= _MAX_GROWTH * old.num_trained:
        codes, num_done, num_trained = old.codes.copy(), old.num, old.num_trained
    else:
        codes, num_done, num_trained = _train(slabs, slots), 0, len(slots)
    for start in range(num_done, num, _ADD_BATCH):
        codes.add(slabs.vectors(np.arange(start, min(start + _ADD_BATCH, num))))
    stats = _measure_recall(codes, slabs, num, slots)
    _log.info(
        "built codes of %d labels in %.1f s: recall@%d %.4f with %d candidates",
        stats.num_labels, time.monotonic() - started, RECALL_AT, stats.recall, stats.num_candidates,
    )  # fmt: skip
    if stats.is_exact:
        _log.warning("the recall of the label codes is only %.4f; searches stay exact", stats.recall)
    return ApproximateIndex(slabs, codes, num_trained, stats)


def _is_stale(index: ApproximateIndex | None, slabs: VectorSlabs, num: int) -> bool:
    if index is None or index.slabs is not slabs:
        return num >= MIN_LABELS
    return num - index.num > MAX_UNCODED_LABELS


def _train(slabs: VectorSlabs, slots: NDArray[np.intp]) -> FaissCodes:
    chosen = np.random.default_rng(0).permutation(len(slots))[:_MAX_TRAINING_VECTORS]
    return FaissCodes.train(slabs.vectors(slots[np.sort(chosen)]))


def _measure_recall(codes: FaissCodes, slabs: VectorSlabs, num: int, slots: NDArray[np.intp]) -> RecallStats:
    rng = np.random.default_rng(1)
    chosen = slots[np.sort(rng.choice(len(slots), min(_NUM_QUERIES, len(slots)), replace=False))]
    near = slabs.vectors(chosen)[:, : slabs.dim]
    noise = rng.standard_normal(near.shape, dtype=np.float32)
    noise *= np.linalg.norm(near, axis=1, keepdims=True) / np.linalg.norm(noise, axis=1, keepdims=True)
    live = np.zeros(num, np.bool_)
    live[slots] = True
    found = np.zeros(len(_CANDIDATE_COUNTS))
    num_best = min(RECALL_AT, len(slots))
    for query in near + noise:  # cosine with the label about 0.7
        products = slabs.products(slabs.queries(query[None]), num)[0]
        products[~live] = -np.inf
        best = np.argpartition(-products, num_best - 1)[:num_best]
        candidates = codes.search(query[None], _CANDIDATE_COUNTS[-1], live)
        found += [np.isin(best, candidates[:count]).mean() for count in _CANDIDATE_COUNTS]
    recalls = found / len(near)
    enough = int(np.argmax(recalls >= TARGET_RECALL)) if recalls[-1] >= TARGET_RECALL else len(recalls) - 1
    recall = float(recalls[enough])
    return RecallStats(len(slots), recall, _CANDIDATE_COUNTS[enough], is_exact=recall < TARGET_RECALL)
