"""Where a container begins, what else is in it, and recordings glued together."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from support.video_cases import (
    Shown,
    assert_frames_are,
    assert_like_ffmpeg,
    assert_same_length,
    decode,
    ffmpeg,
    numbers_of,
    shown_by_ffmpeg,
)
from support.video_cases_files import Clips
from support.video_cases_mp4 import with_large_mdat
from support.video_cases_ts import restrided

MIB = 2**20
GAP_MS = 10_000
"""FFmpeg takes a longer gap in the clock of a stream for a join, too."""
FASTSTART = (("movflags", "faststart"),)
FRAGMENTED = (("movflags", "frag_keyframe+empty_moov+default_base_moof"),)


# --- seeking ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codec", "suffix"),
    [
        ("libx264", ".mp4"),
        ("libx264", ".mkv"),
        ("libx264", ".ts"),
        ("libx264", ".flv"),
        ("libx264", ".avi"),
        ("mpeg4", ".avi"),
        ("mpeg2video", ".ts"),
        ("mpeg2video", ".mpg"),
        ("mpeg1video", ".mpg"),
        ("libvpx", ".webm"),
        ("wmv2", ".wmv"),
        ("mjpeg", ".mov"),
    ],
)
@pytest.mark.parametrize("b_frames", [0, 2])
def test_frames_of_windows(clips: Clips, codec: str, suffix: str, b_frames: int) -> None:
    """A window late in the file is reached by a seek, which counts differently in each container."""
    if codec == "mpeg1video":
        path = clips.path(suffix)
        source = clips.clip(".mkv", seconds=12, gop=25)
        ffmpeg("-i", source, "-c:v", codec, "-q:v", "4", "-g", "25", "-bf", str(b_frames), path)
    else:
        path = clips.clip(suffix, codec=codec, seconds=12, gop=25, b_frames=b_frames, sound=suffix in (".mkv", ".ts"))
    truth = shown_by_ffmpeg(path)
    assert truth.numbers == list(range(300))
    for start, end in ((0, 12_000), (3000, 4000), (9900, 10_100), (11_000, 12_000)):
        assert_frames_are(decode(path, 3, start_ms=start, end_ms=end), truth, start, end)


# --- transport streams -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [1, 100, 188 * 3 + 50, 1000])
def test_a_stream_that_does_not_begin_at_a_packet(clips: Clips, offset: int) -> None:
    source = clips.clip(".ts", seconds=4, gop=25, sound=True)
    path = clips.path(".ts")
    path.write_bytes(source.read_bytes()[offset:])
    assert_like_ffmpeg(path)


@pytest.mark.parametrize("size", [192, 204])
@pytest.mark.parametrize("offset", [0, 77])
def test_packets_of_other_sizes(clips: Clips, size: int, offset: int) -> None:
    whole = restrided(clips.clip(".ts", seconds=4, gop=25, sound=True), clips.path(".ts"), size)
    path = clips.path(".m2ts" if size == 192 else ".ts")
    path.write_bytes(whole.read_bytes()[offset:])
    assert_like_ffmpeg(path)


def test_a_stream_after_other_bytes(clips: Clips) -> None:
    """A tuner's first packets are noise."""
    path = clips.path(".ts")
    path.write_bytes(bytes(range(1, 200)) * 3 + clips.clip(".ts", gop=25).read_bytes())
    assert_like_ffmpeg(path)


# --- MP4 and MOV -----------------------------------------------------------------------------------------------

WIDE = b"\0\0\0\x08wide"


@pytest.mark.parametrize(
    ("num_bytes", "bits", "lead"),
    [
        (17 * MIB, 32, b""),
        (17 * MIB, 32, WIDE),
        (300 * MIB, 32, b""),
        (20 * MIB, 64, b""),
        (17 * MIB, 32, b"\0\0\0\x10free" + bytes(8)),
        (1000, 32, b""),
        (1000, 64, WIDE),
    ],
)
@pytest.mark.parametrize("suffix", [".mov", ".mp4"])
def test_pictures_before_the_header(clips: Clips, suffix: str, num_bytes: int, bits: int, lead: bytes) -> None:
    """The size of the first box is not small, so its first byte is not zero."""
    source = clips.clip(suffix, sound=False)
    assert_like_ffmpeg(with_large_mdat(source, clips.path(suffix), num_bytes=num_bytes, size_bits=bits, lead=lead))


# --- attachments -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num", [1, 36, 120])
def test_attached_fonts(clips: Clips, num: int) -> None:
    font = clips.path(".ttf")
    font.write_bytes(b"\0\1\0\0" + bytes(200))
    attach = [word for k in range(num) for word in ("-attach", str(font), f"-metadata:s:t:{k}", "mimetype=font/ttf")]
    assert_like_ffmpeg(clips.copied(clips.clip(".mkv", sound=True), ".mkv", after=tuple(attach)))


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_a_cover_picture(clips: Clips, suffix: str) -> None:
    cover, path = clips.path(".png"), clips.path(suffix)
    Image.new("RGB", (300, 300), "red").save(cover)
    if suffix == ".mkv":
        ffmpeg("-i", clips.clip(suffix), "-attach", cover, "-metadata:s:t", "mimetype=image/png", "-c", "copy", path)
    else:
        inputs = ("-i", clips.clip(suffix), "-i", cover, "-map", "0", "-map", "1")
        ffmpeg(*inputs, "-c", "copy", "-disposition:v:1", "attached_pic", path)
    assert_like_ffmpeg(path)


