"""One pass over kept features: which videos match which labels, and the best stretch of each.

Blocks are compared on several cores, in the arithmetic of ``POST /classify`` (see products.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from vidlex.service.classification.stretches import lower_bound
from vidlex.service.machine.cpus import num_cpus
from vidlex.service.retagging.products import Queries
from vidlex.service.retagging.scored_labels import ScoredLabels
from vidlex.service.videos.records import FeatureBlock, FeatureTable

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

MAX_THREADS = 4  # memory bandwidth limits the gain from more
_BLOCK_PRODUCTS = 2**22  # of a block, 16 MiB of float32 in each thread
_MAX_BLOCK, _MIN_BLOCK = 65_536, 4096  # segments


@dataclass(frozen=True, eq=False)
class Matched:
    """The k videos that a label matches, in the order of the table, with the stretch of the highest score."""

    video_rows: NDArray[np.int64]
    scores: NDArray[np.float32]
    start_ms: NDArray[np.int64]
    end_ms: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.video_rows)

    @classmethod
    def joined(cls, parts: Sequence[Matched]) -> Matched:
        return cls(
            np.concatenate([part.video_rows for part in parts] or [np.empty(0, np.int64)]),
            np.concatenate([part.scores for part in parts] or [np.empty(0, np.float32)]),
            np.concatenate([part.start_ms for part in parts] or [np.empty(0, np.int64)]),
            np.concatenate([part.end_ms for part in parts] or [np.empty(0, np.int64)]),
        )


class TooManyMatches(Exception):
    """Of several labels at once: compare with fewer."""


def scan(
    table: FeatureTable,
    labels: ScoredLabels,
    on_block: Callable[[int], None] = lambda num_segments: None,
    *,
    max_held: int = 2**22,
) -> list[Matched]:
    """Of each label. ``on_block`` is called with the number of segments of each block that is done; it may raise.

    Raises TooManyMatches if several labels have more than ``max_held`` matches, of which each takes 28 bytes.
    """
    queries = Queries(labels.vectors)
    found: list[list[Matched]] = [[] for _ in range(len(labels))]
    num_held = 0

    def work(block: FeatureBlock) -> tuple[int, list[Matched | None]]:
        return len(block.video_rows), matches_of(block, labels, queries)

    for num_segments, parts in map_in_threads(whole_videos(table.blocks(block_size(len(labels)))), work):
        for row, part in enumerate(parts):
            if part is not None:
                found[row].append(part)
                num_held += len(part)
        if num_held > max_held and len(labels) > 1:
            raise TooManyMatches
        on_block(num_segments)
    return [Matched.joined(parts) for parts in found]


def block_size(num_labels: int) -> int:
    return max(_MIN_BLOCK, min(_MAX_BLOCK, _BLOCK_PRODUCTS // max(1, num_labels)))


def map_in_threads(items: Iterable[ItemT], work: Callable[[ItemT], ResultT]) -> Iterator[ResultT]:
    """Results in the order of the items. What has begun is waited for before an error is raised."""
    num_threads = max(1, min(MAX_THREADS, num_cpus()))
    pending: deque[Future[ResultT]] = deque()
    with ThreadPoolExecutor(num_threads, thread_name_prefix="kept-scan") as threads:
        try:
            for item in items:
                pending.append(threads.submit(work, item))
                if len(pending) > num_threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def whole_videos(blocks: Iterable[FeatureBlock]) -> Iterator[FeatureBlock]:
    """The same segments in blocks that end with the last segment of a video."""
    held: list[FeatureBlock] = []  # the beginning of a video
    for block in blocks:
        rows = block.video_rows
        if not len(rows):
            continue
        num_same = 0
        if held:
            num_same = int(np.searchsorted(rows, held[0].video_rows[0], side="right"))
            if num_same:
                held.append(_part(block, 0, num_same))
            if num_same == len(rows):
                continue
            yield _joined(held)
        last = int(np.searchsorted(rows, rows[-1], side="left"))
        if last > num_same:
            yield _part(block, num_same, last)
        held = [_part(block, last, len(rows))]
    if held:
        yield _joined(held)


def matches_of(block: FeatureBlock, labels: ScoredLabels, queries: Queries) -> list[Matched | None]:
    """Of a block of whole videos, for each label."""
    videos = _Videos.of(block)
    products = queries.products(block.vectors)
    found: list[Matched | None] = []
    for row in range(len(labels)):
        adjusted = labels.adjusted(row, products[row])
        chosen = np.flatnonzero(np.maximum.reduceat(adjusted, videos.firsts) >= labels.bounds[row])
        if not len(chosen):
            found.append(None)
            continue
        segments = videos.segments_of(chosen)
        part = FeatureBlock(
            block.vectors[:0], block.video_rows[segments], block.start_ms[segments], block.end_ms[segments]
        )
        scores = labels.probability(adjusted[segments])
        found.append(_best_stretches(part, scores, float(labels.thresholds[row])))
    return found


@dataclass(frozen=True, eq=False)
class _Videos:
    """Where the k videos of a block begin, and their numbers of segments."""

    firsts: NDArray[np.int64]
    lengths: NDArray[np.int64]

    @classmethod
    def of(cls, block: FeatureBlock) -> _Videos:
        rows = block.video_rows
        firsts = np.concatenate([[0], np.flatnonzero(np.diff(rows)) + 1]).astype(np.int64)
        return cls(firsts, np.diff(np.append(firsts, len(rows))))

    def segments_of(self, chosen: NDArray[np.intp]) -> NDArray[np.int64]:
        """Of some videos, one after the other."""
        lengths = self.lengths[chosen]
        offsets = np.cumsum(lengths) - lengths
        shifts: NDArray[np.int64] = np.repeat(self.firsts[chosen] - offsets, lengths)
        return shifts + np.arange(len(shifts))


def _best_stretches(block: FeatureBlock, scores: NDArray[np.float64], threshold: float) -> Matched:
    """As ``Timeline.stretches`` for each of the block's videos that matches; of its stretches the first best one."""
    videos = _Videos.of(block)
    num = len(videos.firsts)
    best = np.maximum.reduceat(scores, videos.firsts)
    video_of = np.repeat(np.arange(num), videos.lengths)
    at_best = np.flatnonzero(scores == best[video_of])
    peaks = at_best[np.searchsorted(video_of[at_best], np.arange(num))]
    holds = scores >= lower_bound(threshold)
    joins = np.zeros(len(scores), np.bool_)  # whether a segment continues the one before
    joins[1:] = holds[1:] & holds[:-1] & (video_of[1:] == video_of[:-1]) & (block.start_ms[1:] <= block.end_ms[:-1])
    run_of = np.cumsum(~joins) - 1
    run_firsts = np.flatnonzero(~joins)
    run_lasts = np.append(run_firsts[1:], len(scores)) - 1
    matched = np.flatnonzero(best >= threshold)
    runs = run_of[peaks[matched]]
    return Matched(
        block.video_rows[videos.firsts[matched]],
        best[matched].astype(np.float32),
        block.start_ms[run_firsts[runs]].astype(np.int64),
        block.end_ms[run_lasts[runs]].astype(np.int64),
    )


def _part(block: FeatureBlock, start: int, stop: int) -> FeatureBlock:
    part = slice(start, stop)
    return FeatureBlock(block.vectors[part], block.video_rows[part], block.start_ms[part], block.end_ms[part])


def _joined(blocks: Sequence[FeatureBlock]) -> FeatureBlock:
    if len(blocks) == 1:
        return blocks[0]
    return FeatureBlock(
        np.concatenate([block.vectors for block in blocks]),
        np.concatenate([block.video_rows for block in blocks]),
        np.concatenate([block.start_ms for block in blocks]),
        np.concatenate([block.end_ms for block in blocks]),
    )
