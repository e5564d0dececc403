"""The exact comparison of one query with all kept segments, and what hits are made of."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from vidlex.service.retagging.products import Queries
from vidlex.service.retagging.scan import map_in_threads
from vidlex.service.videos.records import FeatureBlock, FeatureTable

_BLOCK_SEGMENTS = 16_384


def best_per_video(
    table: FeatureTable, query: Queries, check: Callable[[], None] = lambda: None
) -> NDArray[np.float32]:
    """The highest similarity of one query with a segment of each video: [num_videos]. ``check`` may raise."""
    best = np.full(table.num_videos, -np.inf, np.float32)

    def work(block: FeatureBlock) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        return best_of_block(block, query)

    for rows, similarity in map_in_threads(table.blocks(_BLOCK_SEGMENTS), work):
        check()
        best[rows] = np.maximum(best[rows], similarity)  # a video may be in two blocks
    return best


def best_of_block(block: FeatureBlock, query: Queries) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Rows of the block's videos, and the highest similarity of each."""
    if not len(block.video_rows):
        return np.empty(0, np.int64), np.empty(0, np.float32)
    firsts = np.concatenate([[0], np.flatnonzero(np.diff(block.video_rows)) + 1])
    similarity = query.products(block.vectors)[0]
    return block.video_rows[firsts], np.maximum.reduceat(similarity, firsts)


def all_products(table: FeatureTable, queries: Queries) -> NDArray[np.float32]:
    """[V, num_segments]"""
    parts = list(map_in_threads(table.blocks(_BLOCK_SEGMENTS), lambda block: queries.products(block.vectors)))
    return np.concatenate(parts, axis=1) if parts else np.empty((len(queries), 0), np.float32)


def best_rows(scores: NDArray[np.float32], num: int) -> NDArray[np.intp]:
    """Rows of the highest scores, best first, equal ones in order; without those of -inf."""
    rows = np.flatnonzero(scores > -np.inf)
    if num < len(rows):
        known = scores[rows]
        kth = np.partition(known, len(known) - num)[len(known) - num]
        rows = rows[known >= kth]
    return rows[np.argsort(-scores[rows], kind="stable")][:num]
