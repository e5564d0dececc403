"""Large vocabularies: vectors in float16, and approximate search compared with exact search."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from support.stores import label_id, label_of
from vidlex.service.labels.index import approximate
from vidlex.service.labels.index.approximate import ApproximateIndexBuilder
from vidlex.service.labels.index.label_index import LabelIndex, Matches

DIM = 48


def unit(num: int, dim: int = DIM, seed: int = 0) -> NDArray[np.float32]:
    vectors = np.random.default_rng(seed).standard_normal((num, dim), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def filled(index: LabelIndex, num: int) -> LabelIndex:
    labels = [label_of(i, ("even",) if i % 2 == 0 else ("odd",)) for i in range(num)]
    index.replace([(labels, unit(num, index.dim))], revision=1)
    return index


def best(matches: Matches, top_k: int) -> list[str]:
    return [matches.labels[i].id for i in np.argsort(-matches.similarity[0])[:top_k]]


def remove(index: LabelIndex, *label_ids: str) -> None:
    index.apply((), np.empty((0, DIM), np.float32), label_ids)


# --- float16


@pytest.mark.parametrize("dim", [1, 17, 192, 512])
def test_float16_similarities_equal_those_of_the_rounded_vectors_bit_for_bit(dim: int) -> None:
    num = 3000
    index = filled(LabelIndex(dim, "f", storage="float16"), num)
    videos = unit(3, dim, seed=1)
    rounded = filled(LabelIndex(dim, "f"), num)
    rounded.replace(
        [([label_of(i) for i in range(num)], unit(num, dim).astype(np.float16).astype(np.float32))], revision=1
    )
    expected = rounded.search(videos).similarity
    assert index.search(videos).similarity.tobytes() == expected.tobytes()
    for ids in ([label_id(7)], [label_id(i) for i in range(0, num, 9)], [label_id(i) for i in range(5, 2500)]):
        matches = index.search(videos, label_ids=ids)
        columns = [int(label.id.removeprefix("lbl_")) for label in matches.labels]
        assert matches.similarity.tobytes() == np.ascontiguousarray(expected[:, columns]).tobytes()


@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=40), st.integers(0, 99))
@settings(max_examples=200, deadline=None)
def test_float16_error_is_within_its_bound(numbers: list[float], seed: int) -> None:
    vector = np.array([numbers], np.float32)
    video = unit(1, len(numbers), seed)
    index = LabelIndex(len(numbers), "f", storage="float16")
    index.apply([label_of(1)], vector)
    exact = float(vector[0].astype(np.float64) @ video[0].astype(np.float64))
    bound = 2.0**-11 * np.linalg.norm(vector) + 2.0**-25 * len(numbers) ** 0.5
    assert abs(index.search(video).similarity[0, 0] - exact) <= bound + 1e-6


def test_float16_rejects_vectors_out_of_its_range() -> None:
    index = LabelIndex(2, "f", storage="float16")
    with pytest.raises(ValueError, match="float16"):
        index.apply([label_of(1)], np.array([[7e4, 0]], np.float32))
    assert len(index) == 0


# --- approximate search


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lower the limits, so that a small vocabulary is searched approximately."""
    for name, value in {"MIN_LABELS": 1000, "MAX_UNCODED_LABELS": 200, "_CANDIDATE_COUNTS": (100, 200, 500)}.items():
        monkeypatch.setattr(approximate, name, value)


@pytest.fixture
def index(small: None) -> LabelIndex:
    made = filled(LabelIndex(DIM, "f", approximate_builder=ApproximateIndexBuilder()), 9000)
    settle(made)
    stats = made.recall_stats
    assert stats is not None and not stats.is_exact
    assert stats.num_labels == 9000 and stats.recall >= approximate.TARGET_RECALL
    return made


def builder_of(index: LabelIndex) -> ApproximateIndexBuilder:
    assert index._approximate_builder is not None
    return index._approximate_builder


def settle(index: LabelIndex) -> None:
    assert builder_of(index).wait(60)


