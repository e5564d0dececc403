"""CandidateCache: eviction, memory use, and separate namespaces."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from support.classifiers import RecordingClassifier
from support.serving import classify, colour_video, serving
from vidlex.service.http.openapi.headers import NAMESPACE_HEADER
from vidlex.service.registration.candidate_cache import CandidateCache


def vector(number: int, dim: int = 8) -> NDArray[np.float32]:
    return np.full(dim, number, np.float32)


def test_least_recently_used_vector_is_evicted_and_namespaces_are_separate() -> None:
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
    cache.put("b", {"ten": vector(11)})  # replaces the old one
    assert (len(cache), cache.num_bytes) == (3, 3 * size)
    assert cache.get("b", ["ten"])["ten"][0] == 11


@pytest.mark.parametrize("dim", [3, 512, 4096])
def test_memory_use_does_not_exceed_num_bytes(dim: int) -> None:
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
def test_cache_too_small_for_one_vector_stays_empty(max_bytes: int) -> None:
    cache = CandidateCache(max_bytes)
    cache.put("a", {"one": vector(1), "two": vector(2)})
    assert cache.get("a", ["one", "two"]) == {}
    assert len(cache) == cache.num_bytes == 0


def test_candidate_is_encoded_once_per_namespace(tmp_path: Path) -> None:
    video = colour_video(tmp_path / "red.mp4", "red")
    classifier = RecordingClassifier()
    with serving(tmp_path / "data", classifier=classifier) as client:
        first = classify(client, video, candidate_labels=["red", "blue"]).json()["labels"]
        assert classify(client, video, candidate_labels=["blue", "red"]).json()["labels"] == first
        assert classifier.names == ["red", "blue"]
        client.headers[NAMESPACE_HEADER] = "other"
        assert classify(client, video, candidate_labels=["red"]).json()["labels"] == first[:1]
        assert classifier.names == ["red", "blue", "red"]
    classifier = RecordingClassifier()
    with serving(tmp_path / "off", classifier=classifier, candidate_cache_bytes=0) as client:
        for _ in range(2):
            assert classify(client, video, candidate_labels=["red", "blue"]).json()["labels"] == first
        assert classifier.names == ["red", "blue"] * 2
