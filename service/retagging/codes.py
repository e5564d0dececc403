"""Short codes of many segments (see labels/index/faiss_codes.py), which select candidates for an exact comparison.

The rows of a part of the kept features never change, so codes are kept per part and follow what is appended to it.
Codes are built by a background thread; what has none yet is compared exactly. Rows of removed videos are left out of
every search by a mask. Each build measures how many candidates it takes to find TARGET_RECALL of the exact best
segments, for queries near segments and for labels; if the largest number is not enough, searches stay exact.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import structlog
from numpy.typing import NDArray

from vidlex.service.labels.index.faiss_codes import FaissCodes, set_faiss_threads
from vidlex.service.machine.cpus import num_cpus
from vidlex.service.retagging.products import Queries
from vidlex.service.retagging.ranking import all_products
from vidlex.service.retagging.scan import map_in_threads
from vidlex.service.videos.parts.table import KeptTable, TablePart

RECALL_AT = 50
TARGET_RECALL = 0.99
MIN_SEGMENTS = 100_000  # an exact search of fewer takes no longer than 10 ms
MAX_UNCODED = 8192  # with more segments without codes, new codes are built
CANDIDATE_COUNTS = (250, 500, 1000, 2000, 4000, 8000)
_MAX_COMPARED = 65_536  # segments without codes, while new codes are built; with more, a search compares all
_RETRY_SECONDS = 60.0
_MAX_GROWTH = 4
_MAX_TRAINING_ROWS = 16_384
_ADD_ROWS = 16_384
_NUM_PROBES = 16  # of each kind
_ID_BYTES = 8  # of FAISS, per code

_log = structlog.get_logger("vidlex.retagging")

Probes = Callable[[int], NDArray[np.float32]]  # some label vectors [n, D], at most as many as asked for


@dataclass(frozen=True)
class Recall:
    """``recall``: the smaller one of both kinds of queries, of the best RECALL_AT segments."""

    num_segments: int
    recall: float
    num_candidates: int

    @property
    def is_enough(self) -> bool:
        return self.recall >= TARGET_RECALL


@dataclass(frozen=True, eq=False)
class SegmentCodes:
    """Of the first ``codes.num`` rows of the file of each part."""

    codes: Mapping[str, FaissCodes]
    empty: FaissCodes  # trained
    num_trained: int  # segments that there were
    recall: Recall

    @property
    def num_rows(self) -> int:
        return sum(codes.num for codes in self.codes.values())

    def num_coded(self, part: TablePart) -> int:
        found = self.codes.get(part.part)
        return 0 if found is None else found.num

    def num_uncoded(self, table: KeptTable) -> int:
        """Rows of the table's parts without codes."""
        return int(sum(max(0, part.min_file_rows - self.num_coded(part)) for part in table.parts))

    def candidates(self, table: KeptTable, query: NDArray[np.float32], num: int) -> NDArray[np.int64]:
        """Segments of the table, ascending: candidates for the best ones, and all that have no codes yet."""
        firsts = np.cumsum([0, *(part.num_segments for part in table.parts)])

        def search(index: int) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
            part = table.parts[index]
            num_coded = self.num_coded(part)
            num_old = int(np.searchsorted(part.row_of_segment, num_coded))  # segments with codes
            uncoded = np.arange(num_old, part.num_segments) + firsts[index]
            if not num_old:
                return np.empty(0, np.float32), np.empty(0, np.int64), uncoded
            allowed = None
            if num_old < num_coded:
                allowed = np.zeros(num_coded, np.bool_)
                allowed[part.row_of_segment[:num_old]] = True
            scores, rows = self.codes[part.part].scored(query[None], num, allowed)
            is_found = rows[0] >= 0
            segments = np.searchsorted(part.row_of_segment, rows[0][is_found]) + firsts[index]
            return scores[0][is_found], segments, uncoded

        found = list(map_in_threads(range(len(table.parts)), search))
        scores = np.concatenate([scores for scores, _, _ in found] or [np.empty(0, np.float32)])
        segments = np.concatenate([segments for _, segments, _ in found] or [np.empty(0, np.int64)])
        if len(scores) > num:
            segments = segments[np.argpartition(-scores, num - 1)[:num]]
        return np.unique(np.concatenate([segments, *(uncoded for _, _, uncoded in found)]))