# --- glued recordings ------------------------------------------------------------------------------------------


def glued(clips: Clips, *parts: Path) -> Path:
    path = clips.path(parts[0].suffix)
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


GLUED = [
    ("libx264", ".ts"),
    ("mpeg2video", ".ts"),
    ("libx264", ".mkv"),
    ("libvpx", ".webm"),
    ("libvpx-vp9", ".webm"),
    ("mpeg4", ".avi"),
    ("mpeg2video", ".mpg"),
    ("gif", ".gif"),
]


@pytest.mark.parametrize(("codec", "suffix"), GLUED)
@pytest.mark.parametrize("num_parts", [2, 3])
def test_glued_recordings(clips: Clips, codec: str, suffix: str, num_parts: int) -> None:
    """Each part has a clock of its own; all of them are shown, one after the other."""
    parts = [
        clips.clip(suffix, codec=codec, seconds=2 - 0.4 * k, first=100 * k, sound=suffix == ".ts")
        for k in range(num_parts)
    ]
    path = glued(clips, *parts)
    truth = shown_by_ffmpeg(path, max_gap_ms=GAP_MS)
    if num_parts == 2 or suffix not in (".mkv", ".webm"):  # of these, FFmpeg finds two parts at most
        assert truth.numbers == [100 * k + i for k in range(num_parts) for i in range(50 - 10 * k)]
    assert_like_glued(path, truth)


def assert_like_glued(path: Path, truth: Shown) -> None:
    """As `assert_like_ffmpeg`, but the moment at which a part begins may differ by some frames."""
    batch = decode(path, 8)
    assert batch.video.num_frames == len(truth)
    assert abs(batch.video.duration_ms - truth.times_ms[-1]) <= 6 * truth.step_ms
    every = numbers_of(decode(path, len(truth)), truth)
    places = [truth.numbers.index(number) for number in every]
    assert places == sorted(places)
    assert len(set(places)) > 0.9 * len(truth)
    assert (0 in places[:2]) and (len(truth) - 1 in places[-2:])


@pytest.mark.parametrize(
    ("codec", "suffix", "muxer"),
    [
        ("libx264", ".mp4", FASTSTART),
        ("libx264", ".mp4", FRAGMENTED),
        ("libx264", ".flv", ()),
        ("wmv2", ".wmv", ()),
    ],
)
def test_glued_files_of_which_players_show_the_first(
    clips: Clips, codec: str, suffix: str, muxer: tuple[tuple[str, str], ...]
) -> None:
    parts = [clips.clip(suffix, codec=codec, seconds=2, first=first, muxer=muxer) for first in (0, 100)]
    path = glued(clips, *parts)
    truth = shown_by_ffmpeg(path, max_gap_ms=GAP_MS)
    batch = decode(path, 8)
    numbers = numbers_of(batch, truth)
    assert set(numbers) <= set(truth.numbers)
    if len(truth) == 50:
        assert_like_ffmpeg(path, truth=truth)


@pytest.mark.parametrize("first_ms", [10_800_000, 60_000])
def test_glued_recordings_whose_clock_restarts(clips: Clips, first_ms: int) -> None:
    """The first part ran for hours. FFmpeg takes the step back for an overflow of the clock, a day later."""
    source = clips.clip(".mkv", seconds=2, sound=True)
    later = clips.remuxed(source, ".ts", shift_ms=first_ms)
    again = clips.remuxed(clips.clip(".mkv", seconds=2, first=100, sound=True), ".ts", shift_ms=500)
    path = glued(clips, later, again)
    truth = shown_by_ffmpeg(path, max_gap_ms=GAP_MS)
    assert truth.numbers == [*range(50), *range(100, 150)]
    assert_like_glued(path, truth)


def test_glued_streams_whose_clock_jumps_forward(clips: Clips) -> None:
    """The second part was recorded an hour later. Nothing was shown in between."""
    source = clips.clip(".mkv", seconds=2)
    later = clips.remuxed(clips.clip(".mkv", seconds=2, first=100), ".ts", shift_ms=3_600_000)
    path = glued(clips, clips.remuxed(source, ".ts", shift_ms=500), later)
    truth = shown_by_ffmpeg(path, max_gap_ms=GAP_MS)
    assert truth.numbers == [*range(50), *range(100, 150)]
    assert_like_glued(path, truth)


def test_a_window_of_glued_recordings(clips: Clips) -> None:
    parts = [clips.clip(".ts", seconds=2, first=first) for first in (0, 100)]
    path = glued(clips, *parts)
    truth = shown_by_ffmpeg(path, max_gap_ms=GAP_MS)
    assert set(numbers_of(decode(path, 5, start_ms=2500, end_ms=3500), truth)) <= set(range(100, 150))
    batch = decode(path, 5, start_ms=500, end_ms=1500)
    assert_frames_are(batch, truth, 500, 1500)
    assert_same_length(decode(parts[0]).video.duration_ms, shown_by_ffmpeg(parts[0]))
