"""Approximate search in large vocabularies: FAISS selects candidates by short codes, which are then compared exactly.

All codes are scanned, so recall does not depend on clusters of vectors, and filters apply within the scan. A label may
be missing, but the similarities equal those of an exact search to the last digit.

Codes are immutable. Labels added later are compared exactly with every video until a background thread has built new
codes. Each build measures how many candidates it takes to find TARGET_RECALL of the exact best labels. If the largest
number is not enough, searches stay exact.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vidlex.service.labels.index.faiss_codes import FaissCodes, set_faiss_threads
from vidlex.service.labels.index.slot_affine import FoldedAffine, SlotAffine
from vidlex.service.labels.index.vector_slabs import VectorSlabs
from vidlex.service.machine.cpus import num_cpus

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


@dataclass(frozen=True, eq=False)
class CodedContent:
    """Of the label index. With ``affine``, adjusted similarities are searched."""

    slabs: VectorSlabs
    affine: SlotAffine | None
    num: int  # of slots
    slots: NDArray[np.intp]  # the live ones


ReadContent = Callable[[], CodedContent]


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
    affine: SlotAffine | None
    folded: FoldedAffine | None  # with ``affine``
    codes: FaissCodes
    num_trained: int
    stats: RecallStats

    @property
    def num(self) -> int:
        return self.codes.num  # slots from here on have no codes

    def codes_of(self, slabs: VectorSlabs, affine: SlotAffine | None) -> bool:
        return self.slabs is slabs and self.affine is affine

    def is_usable(self, num_videos: int, num_allowed: int, top_k: int) -> bool:
        if self.stats.is_exact or not 0 < top_k <= MAX_TOP_K or num_allowed < MIN_LABELS:
            return False
        return num_videos * self._num_candidates(top_k) * 4 < num_allowed

    def candidates(
        self, features: NDArray[np.float32], allowed: NDArray[np.bool_] | None, top_k: int
    ) -> NDArray[np.intp]:
        """Slots below ``num``, ascending: candidates for the best ``top_k`` of each video [B, D] among ``allowed``."""
        mask = None if allowed is None else allowed[: self.num]
        queries = features if self.folded is None else self.folded.queries(features)
        return np.unique(self.codes.search(queries, self._num_candidates(top_k), mask))

    def _num_candidates(self, top_k: int) -> int:
        return self.stats.num_candidates * max(RECALL_AT, top_k) // RECALL_AT


class ApproximateIndexBuilder:
    def __init__(self) -> None:
        self.newest: ApproximateIndex | None = None
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def start_if_stale(self, read_content: ReadContent) -> None:
        if not _is_stale(self.newest, read_content()):
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
                    content = read_content()
                    if not _is_stale(self.newest, content):
                        self._thread = None
                        return
                self.newest = _build(self.newest, content)
        except Exception:
            _log.exception("building label codes failed; searches continue without new codes")
            with self._lock:
                self._thread = None


def _build(old: ApproximateIndex | None, content: CodedContent) -> ApproximateIndex:
    """Encode the slots of ``content``; extends a copy of ``old`` where possible."""
    slabs, affine, num, slots = content.slabs, content.affine, content.num, content.slots
    started = time.monotonic()
    set_faiss_threads(max(1, num_cpus() // 2))
    if old is not None and old.codes_of(slabs, affine) and num <= _MAX_GROWTH * old.num_trained:
        folded, codes, num_done, num_trained = old.folded, old.codes.copy(), old.num, old.num_trained
    else:
        folded = None if affine is None else FoldedAffine(slabs, affine, slots)
        codes, num_done, num_trained = _train(_reader(slabs, folded), slots), 0, len(slots)
    read_vectors = _reader(slabs, folded)
    for start in range(num_done, num, _ADD_BATCH):
        codes.add(read_vectors(np.arange(start, min(start + _ADD_BATCH, num))))
    stats = _measure_recall(codes, content, folded)
    _log.info(
        "built codes of %d labels in %.1f s: recall@%d %.4f with %d candidates",
        stats.num_labels, time.monotonic() - started, RECALL_AT, stats.recall, stats.num_candidates,
    )  # fmt: skip
    if stats.is_exact:
        _log.warning("the recall of the label codes is only %.4f; searches stay exact", stats.recall)
    return ApproximateIndex(slabs, affine, folded, codes, num_trained, stats)


def _is_stale(index: ApproximateIndex | None, content: CodedContent) -> bool:
    if index is None or not index.codes_of(content.slabs, content.affine):
        return content.num >= MIN_LABELS
    return content.num - index.num > MAX_UNCODED_LABELS


def _reader(slabs: VectorSlabs, folded: FoldedAffine | None) -> Callable[[NDArray[np.intp]], NDArray[np.float32]]:
    return slabs.vectors if folded is None else folded.vectors


def _train(read_vectors: Callable[[NDArray[np.intp]], NDArray[np.float32]], slots: NDArray[np.intp]) -> FaissCodes:
    chosen = np.random.default_rng(0).permutation(len(slots))[:_MAX_TRAINING_VECTORS]
    return FaissCodes.train(read_vectors(slots[np.sort(chosen)]))


def _measure_recall(codes: FaissCodes, content: CodedContent, folded: FoldedAffine | None) -> RecallStats:
    slabs, num, slots = content.slabs, content.num, content.slots
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
        products = slabs.products(slabs.queries(query[None]), num)
        adjusted = products[0] if content.affine is None else content.affine.adjust(products, num)[0]
        adjusted[~live] = -np.inf
        best = np.argpartition(-adjusted, num_best - 1)[:num_best]
        asked = query[None] if folded is None else folded.queries(query[None])
        candidates = codes.search(asked, _CANDIDATE_COUNTS[-1], live)
        found += [np.isin(best, candidates[:count]).mean() for count in _CANDIDATE_COUNTS]
    recalls = found / len(near)
    enough = int(np.argmax(recalls >= TARGET_RECALL)) if recalls[-1] >= TARGET_RECALL else len(recalls) - 1
    recall = float(recalls[enough])
    return RecallStats(len(slots), recall, _CANDIDATE_COUNTS[enough], is_exact=recall < TARGET_RECALL)