@dataclass(eq=False)
class _Entry:
    newest: SegmentCodes | None = None
    thread: threading.Thread | None = None
    build_from: float = 0.0  # of time.monotonic, after a build that failed


class CodeCache:
    """Of the namespaces and encoders that are searched, the most recently used ones within ``max_bytes``. Thread-safe.

    A set of codes that alone is larger is not built: its searches stay exact.
    """

    def __init__(self, max_bytes: int, *, min_segments: int = MIN_SEGMENTS) -> None:
        self._max_bytes = max_bytes
        self._min_segments = min_segments
        self._lock = threading.Lock()
        self._entries: OrderedDict[tuple[str, str], _Entry] = OrderedDict()

    def get(
        self, key: tuple[str, str], table: KeptTable, read: Callable[[], KeptTable], probes: Probes
    ) -> SegmentCodes | None:
        """Codes of a namespace and encoder, if there are some that can be used for ``table``. Starts to build them if
        they are missing or too old, for the table that ``read`` gives then."""
        if table.num_segments < self._min_segments or code_bytes(table) > self._max_bytes:
            return None
        with self._lock:
            entry = self._entries.setdefault(key, _Entry())
            self._entries.move_to_end(key)
            may_build = entry.thread is None and time.monotonic() >= entry.build_from
            if may_build and is_stale(entry.newest, table):
                self._make_room(key, code_bytes(table))
                entry.thread = threading.Thread(
                    target=self._work, args=(key, entry, read, probes), name="kept-codes", daemon=True
                )
                entry.thread.start()
        newest = entry.newest
        if newest is None or not newest.recall.is_enough or newest.num_uncoded(table) > _MAX_COMPARED:
            return None
        return newest

    def stats(self, key: tuple[str, str]) -> Recall | None:
        entry = self._entries.get(key)
        return None if entry is None or entry.newest is None else entry.newest.recall

    def wait(self, key: tuple[str, str], timeout_seconds: float) -> bool:
        """Until no build is at work; False after the timeout."""
        entry = self._entries.get(key)
        thread = None if entry is None else entry.thread
        if thread is not None:
            thread.join(timeout_seconds)
        return entry is None or entry.thread is None

    def _make_room(self, key: tuple[str, str], num_bytes: int) -> None:
        others = [(name, entry) for name, entry in self._entries.items() if name != key]  # least recently used first
        total = num_bytes + sum(_bytes_of(entry) for _, entry in others)
        for name, entry in others:
            if total > self._max_bytes and entry.thread is None:
                total -= _bytes_of(entry)
                del self._entries[name]

    def _work(self, key: tuple[str, str], entry: _Entry, read: Callable[[], KeptTable], probes: Probes) -> None:
        try:
            while True:
                table = read()
                with self._lock:
                    if not is_stale(entry.newest, table) or code_bytes(table) > self._max_bytes:
                        entry.thread = None
                        return
                started = time.monotonic()
                entry.newest = build(entry.newest, table, probes)
                recall = entry.newest.recall
                _log.info(
                    "kept_codes_built",
                    namespace=key[0],
                    segments=recall.num_segments,
                    recall=round(recall.recall, 4),
                    candidates=recall.num_candidates,
                    seconds=round(time.monotonic() - started, 1),
                )
        except Exception:
            _log.exception("kept_codes_failed", namespace=key[0])  # searches go on without new codes
            with self._lock:
                entry.thread, entry.build_from = None, time.monotonic() + _RETRY_SECONDS


def is_stale(codes: SegmentCodes | None, table: KeptTable) -> bool:
    if codes is None:
        return bool(table.num_segments)
    return codes.num_uncoded(table) > MAX_UNCODED


