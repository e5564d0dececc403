"""Scores over time become stretches: against a plain implementation, and by hand. Matching in blocks of segments."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from vidlex.model.calibration.domain import DomainCalibration
from vidlex.model.calibration.statistics import DomainStatistics
from vidlex.model.dummy import DummyClassifier
from vidlex.service.classification.matching import (
    ClassifyOptions,
    LabelSimilarities,
    ScoredLabel,
    SimilaritiesInBlocks,
    VocabularyChanged,
    compare,
    match,
    rank,
)
from vidlex.service.classification.segments import Segment
from vidlex.service.classification.stretches import Stretch, Timeline, lower_bound
from vidlex.service.errors import InvalidParameter
from vidlex.service.labels.index.label_index import LabelIndex
from vidlex.service.labels.store.records import Label, NewLabel, make_label
from vidlex.service.models.applied_calibration import AppliedCalibration
from vidlex.service.models.served_model import ModelFacts

scores_with_ties = st.sampled_from([0.0, 0.2, 0.3, 0.35, 0.5, 0.7, 0.9, 1.0]) | st.floats(0, 1)


def plain(
    segments: Sequence[Segment], touches: Sequence[bool], scores: Sequence[float], threshold: float
) -> list[Stretch]:
    """Walk along the segments; a run of adjacent ones above the lower bound counts if one reaches the threshold."""
    low = lower_bound(threshold)
    runs: list[list[int]] = []
    for i, score in enumerate(scores):
        if score < low:
            continue
        if i and touches[i - 1] and runs and runs[-1][-1] == i - 1:
            runs[-1].append(i)
        else:
            runs.append([i])
    found = []
    for run in runs:
        best = max(run, key=lambda i: (scores[i], -i))
        if scores[best] >= threshold:
            peak = segments[best]
            middle = (peak.start_ms + peak.end_ms) // 2
            found.append(Stretch(segments[run[0]].start_ms, segments[run[-1]].end_ms, scores[best], middle))
    return found


@st.composite
def timelines(draw: st.DrawFn) -> tuple[list[Segment], list[bool], list[float]]:
    """Segments of any length, with gaps where blank ones were left out."""
    parts = draw(st.lists(st.tuples(st.sampled_from([0, 0, 0, 500]), st.integers(1, 5000)), min_size=1, max_size=40))
    time_ms, segments = 0, []
    for gap, length in parts:
        segments.append(Segment(time_ms + gap, time_ms + gap + length))
        time_ms += gap + length
    touches = [gap == 0 for gap, _ in parts[1:]]
    return segments, touches, draw(st.lists(scores_with_ties, min_size=len(parts), max_size=len(parts)))


@given(timelines(), st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]) | st.floats(0, 1))
def test_equals_a_plain_implementation(
    timeline: tuple[list[Segment], list[bool], list[float]], threshold: float
) -> None:
    segments, touches, scores = timeline
    found = Timeline.of(segments, ()).stretches(np.array(scores), threshold)
    assert list(found) == plain(segments, touches, scores, threshold)
    assert bool(found) == (max(scores) >= threshold)
    assert max((stretch.score for stretch in found), default=max(scores)) == max(scores)
    assert all(a.end_ms <= b.start_ms for a, b in pairwise(found))
    assert all(stretch.start_ms <= stretch.peak_ms <= stretch.end_ms for stretch in found)


@given(st.floats(0.0, 1.0))
def test_the_lower_bound_has_half_the_odds(threshold: float) -> None:
    low = lower_bound(threshold)
    assert 0 <= low <= threshold
    if 1e-9 < threshold < 1 - 1e-9:
        assert math.isclose(low / (1 - low), threshold / (1 - threshold) / 2, rel_tol=1e-6)


def test_hysteresis_keeps_a_wavering_label_in_one_piece() -> None:
    segments = [Segment(i * 1000, (i + 1) * 1000) for i in range(8)]
    scores = np.array([0.1, 0.4, 0.6, 0.45, 0.8, 0.34, 0.1, 0.45])
    (stretch,) = Timeline.of(segments, ()).stretches(scores, 0.5)
    assert stretch == Stretch(1000, 6000, 0.8, 4500)  # the last segment never reaches the threshold


def test_a_gap_divides() -> None:
    segments = [Segment(0, 1000), Segment(1000, 2000), Segment(3000, 4000)]
    found = Timeline.of(segments, ()).stretches(np.array([0.9, 0.8, 0.7]), 0.5)
    assert found == (Stretch(0, 2000, 0.9, 500), Stretch(3000, 4000, 0.7, 3500))


def test_single_frames_touch_unless_another_look_lies_between() -> None:
    points = [Segment(t, t) for t in (0, 1000, 2000, 4000)]
    timeline = Timeline.of(points, (0, 1000, 1000, 2000, 3000, 4000))  # the one at 3000 was blank
    assert timeline.stretches(np.array([0.9, 0.8, 0.7, 0.6]), 0.5) == (
        Stretch(0, 2000, 0.9, 0),
        Stretch(4000, 4000, 0.6, 4000),
    )


@pytest.mark.parametrize(("score", "num"), [(0.5, 1), (0.49, 0)])
def test_one_segment_is_one_stretch_if_it_matches(score: float, num: int) -> None:
    timeline = Timeline.of([Segment(500, 2500)], (700, 1200))
    assert timeline.stretches(np.array([score]), 0.5) == (Stretch(500, 2500, score, 1500),) * num


# --- matching in blocks

DIM = 16
NUM_LABELS, NUM_SEGMENTS = 300, 40
FACTS = ModelFacts.of(DummyClassifier())


def unit(num: int, seed: int) -> NDArray[np.float32]:
    vectors = np.random.default_rng(seed).normal(size=(num, DIM)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def label(number: int, revision: int = 1) -> Label:
    categories = ("even",) if number % 2 == 0 else ()
    cleaned = NewLabel(f"label {number:04}", categories=categories)
    return make_label(f"lbl_{number:06}", cleaned, created_at_ms=0, updated_at_ms=0, revision=revision)


@pytest.fixture
def vocabulary() -> Any:
    index = LabelIndex(DIM, FACTS.fingerprint)
    index.apply([label(i) for i in range(NUM_LABELS)], unit(NUM_LABELS, 1), revision=1)
    index.apply([], np.zeros((0, DIM), np.float32), [label(7).id], revision=2)  # a deleted slot
    return SimpleNamespace(index=index, facts=FACTS)


@pytest.fixture(scope="module")
def timeline() -> Timeline:
    return Timeline.of([Segment(1000 * i, 1000 * (i + 1)) for i in range(NUM_SEGMENTS)], ())


OPTIONS = [
    ClassifyOptions(),
    ClassifyOptions(top_k=0),
    ClassifyOptions(top_k=5, aggregate_by="segments"),
    ClassifyOptions(top_k=0, min_score=0.4, include_categories=["even"]),
    ClassifyOptions(exclude_categories=["even"]),
    ClassifyOptions(include_categories=["none"]),
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("is_calibrated", [False, True])
def test_blocks_do_not_change_a_bit(
    vocabulary: Any, timeline: Timeline, options: ClassifyOptions, is_calibrated: bool
) -> None:
    if is_calibrated:
        domain = DomainCalibration(DomainStatistics.of(unit(50, 3)))
        stored: Any = SimpleNamespace(fingerprint="x")
        vocabulary.index.calibrate(AppliedCalibration(domain, stored))
    features = unit(NUM_SEGMENTS, 2)
    whole = compare(features, options, vocabulary, max_held=None)
    expected = rank(whole, options, FACTS, timeline)
    for max_held in (1, 1000, 5000):
        blocks = compare(features, options, vocabulary, max_held=max_held)
        assert isinstance(blocks, SimilaritiesInBlocks) and isinstance(whole, LabelSimilarities)
        assert (blocks.best() == whole.best()).all()
        assert rank(blocks, options, FACTS, timeline) == expected
    assert (len(expected) > 0) == (options.include_categories != ["none"])


def test_a_vocabulary_that_changes_between_blocks_is_matched_again(vocabulary: Any, timeline: Timeline) -> None:
    """While it keeps changing, with one search."""
    features, options, index = unit(NUM_SEGMENTS, 2), ClassifyOptions(), vocabulary.index
    searches: list[int] = []

    class Changing:
        def __len__(self) -> int:
            return 10**7  # so that it is searched in blocks

        def search(self, features: NDArray[np.float32], **options: Any) -> Any:
            searches.append(len(features))
            index.apply([label(NUM_LABELS + len(searches))], unit(1, 9), revision=3 + len(searches))
            return index.search(features, **options)

    changing: Any = SimpleNamespace(index=Changing(), facts=FACTS)
    with pytest.raises(VocabularyChanged):
        compare(features, options, changing)
    searches.clear()
    similarities, labels = match(features, options, changing, timeline)
    assert searches == [1, NUM_SEGMENTS - 1] * 3 + [NUM_SEGMENTS]
    assert similarities.revision == 3 + len(searches)
    assert labels == rank(compare(features, options, vocabulary), options, FACTS, timeline)


def test_a_label_that_vanishes_after_the_search_is_noticed(vocabulary: Any) -> None:
    features = unit(NUM_SEGMENTS, 2)
    blocks = compare(features, ClassifyOptions(), vocabulary, max_held=1000)
    rows = [3, 100]
    similarity, _ = blocks.at(rows)
    assert similarity.shape == (NUM_SEGMENTS, 2)
    vocabulary.index.apply([], np.zeros((0, DIM), np.float32), [label(3).id], revision=3)
    with pytest.raises(VocabularyChanged):
        blocks.at(rows)


def test_many_stretches_are_refused(vocabulary: Any, timeline: Timeline, monkeypatch: pytest.MonkeyPatch) -> None:
    features, options = unit(NUM_SEGMENTS, 2), ClassifyOptions(top_k=0)
    found: list[ScoredLabel] = match(features, options, vocabulary, timeline)[1]
    num = sum(len(scored.stretches) for scored in found)
    assert num > 10
    monkeypatch.setattr("vidlex.service.classification.matching.MAX_SEGMENT_SCORES", num - 1)
    with pytest.raises(InvalidParameter, match="too long"):
        match(features, options, vocabulary, timeline)
