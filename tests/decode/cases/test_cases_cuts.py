"""Clips cut without encoding. Their first shown frame needs a key frame before it, which the edit list hides."""

from __future__ import annotations

from itertools import cycle, product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.video_cases import (
    assert_frames_are,
    assert_like_ffmpeg,
    decode,
    shown_by_ffmpeg,
)
from support.video_cases_files import Clips
from support.video_cases_mp4 import Edit, with_edits

Target = tuple[str, tuple[str, ...]]  # suffix, options of ffmpeg

FRAGMENTED = ("-movflags", "frag_keyframe+delay_moov")
FASTSTART = ("-movflags", "faststart")
TARGETS: tuple[Target, ...] = (
    (".mp4", ()),
    (".mov", ()),
    (".mp4", FASTSTART),
    (".mkv", ()),
    (".mp4", FRAGMENTED),
    (".ts", ()),
)
PLACES = ((0.4, 6), (1.0, 12), (4.04, 5), (11.3, 3), (7.52, 0.9))
SOURCES = product((25, 50, 250), (0, 2), (True, False), (0, 1))


def cut(
    clips: Clips,
    source: Path,
    suffix: str,
    start: float,
    length: float,
    *,
    sound: bool = True,
    after: tuple[str, ...] = (),
) -> Path:
    options = (*after, *(() if sound else ("-an",)), "-t", str(length))
    return clips.copied(source, suffix, "-ss", str(start), after=options)


CUTS = [
    pytest.param(gop, b_frames, sound, place, target, id=f"{gop}-{b_frames}-{sound}-{place[0]}-{k}{target[0]}")
    for k, ((gop, b_frames, sound, _), place, target) in enumerate(
        zip(SOURCES, cycle(PLACES), cycle(TARGETS), strict=False)
    )
]


@pytest.mark.parametrize(("gop", "b_frames", "sound", "place", "target"), CUTS)
def test_cut_clips(
    clips: Clips, *, gop: int, b_frames: int, sound: bool, place: tuple[float, float], target: Target
) -> None:
    source = clips.clip(".mkv", seconds=20, gop=gop, b_frames=b_frames, sound=True)
    assert_like_ffmpeg(cut(clips, source, target[0], *place, sound=sound, after=target[1]))


def test_a_cut_clip_begins_at_the_cut(clips: Clips) -> None:
    source = clips.clip(".mkv", seconds=20, gop=250, sound=True)
    path = cut(clips, source, ".mp4", 4, 5)
    truth = shown_by_ffmpeg(path)
    assert truth.numbers[:3] == [100, 101, 102]
    batch = decode(path, 4, start_ms=1000, end_ms=2000)
    assert_frames_are(batch, truth, 1000, 2000)
    assert_frames_are(decode(path, 2, segment_ms=500, start_ms=500, end_ms=2500), truth, 500, 2500)


@pytest.mark.parametrize(
    ("codec", "suffix", "target"),
    [
        ("libx265", ".mp4", ".mp4"),
        ("libx265", ".mkv", ".mkv"),
        ("libvpx-vp9", ".webm", ".mp4"),
        ("libvpx-vp9", ".webm", ".webm"),
        ("libsvtav1", ".mkv", ".mp4"),
        ("mpeg4", ".mp4", ".mp4"),
        ("mpeg2video", ".ts", ".ts"),
        ("mpeg2video", ".ts", ".mkv"),
    ],
)
def test_cut_clips_of_other_codecs(clips: Clips, codec: str, suffix: str, target: str) -> None:
    source = clips.clip(suffix, codec=codec, seconds=6, gop=50)
    assert_like_ffmpeg(cut(clips, source, target, 1.4, 3))


@pytest.mark.parametrize(("place", "suffix"), [(3.2, ".mp4"), (0.52, ".mov"), (2.0, ".mkv")])
def test_cuts_of_open_groups(clips: Clips, place: float, suffix: str) -> None:
    """Pictures before a key frame need the group before it."""
    source = clips.clip(".mkv", seconds=8, gop=50, b_frames=3, x264="open-gop=1")
    assert_like_ffmpeg(cut(clips, source, suffix, place, 3))


def test_a_cut_of_a_cut(clips: Clips) -> None:
    source = clips.clip(".mkv", seconds=20, gop=250, sound=True)
    once = cut(clips, source, ".mp4", 4, 8)
    assert_like_ffmpeg(cut(clips, once, ".mp4", 1.5, 4))


EDITS: dict[str, list[Edit]] = {
    "from_the_middle_of_a_group": [(2000, 1000)],
    "the_end_is_hidden": [(1480, 0)],
    "both_ends_are_hidden": [(1000, 1560)],
    "in_the_middle_of_a_frame": [(2000, 1015)],
    "nothing_at_first": [(700, -1), (4000, 0)],
    "nothing_at_first_then_a_cut": [(700, -1), (1600, 1200)],
    "two_parts": [(1000, 0), (1000, 2520)],
    "two_parts_in_another_order": [(1000, 2520), (1000, 520)],
    "one_part_twice": [(1000, 1000), (1000, 1000)],
    "longer_than_the_media": [(60_000, 1000)],
}


@pytest.mark.parametrize(
    ("name", "version"), [*((name, 0) for name in EDITS), ("two_parts", 1), ("the_end_is_hidden", 1)]
)
def test_edit_lists(clips: Clips, name: str, version: int) -> None:
    source = clips.clip(".mp4", seconds=4, gop=50)
    assert_like_ffmpeg(with_edits(source, clips.path(".mp4"), EDITS[name], version=version))


@pytest.mark.parametrize("b_frames", [0, 2])
def test_edit_lists_without_key_frames_near(clips: Clips, b_frames: int) -> None:
    source = clips.clip(".mov", seconds=20, gop=500, b_frames=b_frames)
    assert_like_ffmpeg(with_edits(source, clips.path(".mov"), [(1000, 18_000)]))


@settings(max_examples=12)
@given(
    gop=st.sampled_from([10, 25, 50, 125]),
    b_frames=st.sampled_from([0, 2]),
    start=st.integers(0, 200).map(lambda frame: frame * 0.04),
    length=st.integers(300, 4000).map(lambda ms: ms / 1000),
    suffix=st.sampled_from([".mp4", ".mov", ".mkv", ".ts", ".flv"]),
    sound=st.booleans(),
)
def test_any_cut(
    clips: Clips, *, gop: int, b_frames: int, start: float, length: float, suffix: str, sound: bool
) -> None:
    source = clips.clip(".mkv", seconds=10, gop=gop, b_frames=b_frames, sound=True)
    path = cut(clips, source, suffix, start, length, sound=sound)
    truth = shown_by_ffmpeg(path)
    batch = assert_like_ffmpeg(path, truth=truth)
    assert (np.diff(batch.timestamps_ms) >= 0).all()
