"""Clocks that do not begin at zero, sound that begins or ends elsewhere, and durations that a header gets wrong."""

from __future__ import annotations

import pytest

from fuzz.forged_headers import claim_duration
from support.video_cases import assert_frames_are, assert_like_ffmpeg, decode, numbers_of, shown_by_ffmpeg
from support.video_cases_files import Clips
from support.video_cases_mkv import with_claimed_rate, without_duration
from support.video_cases_mp4 import with_edits

HOUR = 3_600_000


@pytest.mark.parametrize("hours", [1, 3, 26])
@pytest.mark.parametrize("sound", [False, True])
@pytest.mark.parametrize("suffix", [".mkv", ".ts"])
def test_a_clock_that_begins_hours_later(clips: Clips, hours: int, suffix: str, sound: bool) -> None:
    path = clips.remuxed(clips.clip(".mkv", sound=sound), suffix, shift_ms=hours * HOUR)
    assert assert_like_ffmpeg(path).video.duration_ms < 5000


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".flv"])
def test_a_clock_that_begins_an_hour_later(clips: Clips, suffix: str) -> None:
    path = clips.remuxed(clips.clip(".mkv", sound=True), suffix, shift_ms=HOUR)
    assert assert_like_ffmpeg(path).video.duration_ms < 5000


@pytest.mark.parametrize("codec", ["libvpx-vp9", "libvpx"])
def test_a_browser_recording_whose_clock_begins_later(clips: Clips, codec: str) -> None:
    source = clips.clip(".webm", codec=codec)
    assert_like_ffmpeg(clips.remuxed(source, ".webm", shift_ms=HOUR))


def test_a_fragmented_recording_whose_clock_begins_later(clips: Clips) -> None:
    """A piece of a live stream, whose fragments carry the time since its start."""
    source = clips.clip(".mkv", sound=True)
    muxer = {"movflags": "frag_keyframe+empty_moov+default_base_moof", "use_editlist": "0"}
    assert_like_ffmpeg(clips.remuxed(source, ".mp4", shift_ms=3 * HOUR, muxer=muxer))


@pytest.mark.parametrize("start_ms", [2**33 // 90 - 2000, 2**32 // 90 - 2000])
def test_a_transport_stream_whose_clock_overflows(clips: Clips, start_ms: int) -> None:
    """33 bits at 90 kHz: the clock of a stream that has run for 26.5 h begins at 0 again."""
    assert_like_ffmpeg(clips.remuxed(clips.clip(".mkv"), ".ts", shift_ms=start_ms))


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".ts", ".flv"])
@pytest.mark.parametrize("video_ms", [5000, 0])
def test_picture_and_sound_begin_apart(clips: Clips, suffix: str, video_ms: int) -> None:
    source = clips.clip(".mkv", sound=True)
    path = clips.remuxed(source, suffix, shift_ms=200 + video_ms, sound_shift_ms=5200 - video_ms)
    batch = assert_like_ffmpeg(path)
    if suffix == ".mkv":
        delay = 5000 * (video_ms > 0)
        assert abs(batch.video.start_ms - delay) <= 300, "all of the file begins at 200 ms, the first frame later"


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".ts", ".avi", ".flv"])
def test_sound_that_goes_on_for_much_longer(clips: Clips, suffix: str) -> None:
    """20 s of sound, 2 s of picture: no part of the picture is missing."""
    codec = "mpeg4" if suffix == ".avi" else "libx264"
    path = clips.clip(suffix, codec=codec, seconds=2.0, sound=True)
    batch = decode(path)
    truth = shown_by_ffmpeg(path)
    assert_frames_are(batch, truth)
    assert batch.warnings == ()


@pytest.mark.parametrize(("codec", "suffix"), [("libvpx", ".webm"), ("libvpx-vp9", ".webm"), ("libx264", ".mkv")])
def test_the_last_frame_stands_until_the_end(clips: Clips, codec: str, suffix: str) -> None:
    """A recording of a screen: frames come only when something moves, and the file lasts as long as the recording."""
    path = claim_duration(clips.clip(suffix, codec=codec, b_frames=0), clips.path(suffix), seconds=20)
    batch = assert_like_ffmpeg(path, still_until_ms=20_000)
    assert batch.timestamps_ms[2:] == (3960,) * 6
    assert [code for code, _ in batch.warnings] == ["still_end"]


