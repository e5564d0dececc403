"""The label index: exact similarities, filters, isolation of readers from writers."""

from __future__ import annotations

import itertools
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from support.processes import PATIENCE_SECONDS
from support.stores import DIM, FINGERPRINT, label_id, label_of, vector_of
from vidlex.service.labels.index.index_sync import IndexSync
from vidlex.service.labels.index.label_index import IndexMismatch, LabelIndex, Matches
from vidlex.service.labels.index.vector_slabs import SLAB_ROWS
from vidlex.service.labels.store.label_store import LabelStore
from vidlex.service.labels.store.records import NewLabel


def random_vectors(num: int, dim: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((num, dim)).astype(np.float32)


def ids_of(matches: Matches) -> list[str]:
    return [label.id for label in matches.labels]


def remove(index: LabelIndex, *label_ids: str) -> None:
    index.apply((), np.empty((0, index.dim), np.float32), label_ids)


def filled(numbers: list[int], dim: int = 3) -> LabelIndex:
    """Label i has categories by the parity of i and by i % 3, and the random vector of seed i."""
    index = LabelIndex(dim, "f")
    labels = [label_of(i, ("even" if i % 2 == 0 else "odd", f"mod {i % 3}")) for i in numbers]
    vectors = np.stack([random_vectors(1, dim, seed=i)[0] for i in numbers])
    index.apply(labels, vectors)
    return index


@pytest.mark.parametrize("dim", [1, 3, 16, 17, 31, 64, 100, 192, 511, 512, 768, 1152])
def test_similarity_does_not_depend_on_other_labels_or_videos(dim: int) -> None:
    vectors = random_vectors(2748, dim)
    videos = random_vectors(8, dim, seed=1)
    number = 4
    alone = LabelIndex(dim, "f")
    alone.apply([label_of(number)], vectors[number : number + 1])
    expected = np.stack([alone.search(videos[b : b + 1]).similarity[0, 0] for b in range(8)])
    for count in (7, 500, 501, 1025, len(vectors)):
        index = LabelIndex(dim, "f")
        index.apply([label_of(i) for i in range(count)], vectors[:count])
        for matches in (
            index.search(videos),
            index.search(videos, label_ids=[label_id(number)]),
            index.search(videos, label_ids=[label_id(i) for i in range(1, 7)]),
        ):
            column = ids_of(matches).index(label_id(number))
            assert matches.similarity[:, column].tobytes() == expected.tobytes()
        one_by_one = np.concatenate([index.search(videos[b : b + 1]).similarity for b in range(8)])
        assert one_by_one.tobytes() == index.search(videos).similarity.tobytes()
        # From a slice with unaligned memory.
        shifted = np.zeros(8 * dim + 1, np.float32)[1:].reshape(8, dim)
        shifted[:] = videos
        assert index.search(shifted).similarity.tobytes() == one_by_one.tobytes()
    np.testing.assert_allclose(expected, videos @ vectors[number], rtol=1e-4, atol=1e-4 * np.sqrt(dim))


def test_adding_a_label_changes_no_digit_of_other_similarities() -> None:
    vectors, videos = random_vectors(501, 192), random_vectors(3, 192, seed=9)
    index = LabelIndex(192, "f")
    index.apply([label_of(i) for i in range(500)], vectors[:500])
    before = index.search(videos).similarity.copy()
    index.apply([label_of(500)], vectors[500:])
    after = index.search(videos)
    assert after.similarity.shape == (3, 501)
    assert after.similarity[:, :500].tobytes() == before.tobytes()


def test_similarities_agree_with_float64() -> None:
    vectors, videos = random_vectors(3000, 192), random_vectors(4, 192, seed=2)
    index = LabelIndex(192, "f")
    index.apply([label_of(i) for i in range(3000)], vectors)
    exact = videos.astype(np.float64) @ vectors.T.astype(np.float64)
    np.testing.assert_allclose(index.search(videos).similarity, exact, atol=2e-5)


@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 60), max_size=25), st.lists(st.integers(0, 60), max_size=25)), max_size=12
    )
)
@settings(max_examples=60, deadline=None)
def test_any_sequence_of_changes_agrees_with_a_dictionary(steps: list[tuple[list[int], list[int]]]) -> None:
    index = LabelIndex(2, "f")
    model: dict[str, float] = {}
    stamps = itertools.count()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vidlex.service.labels.index.vector_slabs.SLAB_ROWS", 4)
        patch.setattr("vidlex.service.labels.index.label_index._MIN_DELETED", 5)  # compact often
        for upserted, removed in steps:
            added = list(dict.fromkeys(upserted))
            values = [float(next(stamps)) for _ in added]
            vectors = np.array([[value, 1.0] for value in values], np.float32).reshape(-1, 2)
            removals = [label_id(i) for i in removed if i not in added]
            index.apply([label_of(i) for i in added], vectors, removals)
            model.update(zip(map(label_id, added), values, strict=True))
            for i in removals:
                model.pop(i, None)
            matches = index.search(np.array([[1.0, 0.0]], np.float32))
            assert dict(zip(ids_of(matches), matches.similarity[0].tolist(), strict=True)) == model
            assert sorted(ids_of(matches)) == sorted(model)
            assert len(index) == len(model)


