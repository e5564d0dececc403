"""Large vocabularies: vectors in float16, and approximate search that finds what exact search finds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from support.stores import label_id, label_of
from vidlex.service.labels.index import approximate
from vidlex.service.labels.index.approximate import Approximation
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
    order = np.argsort(-matches.similarity[0])[:top_k]
    return [matches.labels[place].id for place in order]


# --- float16


@pytest.mark.parametrize("dim", [1, 17, 192, 512])
def test_float16_gives_the_bits_of_the_rounded_vectors_whatever_else_is_there(dim: int) -> None:
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
def test_float16_stays_within_its_bound(numbers: list[float], seed: int) -> None:
    vector = np.array([numbers], np.float32)
    video = unit(1, len(numbers), seed)
    index = LabelIndex(len(numbers), "f", storage="float16")
    index.upsert([label_of(1)], vector)
    exact = float(vector[0].astype(np.float64) @ video[0].astype(np.float64))
    bound = 2.0**-11 * np.linalg.norm(vector) + 2.0**-25 * len(numbers) ** 0.5
    assert abs(index.search(video).similarity[0, 0] - exact) <= bound + 1e-6


def test_float16_refuses_what_it_cannot_hold() -> None:
    index = LabelIndex(2, "f", storage="float16")
    with pytest.raises(ValueError, match="float16"):
        index.upsert([label_of(1)], np.array([[7e4, 0]], np.float32))
    assert len(index) == 0


# --- approximate search


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Codes for a vocabulary that a test can afford."""
    for name, value in {"MIN_LABELS": 1000, "MAX_TAIL": 200, "_CANDIDATES": (100, 200, 500)}.items():
        monkeypatch.setattr(approximate, name, value)


@pytest.fixture
def index(small: None) -> LabelIndex:
    made = filled(LabelIndex(DIM, "f", approximation=Approximation()), 9000)
    settle(made)
    assert made.approximate is not None and not made.approximate.exact
    assert made.approximate.num_labels == 9000 and made.approximate.recall >= approximate.TARGET_RECALL
    return made


def settle(index: LabelIndex) -> None:
    assert index._approximation is not None and index._approximation.wait(60)


def test_the_best_labels_are_found_with_the_digits_of_an_exact_search(index: LabelIndex) -> None:
    shared = 0
    for seed in range(1, 21):
        video = unit(1, seed=seed)
        exact, likely = index.search(video), index.search(video, top_k=20)
        assert likely.approximate and not exact.approximate
        assert len(likely.labels) < len(exact.labels) == 9000
        shared += len({*best(exact, 20)} & {*best(likely, 20)})
        truth = {label.id: value for label, value in zip(exact.labels, exact.similarity[0].tolist(), strict=True)}
        for label, value in zip(likely.labels, likely.similarity[0].tolist(), strict=True):
            assert truth[label.id] == value
    assert shared >= 0.97 * 20 * 20


def test_whoever_wants_all_or_filters_to_few_gets_an_exact_search(index: LabelIndex) -> None:
    video = unit(1, seed=3)
    assert not index.search(video, top_k=0).approximate
    assert not index.search(video, top_k=approximate.MAX_TOP_K + 1).approximate
    few = index.search(video, top_k=5, label_ids=[label_id(i) for i in range(300)])
    assert not few.approximate and len(few.labels) == 300


def test_filters_work_inside_the_scan(index: LabelIndex) -> None:
    video = unit(1, seed=4)
    likely = index.search(video, top_k=50, include_categories=["EVEN"])
    exact = index.search(video, include_categories=["even"])
    assert likely.approximate and all(label.categories == ("even",) for label in likely.labels)
    assert len({*best(likely, 50)} & {*best(exact, 50)}) >= 48
    ids = [label_id(i) for i in range(6000)]
    some = index.search(video, top_k=50, label_ids=ids, exclude_categories=["odd"])
    assert some.approximate and all(label.id < label_id(6000) for label in some.labels)


def test_changes_count_at_once_and_get_codes_later(index: LabelIndex) -> None:
    video = unit(1, seed=5)
    index.upsert([label_of(20_000)], video)
    assert best(index.search(video, top_k=5), 1) == [label_id(20_000)]
    index.remove([label_id(20_000)])
    assert label_id(20_000) not in best(index.search(video, top_k=50), 50)
    first, second = best(index.search(video), 2)
    index.remove([first])
    assert best(index.search(video, top_k=5), 1) == [second]
    codes = index._approximation.codes if index._approximation else None
    assert codes is not None and codes.num == 9000  # nobody made them anew for that
    index.upsert([label_of(30_000 + i) for i in range(300)], unit(300, seed=6))
    settle(index)
    after = index._approximation.codes if index._approximation else None
    assert after is not None and after.num == 9301 and after.num_trained == codes.num_trained
    index.upsert([label_of(second_number := int(second.removeprefix("lbl_")))], -video)
    assert label_id(second_number) not in best(index.search(video, top_k=50), 50)
    assert index.search(video, top_k=50).approximate


def test_several_videos_share_a_search(index: LabelIndex) -> None:
    videos = unit(3, seed=7)
    likely, exact = index.search(videos, top_k=10), index.search(videos)
    assert likely.approximate and likely.similarity.shape[0] == 3
    highest = {exact.labels[i].id for i in np.argsort(-exact.similarity.max(axis=0))[:10]}
    assert len(highest & {likely.labels[i].id for i in np.argsort(-likely.similarity.max(axis=0))[:10]}) >= 9


def test_codes_that_find_too_little_are_not_used(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(approximate, "_CANDIDATES", (51,))  # hardly more than what is to be found
    index = filled(LabelIndex(DIM, "f", approximation=Approximation()), 9000)
    settle(index)
    assert index.approximate is not None and index.approximate.exact
    assert index.approximate.recall < approximate.TARGET_RECALL
    assert not index.search(unit(1, seed=8), top_k=5).approximate


def test_a_new_content_is_searched_exactly_until_it_has_codes(index: LabelIndex) -> None:
    index.replace([([label_of(i) for i in range(500)], unit(500, seed=9))], revision=2)
    matches = index.search(unit(1), top_k=5)
    assert not matches.approximate and len(matches.labels) == 500