@pytest.mark.parametrize(("codec", "suffix"), [("libvpx", ".webm"), ("libx264", ".mkv")])
def test_no_duration(clips: Clips, codec: str, suffix: str) -> None:
    assert_like_ffmpeg(without_duration(clips.clip(suffix, codec=codec), clips.path(suffix)))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".flv"])
def test_the_first_sample_is_no_key_frame(clips: Clips, suffix: str) -> None:
    source = clips.clip(".mkv", seconds=4, gop=30)
    path = clips.remuxed(source, suffix, change=lambda k, packet: bytes(packet) if k >= 10 else None)
    assert shown_by_ffmpeg(path).numbers[0] == 30
    assert_like_ffmpeg(path)


def test_the_first_sample_of_an_avi_is_no_key_frame(clips: Clips) -> None:
    """The decoder of MPEG-4 shows grey remains until the first key frame, each build others."""
    source = clips.clip(".avi", codec="mpeg4", seconds=4, gop=30, b_frames=0)
    path = clips.remuxed(source, ".avi", shift_ms=-400, change=lambda k, packet: bytes(packet) if k >= 10 else None)
    truth = shown_by_ffmpeg(path)
    assert truth.numbers[20:] == list(range(30, 100))
    assert numbers_of(decode(path, 2, start_ms=2000, end_ms=2080), truth) in ([60, 61], [80, 81])


@pytest.mark.parametrize("wait_ms", [500, 30_000])
def test_a_delay_by_an_edit_list(clips: Clips, wait_ms: int) -> None:
    path = with_edits(clips.clip(".mp4", sound=True), clips.path(".mp4"), [(wait_ms, -1), (4000, 0)])
    batch = assert_like_ffmpeg(path)
    assert abs(batch.video.start_ms - wait_ms) <= 2


# --- frame rates that a header claims --------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [250, 1000, 90_000])
@pytest.mark.parametrize(("suffix", "codec"), [(".mkv", "libx264"), (".webm", "libvpx")])
def test_a_claimed_rate(clips: Clips, suffix: str, codec: str, rate: int) -> None:
    path = with_claimed_rate(clips.clip(suffix, codec=codec, b_frames=0), clips.path(suffix), rate)
    assert assert_like_ffmpeg(path).video.fps == pytest.approx(25, rel=0.01)


@pytest.mark.parametrize("fps", [240, 250, 480, 960])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_slow_motion(clips: Clips, fps: int, suffix: str) -> None:
    path = clips.clip(suffix, seconds=240 / fps, fps=fps)
    assert assert_like_ffmpeg(path).video.fps == pytest.approx(fps, rel=0.05)  # Matroska: whole milliseconds


def test_slow_motion_of_a_phone(clips: Clips) -> None:
    """240.05 frames per second: what phones that promise 240 write."""
    source = clips.clip(".mp4", seconds=1, fps=240)
    path = clips.path(".mp4")
    data = source.read_bytes()
    scale = data.index(b"mdhd") + 4 + 12
    faster = int.from_bytes(data[scale : scale + 4], "big") * 24005 // 24000
    path.write_bytes(data[:scale] + faster.to_bytes(4, "big") + data[scale + 4 :])
    assert assert_like_ffmpeg(path).video.fps == pytest.approx(240.05, rel=1e-4)


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".ts", ".flv"])
def test_a_changing_frame_rate(clips: Clips, suffix: str) -> None:
    """Every second frame is missing for a second, later all are for another one."""
    source = clips.clip(".mkv", gop=1, b_frames=0)
    missing = {*range(26, 50, 2), *range(60, 85)}
    assert_like_ffmpeg(clips.remuxed(source, suffix, change=lambda k, packet: None if k in missing else bytes(packet)))