@given(
    st.none() | st.lists(st.integers(0, 45)),
    st.none() | st.lists(st.sampled_from(["even", "ODD", "mod 0", "nothing"])),
    st.none() | st.lists(st.sampled_from(["even", "odd", "Mod 1", "nothing"])),
)
@settings(max_examples=100, deadline=None)
def test_filters_agree_with_a_list_comprehension(
    numbers: list[int] | None, include: list[str] | None, exclude: list[str] | None
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vidlex.service.labels.index.vector_slabs.SLAB_ROWS", 8)
        index = filled(list(range(40)))
        video = random_vectors(2, 3, seed=7)
        everything = index.search(video)
        matches = index.search(
            video,
            label_ids=None if numbers is None else [label_id(i) for i in numbers],
            include_categories=include,
            exclude_categories=exclude,
        )
    expected = []
    for column, label in enumerate(everything.labels):
        wanted = numbers is None or label.id in {label_id(i) for i in numbers}
        wanted &= include is None or bool({c.casefold() for c in include} & set(label.categories))
        wanted &= not {c.casefold() for c in exclude or ()} & set(label.categories)
        if wanted:
            expected.append((label.id, everything.similarity[:, column].tolist()))
    assert [(label.id, matches.similarity[:, c].tolist()) for c, label in enumerate(matches.labels)] == expected
    assert set(matches.unknown_ids) == {label_id(i) for i in numbers or () if i >= 40}
    assert matches.similarity.shape == (2, len(expected))


def test_empty_index_and_empty_query() -> None:
    index = LabelIndex(3, "f")
    assert index.search(random_vectors(2, 3)).similarity.shape == (2, 0)
    matches = index.search(random_vectors(1, 3), label_ids=[label_id(1)])
    assert matches.unknown_ids == (label_id(1),) and list(matches.labels) == []
    assert filled([1, 2]).search(random_vectors(0, 3)).similarity.shape == (0, 2)


def test_invalid_vectors_are_rejected() -> None:
    index = filled([1])
    good = random_vectors(1, 3)
    with pytest.raises(IndexMismatch, match="encoder g"):
        index.apply([label_of(2)], good, fingerprint="g")
    with pytest.raises(IndexMismatch, match="encoder g"):
        index.search(good, fingerprint="g")
    with pytest.raises(IndexMismatch, match=r"\[n, 3\]"):
        index.apply([label_of(2)], random_vectors(1, 4))
    with pytest.raises(IndexMismatch, match=r"\[n, 3\]"):
        index.search(random_vectors(1, 2))
    with pytest.raises(ValueError, match="finite"):
        index.apply([label_of(2)], np.array([[1, 2, np.nan]], np.float32))
    with pytest.raises(ValueError, match="finite"):
        index.search(np.array([[np.inf, 0, 0]], np.float32))
    with pytest.raises(ValueError, match="float32"):
        index.search(good.astype(np.float64))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="1 labels for 2"):
        index.apply([label_of(2)], random_vectors(2, 3))
    assert len(index) == 1


