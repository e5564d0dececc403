"""FaissCodes in several parts: slot numbers, filters, copies."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vidlex.service.labels.index.faiss_codes import FaissCodes

DIM = 32


def unit(num: int, seed: int = 0) -> NDArray[np.float32]:
    vectors = np.random.default_rng(seed).standard_normal((num, DIM), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


VECTORS = unit(600)


def build(num_parts: int, sizes: list[int]) -> FaissCodes:
    codes = FaissCodes.train(VECTORS, num_parts)
    for end, size in zip(np.cumsum(sizes).tolist(), sizes, strict=True):
        codes.add(VECTORS[end - size : end])
    return codes


@given(st.integers(1, 4), st.lists(st.integers(0, 150), min_size=1, max_size=4), st.integers(0, 99))
@settings(max_examples=40)
def test_every_vector_is_found_at_its_slot(num_parts: int, sizes: list[int], seed: int) -> None:
    codes = build(num_parts, sizes)
    assert codes.num == sum(sizes)
    for slot in np.random.default_rng(seed).permutation(codes.num)[:5].tolist():
        assert codes.search(VECTORS[slot : slot + 1], 1, None).tolist() == [slot]


@given(st.integers(1, 4), st.integers(1, 300), st.integers(0, 99))
@settings(max_examples=40)
def test_a_filter_returns_exactly_the_allowed_slots(num_parts: int, num: int, seed: int) -> None:
    codes = build(num_parts, [num])
    allowed = np.random.default_rng(seed).random(num) < 0.3
    assert sorted(codes.search(unit(1, seed), num, allowed).tolist()) == np.flatnonzero(allowed).tolist()


@pytest.mark.parametrize("num_parts", [2, 3])
def test_several_parts_find_what_one_part_finds(num_parts: int) -> None:
    videos = unit(4, seed=1)
    whole, parts = build(1, [600]), build(num_parts, [600])
    for video in videos:
        products = VECTORS @ video
        one, several = whole.search(video[None], 60, None), parts.search(video[None], 60, None)
        assert len(several) == 60
        assert (
            len({*one.tolist()} & {*several.tolist()}) >= 57
        )  # scores are coarse: equal ones may be ordered differently
        assert products[several[:20]].mean() > products[several[-20:]].mean() > products.mean()
    together = parts.search(videos, 60, None)
    assert together.tolist() == np.concatenate([parts.search(v[None], 60, None) for v in videos]).tolist()


def test_a_copy_is_independent() -> None:
    codes = build(2, [100])
    grown = codes.copy()
    grown.add(VECTORS[100:301])
    assert (codes.num, grown.num) == (100, 301)
    assert codes.search(VECTORS[200:201], 1000, None).max() < 100
    assert grown.search(VECTORS[200:201], 1, None).tolist() == [200]
