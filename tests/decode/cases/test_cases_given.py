"""Files of users' reports, made by other programs. They are not part of the repository: without them, skipped."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.video_cases import (
    assert_like_ffmpeg,
    assert_nearly_like_ffmpeg,
    decode,
    numbers_of,
    shown_by_ffmpeg,
)
from support.videos import corner_names

FOLDER = Path(os.environ.get("VIDLEX_VIDEO_CASES") or "none")


@dataclass(frozen=True)
class Row:
    """What the report says of a file."""

    num_frames: int | None = None
    numbers: tuple[int, ...] = ()  # of 8 uniform frames, each at most one off
    first: int | None = None
    last: int | None = None
    duration_ms: int | None = None
    still_until_ms: int | None = None
    fps: float | None = None
    size: tuple[int, int] = (160, 96)
    corners: str = ""
    warning: str = ""


ROWS = {
    "A1_cut_gop2s.mp4": Row(152, first=10, last=161, duration_ms=6080),
    "A2_cut_gop2s_silent.mp4": Row(302, (43, 81, 119, 157, 195, 233, 271, 309), first=25, last=327),
    "A3_cut_gop10s.mp4": Row(127, first=100, last=227),
    "B1_starts_at_1h.mkv": Row(202, duration_ms=8100),
    "B2_starts_at_3h.mkv": Row(202, duration_ms=8100),
    "B3_picture_5s_after_sound.mkv": Row(202, duration_ms=8100),
    "B4_screen_static_at_end.webm": Row(60, still_until_ms=60_000),
    "C1_ts_joined_mid_gop.ts": Row(250, first=150, last=399),
    "C3_first_sample_no_key.mp4": Row(170, first=50, last=220),
    "C5_first_gop_of_150_damaged.mkv": Row(250, first=150, last=399),
    "D1_bad_sector_2KiB.mp4": Row(344, first=0, last=399, duration_ms=15_960, warning="damaged_frames"),
    "E1_ms_clock.mkv": Row(60, fps=25),
    "E3_slow_motion_240_05.mp4": Row(480, duration_ms=2000, fps=240.05),
    "F1_h264_b_frames.avi": Row(100, (6, 18, 31, 43, 56, 68, 81, 93)),
    "F2_packed_b_frames.avi": Row(60, (3, 11, 18, 26, 33, 41, 48, 56)),
    "G1_intra_refresh.ts": Row(200),
    "G3_no_sample_is_sync.mp4": Row(202),
    "G4_two_frames_a_pes.ts": Row(100),
    "G5_paff_fields.ts": Row(12, (0, 2, 3, 5, 6, 8, 9, 11), first=0, last=11, size=(96, 96)),
    "H_hflip.mp4": Row(corners="grwb"),
    "H_vflip.mp4": Row(corners="bwrg"),
    "H_sar.mp4": Row(size=(192, 108)),
    "I1_ts_not_on_a_packet.ts": Row(102),
    "I3_mkv_36_fonts.mkv": Row(102),
}  # fmt: skip


def names() -> list[str]:
    found = {path.name for path in FOLDER.glob("*") if path.suffix != ".md"} if FOLDER.is_dir() else set()
    return sorted(found | ROWS.keys())


@pytest.mark.parametrize("name", names())
def test_reported_files(name: str) -> None:
    path, row = FOLDER / name, ROWS.get(name, Row())
    if not path.exists():
        pytest.skip(f"{path} is not here")
    truth = shown_by_ffmpeg(path)
    if row.warning:
        batch = assert_nearly_like_ffmpeg(path, num_frames=40, keys=range(0, 400, 50))
        assert row.warning in [code for code, _ in batch.warnings]
        batch = decode(path)
    else:
        batch = assert_like_ffmpeg(path, truth=truth, still_until_ms=row.still_until_ms)
        assert [code for code, _ in batch.warnings] == (["still_end"] if row.still_until_ms else [])
    info = batch.video
    assert row.num_frames in (None, len(truth))
    assert row.first in (None, truth.numbers[0])
    assert row.last in (None, truth.numbers[-1])
    if row.numbers:
        numbers = numbers_of(batch, truth)
        assert all(abs(got - wanted) <= 1 for got, wanted in zip(numbers, row.numbers, strict=True)), numbers
    if row.duration_ms:
        assert abs(info.duration_ms - row.duration_ms) <= 40
    if row.fps:
        assert info.fps == pytest.approx(row.fps, rel=1e-3)
    assert (info.width, info.height) == row.size
    if row.corners:
        assert "".join(corner_names(batch.frames[0])) == row.corners
