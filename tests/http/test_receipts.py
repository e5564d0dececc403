"""Receipts: the same one stands for the same scores, also after kill -9; whatever changes scores gives another one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient

from support import videos
from support.processes import PATIENCE_SECONDS
from support.replicas import Replica, StoreProcess
from support.serving import add, classify, colour_video, serving
from vidlex.model.calibration.statistics import DomainStatistics
from vidlex.model.dummy import DummyClassifier

LABELS = ("red", "blue", "green", "yellow", "some label")
REQUESTS: tuple[dict[str, Any], ...] = (
    {"top_k": 0},
    {"aggregate_by": "segments", "segment_ms": 700},
    {"aggregate_by": "timestamps", "num_frames": 5, "start_ms": 300},
    {"frame_policy": "keyframes", "candidate_labels": ["red", "teal"]},
)


@pytest.fixture(scope="module")
def red_then_blue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = colour_video(tmp_path_factory.mktemp("videos") / "both.mp4", "red", "blue", frames_each=20)
    return path


@pytest.fixture(scope="module")
def long_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 s with a scene of 3 s, noisy, so that its key frames lie where cuts are."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 60, (96, 160, 3), np.uint8)

    def picture(number: int) -> Any:
        colour = (200, 20, 20) if 90 <= number < 120 else (20, 20, 180)
        return noise + np.array(colour, np.uint8) // 2 * 2

    path: Path = videos.write_video(tmp_path_factory.mktemp("long") / "v.mp4", num_frames=240, picture=picture)
    return path


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with serving(tmp_path_factory.mktemp("receipts")) as client:
        add(client, *LABELS)
        yield client


def receipt(answer: Any) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()["receipt"]
    return found


def scores(answer: Any) -> Any:
    """With the digits of the response."""
    body = json.loads(answer.content, parse_float=str)
    return [(x["name"], x["score"], x["similarity"], x["segments"], x["stretches"]) for x in body["labels"]]


def test_the_same_receipt_gives_the_same_scores_after_kill_9(
    tmp_path: Path, red_then_blue: Path, long_video: Path
) -> None:
    store = StoreProcess(tmp_path / "store")
    replica = Replica(tmp_path / "data", store.url)
    found: list[list[tuple[dict[str, Any], Any]]] = []
    for is_first in (True, False):
        try:
            store.start()
            replica.start()
            replica.wait()
            with httpx.Client(base_url=replica.url, timeout=PATIENCE_SECONDS, trust_env=False) as client:
                if is_first:
                    add(client, *LABELS)
                answers = [classify(client, path, **r) for path in (red_then_blue, long_video) for r in REQUESTS]
        finally:
            replica.kill()
            store.close()
        assert not any(answer.json()["usage"]["cached"] for answer in answers)
        found.append([(receipt(answer), scores(answer)) for answer in answers])
    assert found[0] == found[1]
    assert len({receipt["id"] for receipt, _ in found[0]}) == 2 * len(REQUESTS)
    assert all(scores for _, scores in found[0])


def test_a_receipt_names_what_the_answer_names(client: TestClient, red_then_blue: Path) -> None:
    answer = classify(client, red_then_blue, start_ms=500)
    body = answer.json()
    named = receipt(answer)
    data = red_then_blue.read_bytes()
    assert named["sha256"] == body["video"]["sha256"] == hashlib.sha256(data).hexdigest()
    assert named["model"] == body["model"]["fingerprint"]
    assert named["vocabulary_revision"] == body["vocabulary_revision"]
    assert named["frame_policy"] == body["coverage"]["frame_policy"]
    assert named["frames_failed"] == body["coverage"]["frames_failed"] == 0
    assert (named["start_ms"], named["end_ms"]) == (500, body["video"]["duration_ms"])
    assert "PyAV" in named["decoder"] and "FFmpeg" in named["decoder"]
    assert named["service"].startswith("vidlex ")
    times = json.dumps(body["coverage"]["timestamps_ms"]).replace(" ", "")
    assert named["timestamps_sha256"] == hashlib.sha256(times.encode()).hexdigest()
    others = {key: value for key, value in named.items() if key != "id"}
    canonical = json.dumps(others, sort_keys=True).replace('": ', '":').replace(', "', ',"')
    assert named["id"] == hashlib.sha256(canonical.encode()).hexdigest()


def test_requests_that_mean_the_same_have_one_receipt(client: TestClient, red_then_blue: Path) -> None:
    same: list[dict[str, Any]] = [
        {},
        {"start_ms": 0},
        {"end_ms": 4000},
        {"end_ms": 90_000},
        {"num_frames": 4},
        {"frame_policy": "uniform"},
        {"segment_ms": 700},  # without effect
        {"top_k": 1},
        {"min_score": 0.5},
        {"label_ids": [client.get("/labels").json()["data"][0]["id"]]},
        {"candidate_labels": ["red", "blue"]},
        {"deadline_ms": 60_000},
    ]
    answers = [classify(client, red_then_blue, **params) for params in same]
    assert len({receipt(answer)["id"] for answer in answers}) == 1
    first = {name: numbers for name, *numbers in scores(answers[0])}
    for answer in answers:
        assert all(first[name] == numbers for name, *numbers in scores(answer))


def test_whatever_changes_scores_changes_the_receipt(
    tmp_path: Path, client: TestClient, red_then_blue: Path, long_video: Path
) -> None:
    other_file = colour_video(tmp_path / "other.mp4", "red", "green", frames_each=20)
    first = {"sha256": "", **receipt(classify(client, red_then_blue))}
    for changed, (path, params) in {
        "sha256": (other_file, {}),
        "num_frames": (red_then_blue, {"num_frames": 3}),
        "frame_policy": (red_then_blue, {"frame_policy": "keyframes"}),
        "aggregate_by": (red_then_blue, {"aggregate_by": "timestamps"}),
        "start_ms": (red_then_blue, {"start_ms": 1}),
        "end_ms": (red_then_blue, {"end_ms": 3999}),
        "segment_ms": (red_then_blue, {"aggregate_by": "segments", "segment_ms": 700}),
    }.items():
        found = receipt(classify(client, path, **params))
        assert found["id"] != first["id"]
        assert found[changed] != first[changed], changed
    one, two = (receipt(classify(client, red_then_blue, aggregate_by="segments", segment_ms=ms)) for ms in (1000, 2000))
    assert (one["id"] != two["id"]) and (one["segment_ms"], two["segment_ms"]) == (1000, 2000)
    by_shots = classify(client, long_video)
    uniform = classify(client, long_video, frame_policy="uniform")
    assert receipt(by_shots)["id"] != receipt(uniform)["id"]
    assert receipt(by_shots)["frame_policy"] == "shots"
    assert receipt(by_shots)["timestamps_sha256"] != receipt(uniform)["timestamps_sha256"]


def test_vocabulary_namespace_and_calibration_are_part_of_it(tmp_path: Path, red_then_blue: Path) -> None:
    with serving(tmp_path, namespace="zoo") as client:
        add(client, *LABELS)
        before = receipt(classify(client, red_then_blue))
        assert before["namespace"] == "zoo" and before["calibration"] is None
        add(client, "purple")
        after = receipt(classify(client, red_then_blue))
        assert after["vocabulary_revision"] > before["vocabulary_revision"] and after["id"] != before["id"]
        client.headers["X-Vidlex-Namespace"] = "other"
        other = receipt(classify(client, red_then_blue, candidate_labels=["red"]))
        assert other["namespace"] == "other" and other["id"] not in (before["id"], after["id"])
        rows = np.random.default_rng(0).random((20, 3)) + np.eye(3)[0]
        statistics = DomainStatistics.of((rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32))
        values = {"model": "dummy-1", **statistics.to_dict()}
        client.put("/calibration", json={"source": "statistics", "statistics": values}).raise_for_status()
        calibrated = receipt(classify(client, red_then_blue, candidate_labels=["red"]))
        assert calibrated["calibration"] is not None and calibrated["id"] != other["id"]


def test_the_precision_of_the_index_is_part_of_it(tmp_path: Path, red_then_blue: Path) -> None:
    found = {}
    for storage in ("float32", "float16"):
        with serving(tmp_path / storage, index_vectors=storage) as client:
            add(client, "red", "label of a colour between others")
            found[storage] = [
                receipt(classify(client, red_then_blue, **p)) for p in ({}, {"candidate_labels": ["red"]})
            ]
    (stored, candidate), (rounded, other_candidate) = found["float32"], found["float16"]
    assert (stored["label_vectors"], rounded["label_vectors"]) == ("float32", "float16")
    assert stored["id"] != rounded["id"] and candidate["id"] == other_candidate["id"]


def test_the_model_is_part_of_it(tmp_path: Path, red_then_blue: Path) -> None:
    found = []
    for version in (1, 2):
        with serving(tmp_path / str(version), classifier=DummyClassifier(version)) as client:
            found.append(receipt(classify(client, red_then_blue, candidate_labels=["red"])))
    assert found[0]["model"] != found[1]["model"] and found[0]["id"] != found[1]["id"]


def test_a_cached_answer_has_the_receipt_of_the_first(tmp_path: Path, red_then_blue: Path) -> None:
    with serving(tmp_path, feature_cache_bytes=1 << 20) as client:
        add(client, *LABELS)
        first, second = (classify(client, red_then_blue) for _ in range(2))
    assert (first.json()["usage"]["cached"], second.json()["usage"]["cached"]) == (False, True)
    assert receipt(first) == receipt(second) and scores(first) == scores(second)
