"""Bit streams whose packets do not match their frames: packed, coded by fields, without key frames or time stamps."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path

import av
import numpy as np
import pytest

from support.video_cases import assert_frames_are, assert_like_ffmpeg, decode, numbers_of, shown_by_ffmpeg
from support.video_cases_bits import write_fields, write_packed
from support.video_cases_files import Clips
from support.video_cases_mp4 import without_key_frame_list, without_sync_samples
from support.video_cases_ts import VIDEO_PID, only, packets, pid_of, starts_picture

FRAGMENTED = (("movflags", "frag_keyframe+empty_moov+default_base_moof"),)


def num_packets(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(packet.size > 0 for packet in container.demux(video=0))


# --- AVI: stored order is all there is -------------------------------------------------------------------------


@pytest.mark.parametrize(("codec", "b_frames"), [("libx264", 2), ("libx264", 5), ("mpeg4", 2)])
@pytest.mark.parametrize("sound", [False, True])
def test_avi_with_reordered_frames(clips: Clips, codec: str, b_frames: int, sound: bool) -> None:
    assert_like_ffmpeg(clips.clip(".avi", codec=codec, b_frames=b_frames, sound=sound))


@pytest.mark.parametrize("gop", [12, 30, 75])
def test_packed_frames_of_divx(clips: Clips, gop: int) -> None:
    path = write_packed(clips, gop=gop)
    truth = shown_by_ffmpeg(path)
    assert truth.numbers == list(range(75))
    assert_like_ffmpeg(path, truth=truth)
    assert_frames_are(decode(path, 4, start_ms=1500, end_ms=2500), truth, 1500, 2500)


# --- fields ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".ts", ".mkv", ".mp4"])
@pytest.mark.parametrize("together", [False, True], ids=["packet_per_field", "packet_per_frame"])
@pytest.mark.parametrize("whole", [False, True], ids=["fields", "fields_and_frames"])
def test_pictures_coded_as_fields(clips: Clips, suffix: str, together: bool, whole: bool) -> None:
    path = write_fields(clips, suffix, num_frames=40, together=together, whole=whole)
    truth = shown_by_ffmpeg(path)
    assert truth.numbers == list(range(40))
    batch = assert_like_ffmpeg(path, truth=truth)
    assert batch.video.num_frames == 40
    assert abs(batch.video.duration_ms - 1600) <= 41


def test_a_packet_holds_one_field(clips: Clips) -> None:
    """What makes the case above hard: twice as many packets as frames."""
    assert num_packets(write_fields(clips, ".ts", num_frames=20, together=False)) == 40


@pytest.mark.parametrize("suffix", [".ts", ".mp4", ".mkv"])
def test_interlaced_pictures(clips: Clips, suffix: str) -> None:
    assert_like_ffmpeg(clips.clip(suffix, x264="interlaced=1"))


# --- no key frames ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".ts", ".mp4", ".mkv", ".flv"])
def test_intra_refresh(clips: Clips, suffix: str) -> None:
    """One key frame at the start, later a column of blocks a frame."""
    assert_like_ffmpeg(clips.clip(suffix, seconds=8, gop=20, b_frames=0, x264="intra-refresh=1"))


def test_intra_refresh_joined_in_the_middle(clips: Clips) -> None:
    """No key frame at all: the picture is complete once the column has passed."""
    source = clips.clip(".ts", seconds=8, gop=20, b_frames=0, x264="intra-refresh=1")
    pictures = accumulate(starts_picture(packet) for packet in packets(source))
    is_kept = [number > 35 for number in pictures]
    path = only(source, clips.path(".ts"), lambda k, packet: is_kept[k] or pid_of(packet) != VIDEO_PID)
    truth = shown_by_ffmpeg(path)
    batch = decode(path, 4, start_ms=3000, end_ms=5000)
    assert truth.numbers[-100:] == list(range(100, 200))
    assert_frames_are(batch, truth, 3000, 5000)


@pytest.mark.parametrize("gop", [10, 50, 250])
@pytest.mark.parametrize("b_frames", [0, 2])
def test_fragments_that_mark_no_sample_as_key_frame(clips: Clips, gop: int, b_frames: int) -> None:
    source = clips.clip(".mp4", seconds=8, gop=gop, b_frames=b_frames, muxer=FRAGMENTED)
    assert_like_ffmpeg(without_sync_samples(source, clips.path(".mp4")))


def test_a_table_of_key_frames_without_any(clips: Clips) -> None:
    assert_like_ffmpeg(without_key_frame_list(clips.clip(".mp4", gop=25), clips.path(".mp4")))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_one_key_frame(clips: Clips, suffix: str) -> None:
    """Asked for key frames, the answer is the one there is, not the same picture several times without a word."""
    path = clips.clip(suffix, seconds=8, gop=500)
    assert_like_ffmpeg(path)
    batch = decode(path, 8, policy="keyframes")
    assert set(numbers_of(batch, shown_by_ffmpeg(path))) == {0}
    assert [code for code, _ in batch.warnings] == ["few_keyframes"]


# --- no time stamps --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("codec", "b_frames"), [("libx264", 0), ("mpeg2video", 0), ("libx264", 2), ("mpeg2video", 2)])
@pytest.mark.parametrize("num", [2, 3])
def test_several_pictures_in_a_packet_of_a_stream(clips: Clips, codec: str, b_frames: int, num: int) -> None:
    """Only the first picture of each packet (PES) has a time stamp."""
    source = clips.clip(".ts", codec=codec, b_frames=b_frames)
    with av.open(str(source)) as reader:
        data = [bytes(packet) for packet in reader.demux(video=0) if packet.size]
    path = clips.remuxed(source, ".ts", change=lambda k, _: b"".join(data[k : k + num]) if k % num == 0 else None)
    if b_frames:
        truth = shown_by_ffmpeg(path)
        assert truth.numbers == list(range(100))
        batch = decode(path, 25)
        assert numbers_of(batch, truth) == sorted(numbers_of(batch, truth))
        assert batch.video.num_frames == 100
    else:
        assert_like_ffmpeg(path)


# --- threads ---------------------------------------------------------------------------------------------------


def hard_case(clips: Clips, name: str) -> Path:
    source = clips.clip(".mkv", seconds=10, gop=50, sound=True)
    if name == "cut":
        return clips.copied(source, ".mp4", "-ss", "3.3", after=("-t", "6"))
    if name == "open_groups":
        return clips.clip(".ts", seconds=8, gop=25, b_frames=3, x264="open-gop=1")
    if name == "later_clock":
        return clips.remuxed(source, ".mkv", shift_ms=3_600_000)
    if name == "fields":
        return write_fields(clips, ".ts", num_frames=60, together=False, whole=True)
    if name == "avi":
        return clips.clip(".avi", seconds=8)
    return write_packed(clips, seconds=8)


@pytest.mark.parametrize("name", ["cut", "open_groups", "later_clock", "fields", "avi", "packed"])
def test_threads_change_no_pixel(clips: Clips, name: str) -> None:
    path = hard_case(clips, name)
    wanted = decode(path, 40, num_threads=1)
    assert_frames_are(wanted, shown_by_ffmpeg(path))
    for num_threads in (4, 16):
        batch = decode(path, 40, num_threads=num_threads)
        assert batch.timestamps_ms == wanted.timestamps_ms
        assert np.array_equal(batch.frames, wanted.frames)
