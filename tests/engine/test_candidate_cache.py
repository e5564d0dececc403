"""Vectors of candidate labels in memory: bounded by bytes, the unused go first, each namespace by itself."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from support.serving import classify, colour_video, serving
from vidlex.model.dummy import DummyClassifier
from vidlex.service.http.context import NAMESPACE_HEADER
from vidlex.service.registration.candidate_cache import CandidateCache


def vector(number: int, dim: int = 8) -> NDArray[np.float32]:
    return np.full(dim, number, np.float32)


def test_the_longest_unused_goes_first_and_namespaces_are_apart() -> None:
    cache = CandidateCache(10**6)
    cache.put("a", {"one": vector(1)})
    size = cache.num_bytes
    cache = CandidateCache(3 * size)
    for number, name in enumerate(("one", "two", "six")):
        cache.put("a", {name: vector(number)})
    assert set(cache.get("a", ["one"])) == {"one"} and cache.get("b", ["one"]) == {}
    cache.put("b", {"ten": vector(10)})
    assert set(cache.get("a", ["one", "two", "six"])) == {"one", "six"}
    assert cache.get("b", ["ten"])["ten"].tolist() == vector(10).tolist()
    cache.put("b", {"ten": vector(11)})  # in place of the old one
    assert (len(cache), cache.num_bytes) == (3, 3 * size)
    assert cache.get("b", ["ten"])["ten"][0] == 11


@pytest.mark.parametrize("dim", [3, 512, 4096])
def test_no_more_memory_is_taken_than_is_said(dim: int) -> None:
    max_bytes = 2**21
    rows = np.ones((50, dim), np.float32)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        cache = CandidateCache(max_bytes)
        for start in range(0, 20_000, len(rows)):
            cache.put(f"namespace {start % 7}", {f"label {start + i} 犬": row for i, row in enumerate(rows)})
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert 0.8 * max_bytes < cache.num_bytes <= max_bytes
    assert 0.4 * max_bytes < taken <= 1.1 * max_bytes


@pytest.mark.parametrize("max_bytes", [0, 100])
def test_too_small_for_one_keeps_none(max_bytes: int) -> None:
    cache = CandidateCache(max_bytes)
    cache.put("a", {"one": vector(1), "two": vector(2)})
    assert (
        cache.get("a", ["one", "two"]) == {}
        and cache.num_bytes == 0
        and sys.getsizeof(cache._vectors._entries) < 10_000
    )


class Counting(DummyClassifier):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def encode_labels(self, names: Sequence[str]) -> NDArray[np.float32]:
        self.names += names
        return super().encode_labels(names)


def test_candidates_are_encoded_once_in_each_namespace(tmp_path: Path) -> None:
    video = colour_video(tmp_path / "red.mp4", "red")
    classifier = Counting()
    with serving(tmp_path / "data", classifier=classifier) as client:
        first = classify(client, video, candidate_labels=["red", "blue"]).json()["labels"]
        assert classify(client, video, candidate_labels=["blue", "red"]).json()["labels"] == first
        assert classifier.names == ["red", "blue"]
        client.headers[NAMESPACE_HEADER] = "other"
        assert classify(client, video, candidate_labels=["red"]).json()["labels"] == first[:1]
        assert classifier.names == ["red", "blue", "red"]
    classifier = Counting()
    with serving(tmp_path / "off", classifier=classifier, candidate_cache_bytes=0) as client:
        for _ in range(2):
            assert classify(client, video, candidate_labels=["red", "blue"]).json()["labels"] == first
        assert classifier.names == ["red", "blue"] * 2
