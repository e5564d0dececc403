"""Likely labels of very large vocabularies: short codes of all, scanned by FAISS; the best are compared exactly.

Codes (`faiss_codes.py`) are scanned flat, so recall does not depend on how the vectors cluster, and filters work
inside the scan. The best few thousand of the scan go to the exact product, whose digits are those of an exact search:
what can differ is only that a label is missing.

Codes are immutable. Labels that came since the last codes were made are compared exactly with every video, until a
thread has made codes that hold them too; nobody waits for it. How many candidates are needed is measured whenever
codes are made: as few as find TARGET_RECALL of the exact best. Where even the most do not, searches stay exact.
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

from vidlex.service.labels.index.faiss_codes import CodeScan, use_threads
from vidlex.service.labels.index.vector_slabs import Rows

RECALL_AT = 50
TARGET_RECALL = 0.995
MAX_TOP_K = 250
"""More are looked for exactly."""
MIN_LABELS = 20_000
"""Fewer are compared exactly in no more time."""
MAX_TAIL = 8192
"""Labels without codes, compared exactly, from which on new codes are made."""
_CANDIDATES = (250, 500, 1000, 2000, 4000, 8000)
_MAX_GROWTH = 4
"""Codes are learned anew when there are so many times more labels than those they were learned from."""
_TRAINED_ON = 16_384
_ADDED_AT_ONCE = 16_384
_NUM_QUERIES = 32

_log = logging.getLogger(__name__)

Content = Callable[[], tuple[Rows, int, NDArray[np.intp]]]
"""The index's present rows, how many slots they have, and the living ones among these."""


@dataclass(frozen=True)
class Facts:
    num_labels: int
    """Labels with codes when these were made."""
    recall: float
    """Share of the exact best RECALL_AT that was found, mean over queries near random labels."""
    num_candidates: int
    exact: bool
    """Whether searches stay exact because the recall was not reached."""


@dataclass(frozen=True, eq=False)
class Codes:
    rows: Rows
    scan: CodeScan
    num_trained: int
    facts: Facts

    @property
    def num(self) -> int:
        """Slots 0 to num - 1 have codes."""
        return self.scan.num

    def serves(self, rows: Rows, num_videos: int, num_allowed: int, top_k: int) -> bool:
        """Whether a search for ``top_k`` among so many labels should go by the codes."""
        if self.rows is not rows or self.facts.exact or not 0 < top_k <= MAX_TOP_K or num_allowed < MIN_LABELS:
            return False
        return num_videos * self._wanted(top_k) * 4 < num_allowed

    def candidates(
        self, features: NDArray[np.float32], allowed: NDArray[np.bool_] | None, top_k: int
    ) -> NDArray[np.intp]:
        """Slots below ``num``, ascending, likely to hold the best ``top_k`` of each video [B, D] among ``allowed``."""
        mask = None if allowed is None else allowed[: self.num]
        return np.unique(self.scan.likeliest(features, self._wanted(top_k), mask))

    def _wanted(self, top_k: int) -> int:
        return self.facts.num_candidates * max(RECALL_AT, top_k) // RECALL_AT


class Approximation:
    """Makes codes in a thread of its own whenever there is need, and holds the newest."""

    def __init__(self) -> None:
        self.codes: Codes | None = None
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    @property
    def facts(self) -> Facts | None:
        return None if self.codes is None else self.codes.facts

    def keep_up(self, rows: Rows, num: int, content: Content) -> None:
        """To be told of each change, with what is there now and how to learn it later. Returns at once."""
        if not _is_stale(self.codes, rows, num):
            return
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, args=(content,), name="label-codes", daemon=True)
                self._thread.start()

    def wait(self, timeout_seconds: float) -> bool:
        """Until no codes are being made. True if that is so."""
        thread = self._thread
        if thread is not None:
            thread.join(timeout_seconds)
        return self._thread is None

    def _work(self, content: Content) -> None:
        try:
            while True:
                with self._lock:
                    rows, num, slots = content()
                    if not _is_stale(self.codes, rows, num):
                        self._thread = None
                        return
                self.codes = make_codes(self.codes, rows, num, slots)
        except Exception:
            _log.exception("making codes failed; searches stay as they are")
            with self._lock:
                self._thread = None


def make_codes(old: Codes | None, rows: Rows, num: int, slots: NDArray[np.intp]) -> Codes:
    """Codes of the first ``num`` slots, the living ones ``slots``: ``old`` ones with what is new, or all anew."""
    started = time.monotonic()
    use_threads(max(1, (os.cpu_count() or 1) // 2))
    if old is not None and old.rows is rows and num <= _MAX_GROWTH * old.num_trained:
        scan, done, num_trained = old.scan.copy(), old.num, old.num_trained
    else:
        scan, done, num_trained = _trained(rows, slots), 0, len(slots)
    for start in range(done, num, _ADDED_AT_ONCE):
        scan.add(rows.vectors(np.arange(start, min(start + _ADDED_AT_ONCE, num))))
    facts = _measured(scan, rows, num, slots)
    seconds = time.monotonic() - started
    _log.info(
        "codes of %d labels in %.1f s: recall@%d %.4f with %d candidates",
        facts.num_labels, seconds, RECALL_AT, facts.recall, facts.num_candidates,
    )  # fmt: skip
    if facts.exact:
        _log.warning("codes find only %.4f of the best labels; searches stay exact", facts.recall)
    return Codes(rows, scan, num_trained, facts)


def _is_stale(codes: Codes | None, rows: Rows, num: int) -> bool:
    if codes is None or codes.rows is not rows:
        return num >= MIN_LABELS
    return num - codes.num > MAX_TAIL


def _trained(rows: Rows, slots: NDArray[np.intp]) -> CodeScan:
    chosen = np.random.default_rng(0).permutation(len(slots))[:_TRAINED_ON]
    return CodeScan.trained(rows.vectors(slots[np.sort(chosen)]))


def _measured(scan: CodeScan, rows: Rows, num: int, slots: NDArray[np.intp]) -> Facts:
    """Recall of the codes for queries near labels: a label's direction and as much noise (cosine about 0.7)."""
    rng = np.random.default_rng(1)
    chosen = slots[np.sort(rng.choice(len(slots), min(_NUM_QUERIES, len(slots)), replace=False))]
    near = rows.vectors(chosen)[:, : rows.dim]
    noise = rng.standard_normal(near.shape, dtype=np.float32)
    noise *= np.linalg.norm(near, axis=1, keepdims=True) / np.linalg.norm(noise, axis=1, keepdims=True)
    living = np.zeros(num, np.bool_)
    living[slots] = True
    found = np.zeros(len(_CANDIDATES))
    wanted = min(RECALL_AT, len(slots))
    for query in near + noise:
        products = rows.products(rows.queries(query[None]), num)[0]
        products[~living] = -np.inf
        best = np.argpartition(-products, wanted - 1)[:wanted]
        likely = scan.likeliest(query[None], _CANDIDATES[-1], living)
        found += [np.isin(best, likely[:count]).mean() for count in _CANDIDATES]
    recalls = found / len(near)
    enough = int(np.argmax(recalls >= TARGET_RECALL)) if recalls[-1] >= TARGET_RECALL else len(recalls) - 1
    recall = float(recalls[enough])
    return Facts(len(slots), recall, _CANDIDATES[enough], exact=recall < TARGET_RECALL)
