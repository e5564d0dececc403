"""`vidlex classify`: when labels apply, warnings, sampling options."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner, Result

from support import videos
from support.live import live_service
from support.serving import colour_video
from vidlex.service.cli import app
from vidlex.service.commands.classify import print_ranking
from vidlex.service.commands.output import use_json

runner = CliRunner()


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with live_service(tmp_path_factory.mktemp("cli") / "data") as address:
        yield address


@pytest.fixture(scope="module")
def half_a_minute(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = colour_video(
        tmp_path_factory.mktemp("videos") / "long.mp4", "blue", "red", "blue", "green", frames_each=80
    )
    return path


def vidlex(url: str, *arguments: str | Path) -> Result:
    return runner.invoke(app, [str(a) for a in arguments], env={"VIDLEX_URL": url, "COLUMNS": "160"})


def classify(url: str, *arguments: str | Path) -> Result:
    return vidlex(url, "classify", *arguments, "--label", "red", "--label", "blue")


def test_when_a_label_applies_is_a_column(url: str, half_a_minute: Path) -> None:
    result = classify(url, half_a_minute)
    assert result.exit_code == 0, result.output
    (red,) = [line for line in result.stdout.splitlines() if "red" in line]
    (blue,) = [line for line in result.stdout.splitlines() if "blue" in line]
    assert "when" in result.stdout and "(shots)" in result.stdout
    assert red.count(" to ") == 1 and blue.count(" to ") == 2
    assert " 0:00.0 to 0:" in blue and " 0:00.0 to " not in red
    assert result.stderr == ""


def test_a_label_of_the_whole_video_needs_no_column(url: str, tmp_path: Path) -> None:
    result = classify(url, colour_video(tmp_path / "v.mp4", "red"))
    assert result.exit_code == 0 and "when" not in result.stdout and "shots" not in result.stdout


def test_json_is_the_answer_of_the_service(url: str, half_a_minute: Path) -> None:
    result = classify(url, half_a_minute, "--json", "--top-k", "1")
    (shown,) = map(json.loads, result.stdout.splitlines())
    with half_a_minute.open("rb") as file:
        params = json.dumps({"candidate_labels": ["red", "blue"], "top_k": 1})
        answer = httpx.post(f"{url}/classify", files={"file": file}, data={"params": params}, trust_env=False).json()
    assert shown.pop("file") == str(half_a_minute)
    for body in (shown, answer):
        assert body.pop("usage")
    assert shown == answer


@pytest.mark.parametrize("policy", ["uniform", "keyframes", "shots"])
def test_the_policy_is_sent(url: str, half_a_minute: Path, policy: str) -> None:
    (shown,) = map(json.loads, classify(url, half_a_minute, "--frame-policy", policy, "--json").stdout.splitlines())
    assert shown["coverage"]["frame_policy"] == policy


def test_warnings_are_on_stderr(url: str, tmp_path: Path) -> None:
    path = videos.write_video(tmp_path / "v.mp4", num_frames=40, gop=1000, options={"x264-params": "scenecut=0"})
    result = classify(url, path, "--frame-policy", "keyframes")
    assert result.exit_code == 0
    assert result.stderr.startswith(f"warning: {path}: ") and result.stderr.endswith("(few_keyframes)\n")
    assert "warning:" not in result.stdout and "few_keyframes" not in result.stdout
    as_json = classify(url, path, "--frame-policy", "keyframes", "--json")
    assert as_json.stderr == ""
    assert [warning["code"] for warning in json.loads(as_json.stdout)["warnings"]] == ["few_keyframes"]


def answer(*stretches: tuple[int, int, float], duration_ms: int, start_ms: int = 0) -> dict[str, Any]:
    label = {"name": "red", "score": 0.9, "matched": True, "segments": []}
    label["stretches"] = [{"start_ms": a, "end_ms": b, "score": score, "peak_ms": a} for a, b, score in stretches]
    video = {"width": 1, "height": 1, "codec": "h264", "duration_ms": duration_ms, "start_ms": start_ms}
    return {
        "video": video,
        "coverage": {"frames_decoded": 1, "frame_policy": "uniform"},
        "labels": [label],
        "model": {"id": "m"},
        "usage": {},
        "warnings": [{"code": "still_end", "detail": "[red]text[/]"}],
    }


def shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, found: dict[str, Any]) -> str:
    monkeypatch.setenv("COLUMNS", "160")
    use_json(False)  # an earlier command of this process may have set it
    print_ranking(found, title="v.mp4")
    captured = capsys.readouterr()
    assert captured.err == "warning: v.mp4: [red]text[/] (still_end)\n"
    return captured.out


def test_the_best_stretches_are_shown_in_order(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stretches = [(i * 600_000, i * 600_000 + 59_990, 0.5 + i / 10 * (-1) ** i) for i in range(5)]
    text = shown(capsys, monkeypatch, answer(*stretches, duration_ms=7_200_000))
    assert "0:00.0 to 0:59.9, 20:00.0 to 20:59.9, 40:00.0 to 40:59.9 and 2 more" in text
    late = answer((3_723_400, 3_725_000, 0.9), duration_ms=7_200_000)
    assert "1:02:03.4 to 1:02:05.0" in shown(capsys, monkeypatch, late)


def test_a_late_first_frame_is_shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = (0, 4000, 0.9)
    assert "first frame at 5.0 s" in shown(capsys, monkeypatch, answer(whole, duration_ms=4000, start_ms=5000))
    text = shown(capsys, monkeypatch, answer(whole, duration_ms=4000))
    assert "first frame" not in text and "when" not in text
