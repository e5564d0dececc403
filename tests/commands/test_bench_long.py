"""The generated videos of `vidlex bench long`, and how its answers are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from vidlex.model.decode.frame_content import FrameContentDetector
from vidlex.service.bench.long import LongOptions, _find
from vidlex.service.bench.long_videos import FPS, drawn_shots, shots_of, write_long_video, write_shot


def frames_of(path: Path) -> tuple[np.ndarray, list[int]]:
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    return np.stack([frame.to_ndarray(format="rgb24") for frame in frames]), [
        i for i, frame in enumerate(frames) if frame.key_frame
    ]


@pytest.mark.parametrize("seed", [4, 5])
def test_the_scene_is_shown_once_and_when_it_is_said_to_be(tmp_path: Path, seed: int) -> None:
    red, green, blue = drawn_shots()
    start_ms, end_ms = write_long_video(
        tmp_path / "long.mp4", red, [green, blue], variant=0, seconds=30.0, scene_seconds=3.0, seed=seed
    )
    frames, keyframes = frames_of(tmp_path / "long.mp4")
    is_red = frames.mean(axis=(1, 2)).argmax(axis=1) == 0
    first, last = start_ms * FPS // 1000, end_ms * FPS // 1000
    assert (last - first, len(frames)) == (3 * FPS, 30 * FPS)
    assert np.flatnonzero(is_red).tolist() == list(range(first, last))
    assert (keyframes == [0, 100, 200]) == (seed % 2 == 1)  # at cuts with even seeds


def test_shots_of_a_video_are_separated(tmp_path: Path) -> None:
    red, green, blue = drawn_shots()
    write_long_video(tmp_path / "video.mp4", red, [green, blue], variant=0, seconds=30.0, scene_seconds=3.0, seed=3)
    frames, _ = frames_of(tmp_path / "video.mp4")
    shots = shots_of(tmp_path / "video.mp4", ["colour"])
    starts = np.flatnonzero(FrameContentDetector().add(frames).starts_shot)
    assert len(shots) == (np.diff(starts, append=len(frames)) >= 9).sum() > 2  # of less than 0.9 s: left out
    assert {shot.labels for shot in shots} == {("colour",)}
    (alone,) = shots_of(write_shot(tmp_path / "alone.mp4", red, variant=1, seconds=3.0), ["red"])
    assert alone.pictures.shape == (3 * FPS, 192, 256, 3)


def answer(*stretches: tuple[int, int, int]) -> dict[str, Any]:
    found = [{"start_ms": start, "end_ms": end, "peak_ms": peak} for start, end, peak in stretches]
    return {"labels": [{"name": "red", "matched": bool(found), "stretches": found}, {"name": "blue", "matched": False}]}


def test_a_scene_is_found_where_it_is() -> None:
    right = _find(answer((9_000, 13_000, 11_000), (50_000, 60_000, 55_000)), "red", 10_000, 13_000)
    assert (right.is_matched, right.is_located, right.num_elsewhere, right.num_matched) == (True, True, 1, 1)
    broad = _find(answer((0, 60_000, 30_000)), "red", 10_000, 13_000)  # its peak is elsewhere
    assert (broad.is_matched, broad.is_located) == (True, False)
    missed = _find(answer(), "red", 10_000, 13_000)
    assert (missed.is_matched, missed.is_located) == (False, False)


def test_a_scene_longer_than_its_video_is_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        LongOptions(minutes=0.05)
