"""Codes in parts: the numbers of the slots, filters, and growth beside readers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vidlex.service.labels.index.faiss_codes import CodeScan

DIM = 32


def unit(num: int, seed: int = 0) -> NDArray[np.float32]:
    vectors = np.random.default_rng(seed).standard_normal((num, DIM), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


VECTORS = unit(600)


def made(num_parts: int, sizes: list[int]) -> CodeScan:
    scan = CodeScan.trained(VECTORS, num_parts)
    for end, size in zip(np.cumsum(sizes).tolist(), sizes, strict=True):
        scan.add(VECTORS[end - size : end])
    return scan


@given(st.integers(1, 4), st.lists(st.integers(0, 150), min_size=1, max_size=4), st.integers(0, 99))
@settings(max_examples=40)
def test_every_vector_is_found_under_its_own_slot(num_parts: int, sizes: list[int], seed: int) -> None:
    scan = made(num_parts, sizes)
    assert scan.num == sum(sizes)
    for slot in np.random.default_rng(seed).permutation(scan.num)[:5].tolist():
        assert scan.likeliest(VECTORS[slot : slot + 1], 1, None).tolist() == [slot]


@given(st.integers(1, 4), st.integers(1, 300), st.integers(0, 99))
@settings(max_examples=40)
def test_a_filter_gives_all_that_it_allows_and_nothing_else(num_parts: int, num: int, seed: int) -> None:
    scan = made(num_parts, [num])
    allowed = np.random.default_rng(seed).random(num) < 0.3
    assert sorted(scan.likeliest(unit(1, seed), num, allowed).tolist()) == np.flatnonzero(allowed).tolist()


@pytest.mark.parametrize("num_parts", [2, 3])
def test_parts_choose_what_one_would_choose(num_parts: int) -> None:
    videos = unit(4, seed=1)
    whole, parts = made(1, [600]), made(num_parts, [600])
    for video in videos:
        products = VECTORS @ video
        one, several = whole.likeliest(video[None], 60, None), parts.likeliest(video[None], 60, None)
        assert len(several) == 60
        assert len({*one.tolist()} & {*several.tolist()}) >= 57  # scores are coarse: equal ones may change places
        assert products[several[:20]].mean() > products[several[-20:]].mean() > products.mean()
    together = parts.likeliest(videos, 60, None)
    assert together.tolist() == np.concatenate([parts.likeliest(v[None], 60, None) for v in videos]).tolist()


def test_a_copy_grows_by_itself() -> None:
    scan = made(2, [100])
    grown = scan.copy()
    grown.add(VECTORS[100:301])
    assert (scan.num, grown.num) == (100, 301)
    assert scan.likeliest(VECTORS[200:201], 1000, None).max() < 100
    assert grown.likeliest(VECTORS[200:201], 1, None).tolist() == [200]