def code_bytes(table: KeptTable) -> int:
    dim = table.parts[0].rows["vector"].shape[1] if table.parts else 0
    return sum(part.min_file_rows for part in table.parts) * (_padded(dim) // 4 + _ID_BYTES)


def build(old: SegmentCodes | None, table: KeptTable, probes: Probes) -> SegmentCodes:
    """Codes of all rows of the table's parts; extends those of ``old`` where possible."""
    set_faiss_threads(max(1, num_cpus() // 2))
    if old is not None and table.num_segments <= _MAX_GROWTH * old.num_trained:
        empty, num_trained, known = old.empty, old.num_trained, old.codes
    else:
        empty, num_trained, known = _train(table), table.num_segments, {}
    codes = {}
    for part in table.parts:
        found = known.get(part.part)
        if found is None or found.num < part.min_file_rows:
            found = (empty if found is None else found).copy()
            for start in range(found.num, part.min_file_rows, _ADD_ROWS):
                rows = part.rows["vector"][start : min(start + _ADD_ROWS, part.min_file_rows)]
                found.add(_as_float32(rows))
        codes[part.part] = found
    unmeasured = SegmentCodes(codes, empty, num_trained, Recall(table.num_segments, 1.0, CANDIDATE_COUNTS[-1]))
    return SegmentCodes(codes, empty, num_trained, _measure(unmeasured, table, probes))


def _train(table: KeptTable) -> FaissCodes:
    rng = np.random.default_rng(0)
    num = min(_MAX_TRAINING_ROWS, table.num_segments)
    chosen = np.sort(rng.choice(table.num_segments, num, replace=False))
    return FaissCodes.train(_as_float32(table.take(chosen).vectors), num_parts=1)


def _measure(codes: SegmentCodes, table: KeptTable, probes: Probes) -> Recall:
    rng = np.random.default_rng(1)
    num = min(_NUM_PROBES, table.num_segments)
    near = table.take(np.sort(rng.choice(table.num_segments, num, replace=False))).vectors.astype(np.float32)
    noise = rng.standard_normal(near.shape, dtype=np.float32)
    noise *= np.linalg.norm(near, axis=1, keepdims=True) / np.linalg.norm(noise, axis=1, keepdims=True)
    kinds = [near + noise, probes(_NUM_PROBES)]  # at a cosine of about 0.7, and labels
    recalls = [_recalls(codes, table, queries) for queries in kinds if len(queries)]
    worst = np.min(recalls, axis=0)
    enough = int(np.argmax(worst >= TARGET_RECALL)) if worst[-1] >= TARGET_RECALL else len(worst) - 1
    return Recall(table.num_segments, float(worst[enough]), CANDIDATE_COUNTS[enough])


def _recalls(codes: SegmentCodes, table: KeptTable, queries: NDArray[np.float32]) -> NDArray[np.float64]:
    """Mean shares of the exact best RECALL_AT segments among each of CANDIDATE_COUNTS candidates."""
    num_best = min(RECALL_AT, table.num_segments)
    found = np.zeros(len(CANDIDATE_COUNTS))
    for query in queries:  # one at a time: the products of many segments take much memory
        exact = all_products(table, Queries(query[None]))[0]
        best = np.argpartition(-exact, num_best - 1)[:num_best]
        found += [np.isin(best, codes.candidates(table, query, count)).mean() for count in CANDIDATE_COUNTS]
    return found / len(queries)


def _as_float32(rows: NDArray[np.float16]) -> NDArray[np.float32]:
    out = np.zeros((len(rows), _padded(rows.shape[1])), np.float32)
    out[:, : rows.shape[1]] = rows
    return out


def _padded(dim: int) -> int:
    return -(-dim // 16) * 16


def _bytes_of(entry: _Entry) -> int:
    return 0 if entry.newest is None else entry.newest.num_rows * (entry.newest.empty.dim // 4 + _ID_BYTES)
