"""FeatureCache: eviction, concurrent requests, and separate namespaces."""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.processes import PATIENCE_SECONDS
from support.serving import add, classify, clear, colour_video, serving, wait_until
from vidlex.model.types import VideoInfo
from vidlex.service.classification.features import FeatureCache, FeatureKey, VideoFeatures
from vidlex.service.classification.segments import Segment
from vidlex.service.errors import Overloaded, UndecodableVideo

KEY = FeatureKey("default", "dummy-1", "00", 4, "video", None, None, None)
INFO = VideoInfo(duration_ms=1000, width=8, height=8, fps=10.0, codec="h264", num_frames=10, num_bytes=99)


def features(dim: int = 16) -> VideoFeatures:
    return VideoFeatures(INFO, (0, 500), (Segment(0, 1000),), np.zeros((1, dim), np.float32))


def is_hit(cache: FeatureCache, key: FeatureKey, compute: Callable[[], VideoFeatures] = features) -> bool:
    return cache.get(key, compute, deadline=time.monotonic() + PATIENCE_SECONDS, cancelled=threading.Event())[1]


def test_least_recently_used_features_are_evicted() -> None:
    keys = [replace(KEY, sha256=str(i)) for i in range(3)]
    cache = FeatureCache(2 * features().num_bytes)
    assert [is_hit(cache, key) for key in keys[:2]] == [False, False]
    assert is_hit(cache, keys[0])
    assert not is_hit(cache, keys[2])  # evicts keys[1]
    assert is_hit(cache, keys[0]) and is_hit(cache, keys[2])
    assert (len(cache), cache.num_bytes) == (2, 2 * features().num_bytes)
    assert not is_hit(cache, keys[1])


def test_features_of_a_long_video_count_all_their_bytes() -> None:
    short, num = features(), 1000
    segments = tuple(Segment(1000 * i, 1000 * (i + 1)) for i in range(num))
    times = tuple(range(8 * num))
    warnings = (("damaged_frames", "x" * 500),)
    long = VideoFeatures(INFO, times, segments, np.zeros((num, 16), np.float32), warnings=warnings)
    assert long.num_bytes - short.num_bytes > num * (16 * 4 + 2 * sys.getsizeof(10**6)) + 8 * num * 28 + 500
    small = FeatureCache(long.num_bytes - 1)
    assert not is_hit(small, KEY, lambda: long) and not is_hit(small, KEY, lambda: long)
    enough = FeatureCache(long.num_bytes)
    assert not is_hit(enough, KEY, lambda: long) and is_hit(enough, KEY, lambda: long)


def test_disabled_cache_and_too_large_features_are_never_hits() -> None:
    off, small = FeatureCache(0), FeatureCache(features().num_bytes)
    assert not is_hit(off, KEY) and not is_hit(off, KEY)
    large = lambda: features(10_000)  # noqa: E731
    assert not is_hit(small, KEY, large) and not is_hit(small, KEY, large)
    assert small.num_bytes == 0


@pytest.mark.parametrize(
    "other",
    [
        {"namespace": "b"},
        {"fingerprint": "x"},
        {"num_frames": 5},
        {"aggregate_by": "timestamps"},
        {"start_ms": 1},
        {"frame_policy": "shots"},
    ],
)
def test_other_parameters_are_another_key(other: dict[str, Any]) -> None:
    cache = FeatureCache(1 << 20)
    assert not is_hit(cache, KEY)
    assert not is_hit(cache, replace(KEY, **other))


def test_concurrent_requests_compute_features_once() -> None:
    cache = FeatureCache(1 << 20)
    gate, calls = threading.Event(), []

    def compute() -> VideoFeatures:
        calls.append(1)
        assert gate.wait(PATIENCE_SECONDS)
        return features()

    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(is_hit, cache, KEY, compute) for _ in range(8)]
        wait_until(lambda: calls, "compute was not called")
        gate.set()
        assert sorted(answer.result(PATIENCE_SECONDS) for answer in answers) == [False] + [True] * 7
    assert len(calls) == 1


