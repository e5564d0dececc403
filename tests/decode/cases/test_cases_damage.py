"""Recordings joined in the middle, damaged places, and files that end early."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from support.video_cases import (
    assert_like_ffmpeg,
    assert_nearly_like_ffmpeg,
    decode,
    numbers_of,
    refusal,
    shown_by_ffmpeg,
)
from support.video_cases_files import Clips
from support.video_cases_ts import VIDEO_PID, only, pid_of, without_pictures
from vidlex.model.types import FrameBatch

DAMAGED, TRUNCATED = "damaged_frames", "truncated_video"


def codes(batch: FrameBatch) -> list[str]:
    return [code for code, _ in batch.warnings]


def damaged(clips: Clips, source: Path, *, at: float, num_bytes: int = 2048, noise: bool = False) -> Path:
    """``num_bytes`` from the place ``at`` (a share of the file) on are zero, or noise."""
    data = bytearray(source.read_bytes())
    start = int(len(data) * at)
    end = min(len(data), start + num_bytes)
    data[start:end] = random.Random(1).randbytes(end - start) if noise else bytes(end - start)
    path = clips.path(source.suffix)
    path.write_bytes(data)
    return path


# --- joined in the middle --------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["libx264", "libx265", "mpeg2video"])
def test_a_stream_joined_in_the_middle(clips: Clips, codec: str) -> None:
    source = clips.clip(".ts", codec=codec, seconds=8, gop=100, sound=True)
    path = only(source, clips.path(".ts"), lambda k, _: k > 12)
    assert_like_ffmpeg(path)


@pytest.mark.parametrize("first_picture", [5, 30, 99])
def test_a_stream_joined_long_before_its_next_key_frame(clips: Clips, first_picture: int) -> None:
    """More than 64 pictures before the first that can be decoded."""
    source = clips.clip(".mkv", seconds=8, gop=100, sound=True)
    path = clips.remuxed(source, ".ts", change=lambda k, packet: bytes(packet) if k >= first_picture else None)
    truth = shown_by_ffmpeg(path)
    assert truth.numbers == list(range(100, 200))
    assert_like_ffmpeg(path, truth=truth)


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".ts", ".flv"])
def test_the_first_group_is_damaged(clips: Clips, suffix: str) -> None:
    source = clips.clip(".ts" if suffix == ".ts" else ".mkv", seconds=8, gop=100)
    path = clips.path(suffix)
    if suffix == ".ts":
        without_pictures(source, path, 0, 100)
    else:
        path = clips.remuxed(
            source, suffix, change=lambda k, p: bytes(p) if k >= 100 else bytes(p)[:4] + b"\xff" * (p.size - 4)
        )
    truth = shown_by_ffmpeg(path)
    assert truth.numbers == list(range(100, 200))
    batch = decode(path)
    assert set(numbers_of(batch, truth)) <= set(range(100, 200))
    assert_nearly_like_ffmpeg(path, keys={100})


# --- one damaged place -----------------------------------------------------------------------------------------

FORMATS = [
    ("libx264", ".mp4"),
    ("libx264", ".mkv"),
    ("libx264", ".ts"),
    ("libx264", ".flv"),
    ("libx265", ".mp4"),
    ("libvpx", ".webm"),
    ("libvpx-vp9", ".webm"),
    ("mpeg4", ".avi"),
    ("mjpeg", ".avi"),
    ("mpeg2video", ".mpg"),
]


@pytest.mark.parametrize(("codec", "suffix"), FORMATS)
@pytest.mark.parametrize("noise", [False, True], ids=["zeros", "noise"])
def test_a_damaged_place(clips: Clips, codec: str, suffix: str, noise: bool) -> None:
    source = clips.clip(suffix, codec=codec, seconds=12, gop=50)
    path = damaged(clips, source, at=0.5, num_bytes=min(2048, source.stat().st_size // 10), noise=noise)
    assert_nearly_like_ffmpeg(path, num_frames=60, keys=shown_by_ffmpeg(source).keys)


def test_a_damaged_place_is_reported(clips: Clips) -> None:
    """Six seconds in the middle cannot be decoded; all frames that can be are right, and a warning counts the rest."""
    source = clips.clip(".mp4", seconds=18, gop=50, sound=True)
    path = clips.remuxed(
        source, ".mp4", change=lambda k, p: bytes(p) if not 150 <= k < 300 else bytes(p)[:4] + b"\xff" * (p.size - 4)
    )
    batch = assert_nearly_like_ffmpeg(path, num_frames=18, keys=range(0, 450, 50))
    assert 5 <= batch.num_failed <= 7
    assert codes(batch) == [DAMAGED]
    assert str(batch.num_failed) in batch.warnings[0][1]
    intact = decode(path, 5, end_ms=5000)
    assert (intact.num_failed, codes(intact)) == (0, [])


def test_a_file_without_damage_has_no_warning(clips: Clips) -> None:
    for suffix in (".mp4", ".mkv", ".ts"):
        batch = decode(clips.clip(suffix, seconds=4, gop=50))
        assert (batch.num_failed, batch.warnings) == (0, ())


@pytest.mark.parametrize("seed", [1, 2])
def test_a_stream_with_lost_packets(clips: Clips, seed: int) -> None:
    """A bad aerial: one packet of a hundred is missing."""
    draw = random.Random(seed)
    source = clips.clip(".ts", seconds=12, gop=25, sound=True)
    path = only(source, clips.path(".ts"), lambda k, p: k < 3 or pid_of(p) != VIDEO_PID or draw.random() > 0.01)
    assert_nearly_like_ffmpeg(path, num_frames=60, keys=range(0, 300, 25))


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".webm"])
def test_one_broken_packet(clips: Clips, suffix: str) -> None:
    """Frames before it and from the next key frame on are untouched."""
    source = clips.clip(suffix, codec="libvpx-vp9", seconds=8, gop=50)
    path = clips.remuxed(source, suffix, change=lambda k, p: bytes(p) if k != 60 else b"\xff" * p.size)
    batch = assert_nearly_like_ffmpeg(path, num_frames=100, keys=range(0, 200, 50))
    truth = shown_by_ffmpeg(path)
    numbers = numbers_of(batch, truth)
    assert numbers[:30] == list(range(1, 60, 2))
    assert numbers[-45:] == list(range(111, 200, 2))


# --- files that end early --------------------------------------------------------------------------------------

FASTSTART = (("movflags", "faststart"),)
FRAGMENTED = (("movflags", "frag_keyframe+empty_moov"),)
CUT_SHORT = [
    ("libx264", ".mp4", FASTSTART, True),
    ("libx264", ".mp4", FRAGMENTED, False),
    ("libx264", ".mkv", (), True),
    ("libvpx", ".webm", (), True),
    ("mpeg4", ".avi", (), True),
    ("libx264", ".ts", (), False),
    ("libx264", ".flv", (), True),
    ("wmv2", ".wmv", (), False),
    ("mpeg2video", ".mpg", (), False),
]


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.9])
@pytest.mark.parametrize(("codec", "suffix", "muxer", "claims"), CUT_SHORT)
def test_a_file_that_ends_early(
    clips: Clips, *, codec: str, suffix: str, muxer: tuple[tuple[str, str], ...], claims: bool, keep: float
) -> None:
    """All that is there is shown, and no more; a warning says so where the header says how long the video should be."""
    source = clips.clip(suffix, codec=codec, seconds=12, gop=50, muxer=muxer)
    data = source.read_bytes()
    path = clips.path(suffix)
    path.write_bytes(data[: int(len(data) * keep)])
    truth = shown_by_ffmpeg(path)
    batch = assert_nearly_like_ffmpeg(path, keys=shown_by_ffmpeg(source).keys)
    assert abs(batch.video.num_frames - len(truth)) <= 2
    assert abs(batch.video.duration_ms - truth.times_ms[-1] - truth.step_ms) <= 6 * truth.step_ms
    assert TRUNCATED in codes(batch) or not claims
    assert TRUNCATED not in codes(decode(source))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_file_of_which_almost_nothing_is_left(clips: Clips, suffix: str) -> None:
    source = clips.clip(suffix, seconds=20, gop=250, muxer=FASTSTART if suffix == ".mp4" else ())
    data = source.read_bytes()
    path = clips.path(suffix)
    path.write_bytes(data[: int(len(data) * 0.25)])
    assert TRUNCATED in codes(assert_nearly_like_ffmpeg(path, keys={0, 250}))


def test_a_file_that_ends_where_a_fragment_begins(clips: Clips) -> None:
    """The fragments before it are whole."""
    source = clips.clip(".mp4", seconds=12, gop=50, muxer=FRAGMENTED)
    data = source.read_bytes()
    start = data.index(b"moof", len(data) // 2)
    for end in (start - 4, start, start + 4, start + 20, start + 60):
        path = clips.path(".mp4")
        path.write_bytes(data[:end])
        assert_nearly_like_ffmpeg(path, keys=range(0, 300, 50))


def test_a_header_without_pictures_is_refused(clips: Clips) -> None:
    data = clips.clip(".mp4", muxer=FASTSTART).read_bytes()
    path = clips.path(".mp4")
    path.write_bytes(data[: data.index(b"mdat") + 4])
    assert refusal(path).code == "undecodable_video"