def test_results_and_arguments_are_not_aliased() -> None:
    index = filled(list(range(10)))
    vector = random_vectors(1, 3)
    index.apply([label_of(50)], vector)
    before = index.search(vector)
    ids, similarity = ids_of(before), before.similarity.copy()
    vector[:] = 0
    index.apply([label_of(3, name="other"), label_of(60)], random_vectors(2, 3, seed=99))
    remove(index, label_id(1), label_id(5))
    assert ids_of(before) == ids
    assert before.similarity.tobytes() == similarity.tobytes()
    assert (
        index.search(random_vectors(1, 3)).similarity[0, ids_of(index.search(vector)).index(label_id(50))]
        == similarity[0, 10]
    )


def test_replace_is_atomic_for_readers() -> None:
    index = filled([1, 2, 3])
    video = random_vectors(1, 3)
    seen = []

    def batches() -> object:
        yield [label_of(10)], random_vectors(1, 3)
        seen.append(ids_of(index.search(video)))
        yield [label_of(11), label_of(12)], random_vectors(2, 3)

    index.replace(batches(), revision=7)  # type: ignore[arg-type]
    assert seen == [[label_id(1), label_id(2), label_id(3)]]
    assert ids_of(index.search(video)) == [label_id(10), label_id(11), label_id(12)]
    assert index.revision == index.search(video).revision == 7
    with pytest.raises(ValueError, match="ascend"):
        index.replace([([label_of(2), label_of(1)], random_vectors(2, 3))], revision=8)
    assert index.revision == 7 and len(index) == 3


def test_concurrent_readers_see_complete_changes() -> None:
    """A writer changes a pair of labels together until enough searches ran concurrently."""
    index = LabelIndex(2, "f")
    background = list(range(100, 100 + 3072))
    index.apply([label_of(i) for i in background], np.zeros((len(background), 2), np.float32))
    pair = [label_of(1), label_of(100_000)]
    enough, stop = threading.Event(), threading.Event()
    failures: list[object] = []

    def read() -> None:
        num_searches = 0
        while not stop.is_set():
            matches = index.search(np.array([[1.0, 0.0]], np.float32), label_ids=[label.id for label in pair])
            values = matches.similarity[0].tolist()
            if len(values) not in (0, 2) or len(set(values)) > 1:
                failures.append(values)
            num_searches += 1
            if num_searches >= 50:
                enough.set()

    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(read)
        give_up = time.monotonic() + PATIENCE_SECONDS
        try:
            for number in itertools.count():
                if number >= 300 and (enough.is_set() or reader.done() or time.monotonic() > give_up):
                    break
                if number % 3 == 2:
                    remove(index, *(label.id for label in pair))
                else:
                    index.apply(pair, np.full((2, 2), number, np.float32))
        finally:
            stop.set()
        reader.result(60)
    assert enough.is_set(), f"fewer than 50 searches during {number} writes"
    assert not failures


def test_adding_and_removing_does_not_move_other_vectors() -> None:
    """The speed itself is measured by `vidlex bench match`."""
    dim = 192
    index = LabelIndex(dim, "f")
    vectors = random_vectors(100_000, dim)
    labels = [label_of(i) for i in range(100_000)]
    index.replace([(labels, vectors)], revision=1)
    slabs = index._snapshot.slabs
    before = list(slabs._slabs)
    for i in range(20):
        index.apply([label_of(200_000 + i)], vectors[:1])
        remove(index, label_id(i * 4999))
    assert len(index) == 100_000
    assert index._snapshot.slabs is slabs and slabs.num == 100_020
    assert all(now is then for now, then in zip(slabs._slabs, before, strict=True))


def test_metadata_takes_no_memory_in_the_index(client: redis.Redis) -> None:
    """16 KB of nested lists are half a megabyte of Python objects, in each replica and for each model."""
    store = LabelStore(client)
    metadata = {"x": [[[]]] * 3000}  # 15 KB of JSON
    items = [(NewLabel(f"label {i}", metadata=metadata), vector_of(f"label {i}")) for i in range(300)]
    assert not any(isinstance(result, Exception) for result in store.add_many(items, FINGERPRINT))
    index = LabelIndex(DIM, FINGERPRINT)
    sync = IndexSync(store, index)
    tracemalloc.start()
    sync.load()
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(index) == 300
    slab_bytes = SLAB_ROWS * 64  # committed as it fills
    assert kept < slab_bytes + 300 * 2000
    assert peak < slab_bytes + 300 * 40_000  # the raw records, and one of them read
