"""What ffmpeg shows of a video file, frame by frame, and the check that our decoder shows the same.

The reference is the program of the package ``imageio-ffmpeg``: another build and version than the libraries in PyAV. It
decodes a file in order from start to end, on one thread. Frame k of a test video shows the number k.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import imageio_ffmpeg  # type: ignore[import-untyped]
import numpy as np
import pytest
from numpy.typing import NDArray

from support.videos import read_number
from vidlex.model.decode.decoder import decode_frames
from vidlex.model.decode.limits import DecodeError
from vidlex.model.types import FrameBatch, FrameGeometry

WHOLE = FrameGeometry(96, "squash")  # every part of the picture, whatever its shape
_CLOCK_MS = 1.6  # our times and the sampled moments are whole milliseconds
_FRAME = re.compile(
    r"n: *\d+ pts: *\S+ pts_time:(\S+) +duration: *\S+ duration_time:(\S+)"
    r".*? sar:(\d+)/(\d+) s:(\d+)x(\d+).*? iskey:(\d)"
)


@cache
def _program() -> str:
    return str(imageio_ffmpeg.get_ffmpeg_exe())


def ffmpeg(*arguments: str | Path, data: bytes | None = None) -> None:
    """Runs ffmpeg, which must succeed; ``data`` is its standard input."""
    command = [_program(), "-nostdin", "-v", "error", "-y", *map(str, arguments)]
    if data is not None:
        command.remove("-nostdin")
    done = subprocess.run(command, input=data, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode(errors="replace")


@dataclass(frozen=True, eq=False)
class Shown:
    """The frames of a file as ffmpeg shows them."""

    times_ms: NDArray[np.float64]  # [N] from the first frame on; increasing
    numbers: list[int]  # [N] that the frames show
    is_key: NDArray[np.bool_]  # [N]
    last_ms: float  # how long the last frame is shown, 0 if that is unknown
    first_ms: float  # time of the first frame on the clock of the file
    width: int  # as displayed: upright, with square pixels
    height: int
    pixels: tuple[int, int]  # width, height of the upright picture in pixels
    first: NDArray[np.uint8]  # [H, W, 3] the first frame, upright
    errors: str

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def keys(self) -> set[int]:
        """The numbers of the key frames."""
        return {number for number, is_key in zip(self.numbers, self.is_key, strict=True) if is_key}

    @property
    def step_ms(self) -> float:
        """The usual time from a frame to the next one."""
        return float(np.median(np.diff(self.times_ms))) if len(self) > 1 else self.last_ms

    def at(self, time_ms: float) -> set[int]:
        """Indices of the frames that may be on the screen then: two at the moment of a change."""
        places = np.searchsorted(self.times_ms, [time_ms - _CLOCK_MS, time_ms + _CLOCK_MS], side="right") - 1
        return set(range(max(0, places[0]), max(0, places[1]) + 1))


def shown_by_ffmpeg(path: Path, *, max_gap_ms: float | None = None) -> Shown:
    """The frames in the order of their times.

    With ``max_gap_ms``, for glued recordings, they are in their stored order: a clock that goes back, or forward by
    more than that, goes on from where it was, one frame later.
    """
    done = subprocess.run(
        [
            *(_program(), "-nostdin", "-nostats", "-copyts", "-threads", "1", "-i", str(path)),
            *("-map", "0:v:0", "-fps_mode", "passthrough", "-vf", "showinfo"),
            *("-f", "rawvideo", "-pix_fmt", "rgb24", "-"),
        ],
        capture_output=True,
        check=False,
    )
    log = done.stderr.decode(errors="replace")
    rows = _FRAME.findall(log)
    assert rows, f"ffmpeg shows no frame of {path.name}: {log[-500:]}"
    sar_width, sar_height, width, height = (int(value) for value in rows[0][2:6])
    shape = (-1, height, width, 3)
    pictures = np.frombuffer(done.stdout, np.uint8).reshape(shape)
    assert len(pictures) == len(rows)
    times = np.array([float(row[0]) * 1000 for row in rows])
    order = np.argsort(times, kind="stable")
    if max_gap_ms is not None:
        times, order = np.array(_unrolled(times.tolist(), max_gap_ms)), np.arange(len(rows))
    has_ratio = sar_width > 0 and sar_height > 0
    return Shown(
        times_ms=times[order] - times[order[0]],
        numbers=[number_of(picture) for picture in pictures[order]],
        is_key=np.array([rows[i][6] == "1" for i in order]),
        last_ms=float(rows[order[-1]][1]) * 1000,
        first_ms=float(times[order[0]]),
        width=round(width * sar_width / sar_height) if has_ratio else width,
        height=height,
        pixels=(width, height),
        first=pictures[order[0]],
        errors=log,
    )


def number_of(picture: NDArray[np.uint8]) -> int:
    """The number in the central square of an upright picture [H, W, 3], whatever the shape of its pixels."""
    height, width = picture.shape[:2]
    side = min(width, height)
    top, left = (height - side) // 2, (width - side) // 2
    return read_number(picture[top : top + side, left : left + side])


def _unrolled(times: list[float], max_gap_ms: float) -> list[float]:
    step = float(np.median(np.abs(np.diff(times)))) if len(times) > 1 else 0.0
    result, offset = times[:1], 0.0
    for before, time in pairwise(times):
        if not before < time <= before + max_gap_ms:
            offset += before + step - time
        result.append(time + offset)
    return result


def decode(path: Path, num_frames: int = 8, *, geometry: FrameGeometry = WHOLE, **job: Any) -> FrameBatch:
    return decode_frames(path, geometry=geometry, num_frames=num_frames, **job)


def refusal(path: Path, **job: Any) -> DecodeError:
    with pytest.raises(DecodeError) as caught:
        decode(path, **job)
    return caught.value


def assert_like_ffmpeg(
    path: Path, *, truth: Shown | None = None, num_frames: int = 8, still_until_ms: float | None = None, **job: Any
) -> FrameBatch:
    """Our answer for ``path`` is ffmpeg's: number, times, size and rate of the frames, and which are shown when.

    Compares ``num_frames`` frames of the whole video and then as many as it has, at most 100. ``still_until_ms`` is
    the end that the file claims, to which its last frame stands.
    """
    truth = truth or shown_by_ffmpeg(path)
    batch = decode(path, num_frames, **job)
    info = batch.video
    assert info.num_frames == len(truth)
    assert_same_length(info.duration_ms, truth, still_until_ms)
    assert abs(info.width - truth.width) <= 1
    assert info.height == truth.height
    if len(truth) > 2:
        rates = (
            1000 * (len(truth) - 1) / truth.times_ms[-1],
            1000 / truth.step_ms,
        )  # these differ if frames are missing
        assert any(info.fps == pytest.approx(rate, rel=0.04) for rate in rates), f"{info.fps} frames/s, not {rates}"
    assert_frames_are(batch, truth)
    assert_frames_are(decode(path, min(len(truth), 100), **job), truth)
    return batch


def assert_same_length(duration_ms: int, truth: Shown, still_until_ms: float | None = None) -> None:
    last = truth.times_ms[-1]
    if still_until_ms is not None:
        assert abs(duration_ms - still_until_ms) <= max(2.0, truth.step_ms), "the last frame stands to the end"
        return
    gaps = [truth.last_ms, truth.step_ms, *np.diff(truth.times_ms)[-1:]]
    assert last < duration_ms <= last + max(gaps) + 2, f"{duration_ms} ms; the last frame begins at {last:.1f} ms"


def assert_frames_are(batch: FrameBatch, truth: Shown, start_ms: float = 0.0, end_ms: float | None = None) -> None:
    """The frames of ``batch`` are those on the screen at the evenly spaced moments of [start_ms, end_ms).

    If the window has no more frames than the batch, they are each of them once, and the last one repeated.
    """
    numbers = numbers_of(batch, truth)
    end_ms = batch.video.duration_ms if end_ms is None else end_ms
    first, last = min(truth.at(start_ms)), max(truth.at(end_ms - 1))
    moments = moments_of(batch, start_ms, end_ms)
    for k, (number, time, moment) in enumerate(zip(numbers, batch.timestamps_ms, moments, strict=True)):
        allowed = truth.at(moment) if last - first >= len(numbers) else {min(first + k, last)}
        expected = {truth.numbers[i]: float(truth.times_ms[i]) for i in allowed}
        assert number in expected, f"{number} is shown at {moment:.1f} ms, not {sorted(expected)}: {numbers}"
        assert abs(time - expected[number]) <= _CLOCK_MS, f"frame {number} is at {expected[number]:.1f} ms, not {time}"


def assert_nearly_like_ffmpeg(path: Path, *, keys: Collection[int], num_frames: int = 8, fps: int = 25) -> FrameBatch:
    """For a damaged file. A frame is intact if ffmpeg shows it with the number that its time in its group asks for.

    ``keys`` are the numbers of the key frames of the undamaged file.

    At a moment whose group of pictures has no damage so far, ours is the frame of the moment. Elsewhere it is an
    intact frame about as near as such groups are, or what is left of the frame of the moment, which each build of
    FFmpeg repairs in its own way; always with its own time.
    """
    truth = shown_by_ffmpeg(path)
    step = 1000 / fps
    is_intact = _is_intact(truth, keys, step)
    intact = truth.times_ms[is_intact]
    sure = truth.times_ms[_is_before_damage(truth, is_intact, step)]
    assert len(sure) > 1
    batch = decode(path, num_frames)
    numbers = numbers_of(batch, truth)
    for number, time, moment in zip(numbers, batch.timestamps_ms, moments_of(batch), strict=True):
        shown = truth.times_ms[list(truth.at(moment))]
        start = min(truth.times_ms, key=lambda known: abs(known - time))
        what = f"{number} of {time} ms at {moment:.1f} ms: {numbers}"
        assert abs(start - time) <= _CLOCK_MS, f"ffmpeg shows no frame with this time: {what}"
        known = {truth.numbers[i] for i in np.flatnonzero(np.abs(truth.times_ms - start) <= _CLOCK_MS)}
        assert number in known or start not in intact, f"the frame of this time is {known}: {what}"
        if start in shown:
            continue
        near = any(abs(time - at) <= np.abs(sure - at).min() + 2 * step for at in (moment, *shown))
        assert start in intact, f"neither intact nor the frame of the moment: {what}"
        assert not np.isin(shown, sure).any() or moment - shown.max() > step, (
            f"the frame of the moment is intact: {what}"
        )
        assert near, f"another intact frame is nearer: {what}"
    return batch


def _groups(truth: Shown) -> NDArray[np.int64]:
    """[N] number of the group of pictures of each frame, 0 before the first key frame."""
    groups: NDArray[np.int64] = np.cumsum(truth.is_key).astype(np.int64)
    return groups


def _is_intact(truth: Shown, keys: Collection[int], step_ms: float) -> NDArray[np.bool_]:
    """[N] whether a frame has the number that follows from its time after the key frame of its group."""
    numbers, groups = np.array(truth.numbers), _groups(truth)
    key = np.flatnonzero(truth.is_key)[np.maximum(groups - 1, 0)]
    late = (truth.times_ms - truth.times_ms[key]) - (numbers - numbers[key]) * step_ms
    is_intact: NDArray[np.bool_] = (groups > 0) & np.isin(numbers[key], list(keys)) & (np.abs(late) <= _CLOCK_MS)
    return is_intact


def _is_before_damage(truth: Shown, is_intact: NDArray[np.bool_], step_ms: float) -> NDArray[np.bool_]:
    """[N] whether the group of pictures of each frame is intact up to it and a few frames more.

    A few, because the frames before a damaged one in time may be stored after it; the last ones before the file ends
    may be, too.
    """
    is_whole = is_intact & (np.diff(truth.times_ms, append=truth.times_ms[-1] + step_ms) <= 1.5 * step_ms)
    groups = _groups(truth)
    result = np.zeros(len(truth), np.bool_)
    for k in range(len(truth)):
        group = np.flatnonzero(groups == groups[k])
        is_end = k + 6 > len(truth)
        result[k] = not is_end and is_whole[group[0] : min(k + 6, group[-1] + 1)].all()
    return result


def moments_of(batch: FrameBatch, start_ms: float = 0.0, end_ms: float | None = None) -> list[float]:
    step = ((batch.video.duration_ms if end_ms is None else end_ms) - start_ms) / len(batch.frames)
    return [start_ms + (k + 0.5) * step for k in range(len(batch.frames))]


def numbers_of(batch: FrameBatch, truth: Shown) -> list[int]:
    """The numbers that frames of the geometry `WHOLE` show."""
    width, height = truth.pixels
    side = min(width, height)
    left, top = (width - side) / 2 / width, (height - side) / 2 / height
    return [read_number(frame, (left, top, 1 - left, 1 - top)) for frame in batch.frames]
