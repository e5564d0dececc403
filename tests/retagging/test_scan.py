"""A pass over kept features finds what classifying them one by one finds."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from support.kept_table import MemoryTable, random_features
from support.still_vocabulary import classified, vocabulary_of
from support.stores import label_id
from vidlex.service.labels.index.vector_slabs import Storage
from vidlex.service.retagging.products import Queries
from vidlex.service.retagging.scan import matches_of, scan, whole_videos
from vidlex.service.retagging.scored_labels import read_labels


@pytest.mark.parametrize("num_labels", [1, 24])
@pytest.mark.parametrize("dim", [3, 90, 512])
@pytest.mark.parametrize(("storage", "calibrated"), [("float32", False), ("float32", True), ("float16", True)])
def test_equals_classification(num_labels: int, dim: int, storage: Storage, calibrated: bool) -> None:
    vocabulary, vectors = vocabulary_of(num_labels, dim, storage=storage, calibrated=calibrated)
    table = MemoryTable.of(random_features(60, dim, near=vectors))
    ids = [label_id(i) for i in range(num_labels)]
    labels, unknown = read_labels(vocabulary, [*ids, label_id(10**6)])
    assert unknown == (label_id(10**6),)
    assert labels.revision == 7
    found = scan(table, labels)
    num_matched = 0
    expected = [classified(vocabulary, video, ids) for video in table.features]
    for label, matched in zip(labels.labels, found, strict=True):
        wanted = {row: scored[label.id] for row, scored in enumerate(expected) if scored[label.id].matched}
        assert matched.video_rows.tolist() == list(wanted)
        for i, scored in enumerate(wanted.values()):
            best = max(scored.stretches, key=lambda stretch: stretch.score)
            assert matched.scores[i] == np.float32(scored.score)  # bit for bit
            assert (matched.start_ms[i], matched.end_ms[i]) == (best.start_ms, best.end_ms)
        num_matched += len(wanted)
    assert 0 < num_matched < len(expected) * num_labels


@pytest.mark.parametrize("size", [1, 2, 5, 1000])
def test_a_video_is_in_one_block_however_the_table_is_cut(size: int) -> None:
    table = MemoryTable.of(random_features(40, 8, max_segments=12))
    blocks = list(whole_videos(table.blocks(size)))
    rows = np.concatenate([block.video_rows for block in blocks])
    assert np.array_equal(rows, np.repeat(np.arange(40), [len(video.segments) for video in table.features]))
    assert np.array_equal(
        np.concatenate([b.vectors for b in blocks]), np.concatenate([v.vectors for v in table.features])
    )
    for before, after in pairwise(blocks):
        assert before.video_rows[-1] < after.video_rows[0]


def test_min_score_takes_the_place_of_thresholds() -> None:
    vocabulary, vectors = vocabulary_of(6, 64)
    table = MemoryTable.of(random_features(30, 64, near=vectors))
    ids = [label_id(i) for i in range(6)]
    labels, _ = read_labels(vocabulary, ids, min_score=0.3)
    expected = [classified(vocabulary, video, ids) for video in table.features]
    for label, matched in zip(labels.labels, scan(table, labels), strict=True):
        assert matched.video_rows.tolist() == [r for r, scored in enumerate(expected) if scored[label.id].score >= 0.3]


def test_an_error_between_blocks_ends_the_scan() -> None:
    vocabulary, _ = vocabulary_of(1000, 64)
    table = MemoryTable.of(random_features(2000, 64))
    labels, _ = read_labels(vocabulary, [label_id(i) for i in range(1000)])
    done: list[int] = []

    def on_block(num_segments: int) -> None:
        done.append(num_segments)
        raise InterruptedError

    with pytest.raises(InterruptedError):
        scan(table, labels, on_block)
    assert len(done) == 1 and done[0] < table.num_segments


def test_an_empty_table_and_no_labels() -> None:
    vocabulary, _ = vocabulary_of(2, 64)
    labels, _ = read_labels(vocabulary, [label_id(0), label_id(1)])
    assert [len(found) for found in scan(MemoryTable.of([]), labels)] == [0, 0]
    none, _ = read_labels(vocabulary, [])
    assert scan(MemoryTable.of(random_features(3, 64)), none) == []
    assert matches_of(next(MemoryTable.of(random_features(3, 64)).blocks()), none, Queries(none.vectors)) == []
