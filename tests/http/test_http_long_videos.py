"""POST /classify on long videos and imperfect files: what is looked at, stretches, and every warning about a file."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from numpy.typing import NDArray

from support import videos
from support.paths import ROOT
from support.serving import add, assert_problem, classify, serving
from vidlex.service.schemas.result_warnings import RESULT_WARNINGS

FPS = 10
MAX_LOOKS_PER_MINUTE = 24
MAX_UNSEEN_MS = 3000


def picture(seed: int, *colour: int) -> NDArray[np.uint8]:
    """Not of one colour, which would be a blank frame."""
    texture = np.random.default_rng(seed).integers(0, 60, (96, 160, 3))
    return np.clip(texture + np.array(colour), 0, 255).astype(np.uint8)


PICTURES = {
    "red": picture(1, 180, 0, 0),
    "blue": picture(2, 0, 0, 180),
    "green": picture(3, 0, 180, 0),
    "black": np.zeros((96, 160, 3), np.uint8),
}


def film(path: Path, *scenes: tuple[str, int], **options: Any) -> Path:
    """Scenes of a colour and a number of seconds."""
    shown = [name for name, seconds in scenes for _ in range(seconds * FPS)]
    written: Path = videos.write_video(
        path, num_frames=len(shown), fps=FPS, picture=lambda number: PICTURES[shown[number]], **options
    )
    return written


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with serving(tmp_path_factory.mktemp("long")) as client:
        add(client, "red", "blue", "green")
        yield client


@pytest.fixture(scope="module")
def minute(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return film(tmp_path_factory.mktemp("videos") / "minute.mp4", ("blue", 31), ("red", 3), ("blue", 26))


def found(answer: Any) -> dict[str, dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    return {label["name"]: label for label in answer.json()["labels"]}


def codes(answer: Any) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [warning["code"] for warning in answer.json()["warnings"]]


def spans(label: dict[str, Any]) -> list[tuple[int, int]]:
    return [(stretch["start_ms"], stretch["end_ms"]) for stretch in label["stretches"]]


def test_a_scene_of_a_long_video_is_found_by_default(client: TestClient, minute: Path) -> None:
    answer = classify(client, minute)
    labels = found(answer)
    assert labels["red"]["score"] > 0.95 and labels["red"]["matched"]
    ((start, end),) = spans(labels["red"])
    assert start == pytest.approx(31_000, abs=MAX_UNSEEN_MS) and end == pytest.approx(34_000, abs=MAX_UNSEEN_MS)
    assert spans(labels["blue"]) == [(0, start), (end, 60_000)]
    assert spans(labels["green"]) == [] and not labels["green"]["matched"]
    assert all(label["segments"] == [] for label in labels.values())
    for stretch in labels["blue"]["stretches"]:
        assert stretch["start_ms"] <= stretch["peak_ms"] <= stretch["end_ms"]
        assert 0.5 <= stretch["score"] <= labels["blue"]["score"]
    coverage = answer.json()["coverage"]
    assert coverage["frame_policy"] == "shots"
    assert coverage["frames_decoded"] == len(coverage["timestamps_ms"]) <= MAX_LOOKS_PER_MINUTE
    assert max(np.diff([0, *coverage["timestamps_ms"], 60_000])) <= MAX_UNSEEN_MS
    assert codes(answer) == []


def test_a_mean_over_the_video_would_miss_it(client: TestClient, minute: Path) -> None:
    labels = found(classify(client, minute, frame_policy="uniform"))
    assert not labels["red"]["matched"]


def test_by_shots_segments_and_frames_are_scored_too(client: TestClient, minute: Path) -> None:
    default = found(classify(client, minute))
    by_segment = found(classify(client, minute, aggregate_by="segments", frame_policy="shots"))
    assert {name: spans(label) for name, label in by_segment.items()} == {n: spans(x) for n, x in default.items()}
    segments = by_segment["red"]["segments"]
    assert [a["end_ms"] for a in segments[:-1]] == [b["start_ms"] for b in segments[1:]]
    assert by_segment["red"]["score"] == default["red"]["score"] == max(part["score"] for part in segments)
    by_frame = classify(client, minute, aggregate_by="timestamps", frame_policy="shots")
    times = [part["start_ms"] for part in found(by_frame)["red"]["segments"]]
    assert times == by_frame.json()["coverage"]["timestamps_ms"]


def test_what_decides_how_a_video_is_sampled(client: TestClient, minute: Path, tmp_path: Path) -> None:
    def policy(path: Path, **params: Any) -> str:
        return str(classify(client, path, **params).json()["coverage"]["frame_policy"])

    at_bound = film(tmp_path / "20.mp4", ("red", 10), ("blue", 10))
    assert policy(at_bound) == "uniform"
    assert classify(client, at_bound).json()["coverage"]["frames_requested"] == 4
    beyond = film(tmp_path / "21.mp4", ("red", 10), ("blue", 11))
    assert policy(beyond) == "shots"
    assert policy(minute, start_ms=30_000, end_ms=36_000) == "uniform", "the window is short"
    assert policy(minute, num_frames=4) == policy(minute, aggregate_by="timestamps") == "uniform"
    assert policy(minute, aggregate_by="segments", segment_ms=5000) == "uniform"
    assert policy(minute, frame_policy="keyframes") == "keyframes"
    assert policy(minute, num_frames=2, frame_policy="shots") == "shots"


def test_a_short_video_is_one_stretch(client: TestClient, tmp_path: Path) -> None:
    labels = found(classify(client, film(tmp_path / "v.mp4", ("red", 4))))
    assert labels["red"]["stretches"] == [
        {"start_ms": 0, "end_ms": 4000, "score": labels["red"]["score"], "peak_ms": 2000}
    ]
    assert labels["blue"]["stretches"] == []


def test_stretches_of_fixed_segments_are_merged(client: TestClient, minute: Path) -> None:
    labels = found(classify(client, minute, aggregate_by="segments", segment_ms=1000, num_frames=1))
    assert spans(labels["red"]) == [(31_000, 34_000)]
    assert spans(labels["blue"]) == [(0, 31_000), (34_000, 60_000)]
    assert len(labels["red"]["segments"]) == 60


# Warnings about the file


def test_black_frames_do_not_decide(client: TestClient, tmp_path: Path) -> None:
    plain = found(classify(client, film(tmp_path / "plain.mp4", ("red", 4))))
    answer = classify(client, film(tmp_path / "lead-in.mp4", ("black", 2), ("red", 2)))
    assert codes(answer) == ["blank_frames"]
    assert found(answer)["red"]["score"] == pytest.approx(plain["red"]["score"], abs=0.01)
    coverage = answer.json()["coverage"]
    assert (coverage["frames_blank"], coverage["frames_decoded"]) == (2, 4)
    all_black = classify(client, film(tmp_path / "black.mp4", ("black", 4)))
    assert codes(all_black) == [] and all_black.json()["coverage"]["frames_blank"] == 4


def test_one_key_frame_is_not_taken_silently(client: TestClient, tmp_path: Path) -> None:
    path = film(tmp_path / "v.mp4", ("red", 4), gop=1000, options={"x264-params": "scenecut=0"})
    answer = classify(client, path, frame_policy="keyframes")
    assert codes(answer) == ["few_keyframes"]
    assert answer.json()["coverage"]["frames_decoded"] == 1
    assert codes(classify(client, path)) == []


def test_a_truncated_file_is_named(client: TestClient, tmp_path: Path) -> None:
    whole = film(tmp_path / "v.mkv", ("red", 8))
    half = videos.truncate(whole, tmp_path / "half.mkv", 0.5)
    answer = classify(client, half)
    assert codes(answer) == ["truncated_video"]
    assert answer.json()["video"]["duration_ms"] < 8000
    assert codes(classify(client, whole)) == []


def test_a_small_budget_is_named(tmp_path: Path, minute: Path) -> None:
    with serving(tmp_path, max_frames=12, max_total_frames=12) as client:
        add(client, "red")
        answer = classify(client, minute)
        assert codes(answer) == ["sparse_sampling"]
        assert re.search(r"cover \d\d% of the video", answer.json()["warnings"][0]["detail"])
        assert answer.json()["coverage"]["frames_decoded"] == 12
        # Fixed segments are what was asked for: they are refused rather than thinned out.
        refused = classify(client, minute, aggregate_by="segments", segment_ms=1000, num_frames=4)
        assert assert_problem(refused, 422, "invalid_parameter")["max_frames"] == 12


def test_damaged_frames_are_counted(client: TestClient, tmp_path: Path) -> None:
    whole = film(tmp_path / "v.mp4", ("red", 12), gop=10, options={"x264-params": "scenecut=0"})
    data = bytearray(whole.read_bytes())
    middle = len(data) // 2
    data[middle - len(data) // 8 : middle + len(data) // 8] = bytes(len(data) // 8 * 2)
    answer = classify(client, bytes(data), num_frames=24)
    assert codes(answer) == ["damaged_frames"]
    failed = answer.json()["coverage"]["frames_failed"]
    assert 1 <= failed <= 12
    assert f"{failed} of 24" in answer.json()["warnings"][0]["detail"]
    assert answer.json()["receipt"]["frames_failed"] == failed
    assert found(answer)["red"]["matched"]


# Refusals


def test_encrypted_content_is_refused_by_name(client: TestClient, tmp_path: Path) -> None:
    secrets = {
        "encryption_key": "76a6c65c5ea762046bd749a2e632ccbb",
        "encryption_kid": "a7e61c373e219033c21091fa607bf3b8",
    }
    options = {"encryption_scheme": "cenc-aes-ctr", **secrets}
    answer = classify(client, film(tmp_path / "v.mp4", ("red", 2), container_options=options))
    assert "encrypted" in assert_problem(answer, 415, "unsupported_media")["detail"]


@pytest.mark.parametrize(
    ("limit", "code"),
    [
        ({"max_duration_ms": 1999}, "video_too_long"),
        ({"max_side": 159}, "resolution_too_large"),
        ({"max_pixels": 160 * 96 - 1}, "resolution_too_large"),
    ],
)
def test_a_limit_of_the_service_is_not_called_undecodable(tmp_path: Path, limit: dict[str, int], code: str) -> None:
    video = film(tmp_path / "v.mp4", ("red", 2))
    with serving(tmp_path / "data", **limit) as client:
        problem = assert_problem(classify(client, video, candidate_labels=["red"]), 422, code)
        assert str(next(iter(limit.values()))) in problem["detail"] or "1.999" in problem["detail"]


def test_a_frame_rate_is_no_reason_to_refuse(client: TestClient, tmp_path: Path) -> None:
    fast = videos.write_video(tmp_path / "v.mp4", num_frames=500, fps=250, picture=lambda _: PICTURES["red"])
    answer = classify(client, fast)
    assert answer.json()["video"]["fps"] == pytest.approx(250, rel=0.01)
    assert answer.json()["video"]["duration_ms"] == pytest.approx(2000, abs=5)


def codes_in(path: Path) -> Iterator[str]:
    """Of warnings as the code writes them: ("code", sentence), or warnings["code"] = sentence."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        first: ast.AST | None = None
        if isinstance(node, ast.Tuple) and len(node.elts) == 2:
            first, second = node.elts
            if isinstance(second, ast.Constant) and not (isinstance(second.value, str) and " " in second.value):
                continue  # no sentence
        elif isinstance(node, ast.Subscript) and ast.unparse(node.value).endswith("warnings"):
            first = node.slice
        if isinstance(first, ast.Constant) and re.fullmatch(r"[a-z]+(_[a-z]+)+", str(first.value)):
            yield str(first.value)


def test_every_code_is_documented(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    text = document["components"]["schemas"]["Classification"]["properties"]["warnings"]["description"]
    assert all(f"`{code}`: " in text for code in RESULT_WARNINGS)
    files = [*(ROOT / "model/decode").glob("*.py"), *(ROOT / "service/classification").glob("*.py")]
    files.append(ROOT / "service/views/classification.py")
    used = {code for path in files if path.name != "cards.py" for code in codes_in(path)}
    assert used == set(RESULT_WARNINGS)