def test_candidates_have_the_similarities_of_an_exact_search(index: LabelIndex) -> None:
    shared = 0
    for seed in range(1, 21):
        video = unit(1, seed=seed)
        exact, candidates = index.search(video), index.search(video, top_k=20)
        assert candidates.is_approximate and not exact.is_approximate
        assert len(candidates.labels) < len(exact.labels) == 9000
        shared += len({*best(exact, 20)} & {*best(candidates, 20)})
        truth = {label.id: value for label, value in zip(exact.labels, exact.similarity[0].tolist(), strict=True)}
        for label, value in zip(candidates.labels, candidates.similarity[0].tolist(), strict=True):
            assert truth[label.id] == value
    assert shared >= 0.97 * 20 * 20


def test_large_top_k_and_few_labels_are_searched_exactly(index: LabelIndex) -> None:
    video = unit(1, seed=3)
    assert not index.search(video, top_k=0).is_approximate
    assert not index.search(video, top_k=approximate.MAX_TOP_K + 1).is_approximate
    few = index.search(video, top_k=5, label_ids=[label_id(i) for i in range(300)])
    assert not few.is_approximate and len(few.labels) == 300


def test_filters_apply_within_the_scan(index: LabelIndex) -> None:
    video = unit(1, seed=4)
    candidates = index.search(video, top_k=50, include_categories=["EVEN"])
    exact = index.search(video, include_categories=["even"])
    assert candidates.is_approximate and all(label.categories == ("even",) for label in candidates.labels)
    assert len({*best(candidates, 50)} & {*best(exact, 50)}) >= 48
    ids = [label_id(i) for i in range(6000)]
    some = index.search(video, top_k=50, label_ids=ids, exclude_categories=["odd"])
    assert some.is_approximate and all(label.id < label_id(6000) for label in some.labels)


def test_changes_are_visible_before_they_have_codes(index: LabelIndex) -> None:
    video = unit(1, seed=5)
    index.apply([label_of(20_000)], video)
    assert best(index.search(video, top_k=5), 1) == [label_id(20_000)]
    remove(index, label_id(20_000))
    assert label_id(20_000) not in best(index.search(video, top_k=50), 50)
    first, second = best(index.search(video), 2)
    remove(index, first)
    assert best(index.search(video, top_k=5), 1) == [second]
    before = builder_of(index).newest
    assert before is not None and before.num == 9000  # too few changes for a new build
    index.apply([label_of(30_000 + i) for i in range(300)], unit(300, seed=6))
    settle(index)
    after = builder_of(index).newest
    assert after is not None and after.num == 9301 and after.num_trained == before.num_trained
    index.apply([label_of(second_number := int(second.removeprefix("lbl_")))], -video)
    assert label_id(second_number) not in best(index.search(video, top_k=50), 50)
    assert index.search(video, top_k=50).is_approximate


def test_several_videos_in_one_search(index: LabelIndex) -> None:
    videos = unit(3, seed=7)
    candidates, exact = index.search(videos, top_k=10), index.search(videos)
    assert candidates.is_approximate and candidates.similarity.shape[0] == 3
    highest = {exact.labels[i].id for i in np.argsort(-exact.similarity.max(axis=0))[:10]}
    assert len(highest & {candidates.labels[i].id for i in np.argsort(-candidates.similarity.max(axis=0))[:10]}) >= 9


def test_codes_with_low_recall_are_not_used(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(approximate, "_CANDIDATE_COUNTS", (51,))
    index = filled(LabelIndex(DIM, "f", approximate_builder=ApproximateIndexBuilder()), 9000)
    settle(index)
    assert index.recall_stats is not None and index.recall_stats.is_exact
    assert index.recall_stats.recall < approximate.TARGET_RECALL
    assert not index.search(unit(1, seed=8), top_k=5).is_approximate


def test_replaced_content_is_searched_exactly_until_it_has_codes(index: LabelIndex) -> None:
    index.replace([([label_of(i) for i in range(500)], unit(500, seed=9))], revision=2)
    matches = index.search(unit(1), top_k=5)
    assert not matches.is_approximate and len(matches.labels) == 500