def test_error_is_not_shared_with_waiting_request() -> None:
    cache = FeatureCache(1 << 20)
    gate, calls = threading.Event(), []

    def fail_first() -> VideoFeatures:
        calls.append(1)
        if len(calls) == 1:
            assert gate.wait(PATIENCE_SECONDS)
            raise UndecodableVideo
        return features()

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(is_hit, cache, KEY, fail_first)
        wait_until(lambda: calls, "compute was not called")
        second = pool.submit(is_hit, cache, KEY, fail_first)
        gate.set()
        with pytest.raises(UndecodableVideo):
            first.result(PATIENCE_SECONDS)
        assert second.result(PATIENCE_SECONDS) is False


@pytest.mark.parametrize("reason", ["deadline", "disconnect"])
def test_wait_for_another_request_ends(reason: str) -> None:
    cache, gate, entered = FeatureCache(1 << 20), threading.Event(), threading.Event()

    def compute() -> VideoFeatures:
        entered.set()
        assert gate.wait(PATIENCE_SECONDS)
        return features()

    cancelled = threading.Event()
    if reason == "disconnect":
        cancelled.set()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(is_hit, cache, KEY, compute)
        assert entered.wait(PATIENCE_SECONDS)
        deadline = time.monotonic() + (PATIENCE_SECONDS if reason == "disconnect" else 0)
        with pytest.raises(Overloaded):
            cache.get(KEY, compute, deadline=deadline, cancelled=cancelled)
        gate.set()
        assert first.result(PATIENCE_SECONDS) is False


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with serving(tmp_path_factory.mktemp("data"), feature_cache_bytes=1 << 20) as client:
        yield client


def test_repeated_video_is_not_decoded_for_new_labels(client: Any, tmp_path: Path) -> None:
    clear(client)
    add(client, "red")
    video = colour_video(tmp_path / "video.mp4", "red", "blue")
    first = classify(client, video).json()
    assert first["usage"]["cached"] is False
    add(client, "blue")
    num_hits = lookups(client, "hit")
    second = classify(client, video).json()
    usage = second["usage"]
    assert usage["cached"] is True and usage["decode_ms"] == usage["encode_ms"] == usage["queue_ms"] == 0
    assert {label["name"] for label in second["labels"]} == {"red", "blue"}
    assert first["labels"][0] in second["labels"]  # bit for bit
    assert [second[part] for part in ("video", "coverage", "model")] == [
        first[part] for part in ("video", "coverage", "model")
    ]
    assert lookups(client, "hit") == num_hits + 1
    assert "vidlex_feature_cache_bytes 0.0" not in client.get("/metrics").text


def lookups(client: Any, result: str) -> float:
    line = re.search(rf'^vidlex_feature_lookups_total{{result="{result}"}} (\S+)$', client.get("/metrics").text, re.M)
    return float(line[1]) if line else 0.0


def test_cached_segments_have_their_times(client: Any, tmp_path: Path) -> None:
    video = colour_video(tmp_path / "video.mp4", "green", "blue")
    for cached in (False, True):
        answer = classify(client, video, aggregate_by="segments", segment_ms=1000, candidate_labels=["green"]).json()
        assert answer["usage"]["cached"] is cached
        first, second = answer["labels"][0]["segments"]
        assert (first["start_ms"], second["start_ms"]) == (0, 1000) and first["score"] > second["score"]
    assert not classify(client, video, candidate_labels=["green"]).json()["usage"]["cached"]


def test_other_namespace_does_not_hit(client: Any, tmp_path: Path) -> None:
    data = colour_video(tmp_path / "video.mp4", "red", "green").read_bytes()
    for namespace, cached in (("a", False), ("b", False), ("a", True)):
        answer = client.post("/classify", files={"file": data}, headers={"X-Vidlex-Namespace": namespace})
        assert answer.json()["usage"]["cached"] is cached
