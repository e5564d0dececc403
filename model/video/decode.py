"""From a video file to the frames that a model looks at: ``decode_frames``.

The file comes from a stranger, so `model.video.probe` judges it first (with PyAV); then decord decodes the sampled
frames, which FFmpeg scales to the model's size on the way. A native decoder can still crash or hang: run this in a
process that can be killed when the file is not your own.

No torch here: a decode process imports this file.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.types import FrameBatch, FrameGeometry, FramePolicy, VideoInfo
from model.video.framing import fit_square, scaled_size
from model.video.limits import DecodeError, DecodeLimits, check_duration, check_file_frames
from model.video.probe import Header, other_streams_reach, probe, read_header
from model.video.sampling import centre_times, select_frames

__all__ = ["DecodeError", "DecodeLimits", "decode_frames", "probe"]


def _import_decord() -> Any:
    """decord loads every CUDA library it finds installed (600 MB of memory), of which decoding on the CPU uses none."""
    hidden = sys.modules.get("nvidia")
    sys.modules["nvidia"] = None  # type: ignore[assignment]
    try:
        import decord
    finally:
        if hidden is None:
            del sys.modules["nvidia"]
        else:
            sys.modules["nvidia"] = hidden
    decord.logging.set_level(decord.logging.QUIET)  # FFmpeg repeats on stderr what a file tells it to
    return decord


decord = _import_decord()


def decode_frames(
    path: Path,
    *,
    geometry: FrameGeometry,
    num_frames: int,
    policy: FramePolicy = "uniform",
    start_ms: int | None = None,
    end_ms: int | None = None,
    limits: DecodeLimits = DecodeLimits(),
    num_threads: int = 0,
) -> FrameBatch:
    """``num_frames`` frames of the window [start_ms, end_ms) (default: the whole video), upright, as RGB squares.

    Which frames: `model.video.sampling`. A file that was cut off is decoded as long as every sampled time is still
    there. ``num_threads`` = 0 lets the decoder choose. Raises `DecodeError`, or OSError if the file cannot be read.
    """
    _check_parameters(num_frames, policy, start_ms, end_ms, limits)
    header = read_header(path, limits)
    info = header.info
    width, height = scaled_size(geometry, info.width, info.height)
    try:
        reader = decord.VideoReader(str(path.absolute()), width=width, height=height, num_threads=num_threads)
        stored = len(reader)
        check_file_frames(stored, limits)
        times = np.rint(reader.get_frame_timestamp(np.arange(stored)) * 1000.0).astype(np.int64)
        starts_ms = np.maximum.accumulate(times[:, 0])
        duration_ms = _true_duration(path, header, int(max(times[:, 1].max(), starts_ms[-1] + 1)), stored, limits)
        start, end = _window(start_ms, end_ms, duration_ms)
        _check_present(centre_times(num_frames, start, end), times, duration_ms)
        indices = select_frames(
            starts_ms,
            num_frames=num_frames,
            start_ms=start,
            end_ms=end,
            policy=policy,
            keyframes=reader.get_key_indices() if policy == "keyframes" else (),
        )
        frames = _read_frames(reader, indices, width, height, geometry.image_size)
    except DecodeError:
        raise
    except Exception as error:  # decord raises its own errors, RuntimeError, AssertionError and StopIteration
        raise DecodeError(
            "undecodable_video",
            "The video stream cannot be decoded: its data is damaged or incomplete.",
            internal=f"{type(error).__name__}: {error}",
        ) from error
    fps = info.fps or stored * 1000 / duration_ms
    return FrameBatch(
        frames,
        tuple(int(t) for t in starts_ms[indices]),
        VideoInfo(duration_ms, info.width, info.height, fps, info.codec, stored, info.num_bytes),
    )


def _read_frames(
    reader: Any, indices: NDArray[np.int64], width: int, height: int, image_size: int
) -> NDArray[np.uint8]:
    """Frame by frame rather than ``get_batch``: as fast, no second copy of all frames, and right for every width.

    decord hands out rows that FFmpeg padded for alignment and takes the padding for more channels when it happens
    to be a multiple of the width (96 pixels: four "channels"); ``get_batch`` fails on them, so undo it here.
    """
    frames = np.empty((len(indices), image_size, image_size, 3), np.uint8)
    for place, index in enumerate(indices):
        if place and index == indices[place - 1]:
            frames[place] = frames[place - 1]
            continue
        reader.seek_accurate(int(index))
        rows = reader.next().asnumpy().reshape(height, -1)
        fit_square(rows[:, : 3 * width].reshape(height, width, 3), frames[place])
    return frames


# --- judging a request -------------------------------------------------------------------------------------------


def _check_parameters(
    num_frames: int, policy: str, start_ms: int | None, end_ms: int | None, limits: DecodeLimits
) -> None:
    if not 1 <= num_frames <= limits.max_frames:
        raise DecodeError(
            "invalid_parameter", f"num_frames must be between 1 and {limits.max_frames}, not {num_frames}."
        )
    if policy not in ("uniform", "keyframes"):
        raise DecodeError("invalid_parameter", "The frame policy must be uniform or keyframes.")
    if start_ms is not None and start_ms < 0:
        raise DecodeError("invalid_parameter", f"start_ms must not be negative, not {start_ms}.")
    if end_ms is not None and end_ms <= (start_ms or 0):
        raise DecodeError("invalid_parameter", f"end_ms must be greater than start_ms, not {end_ms}.")


def _window(start_ms: int | None, end_ms: int | None, duration_ms: int) -> tuple[int, int]:
    start, end = start_ms or 0, min(duration_ms if end_ms is None else end_ms, duration_ms)
    if start >= duration_ms:
        raise DecodeError("invalid_parameter", f"start_ms is {start}, but the video is only {duration_ms} ms long.")
    return start, end


def _slack_ms(duration_ms: int, num_frames: int) -> int:
    """How far a claimed end may lie behind the last frame's before something is missing."""
    return max(500, 2 * duration_ms // num_frames)


def _true_duration(path: Path, header: Header, seen_ms: int, num_frames: int, limits: DecodeLimits) -> int:
    """The video's length: as its frames show it, or as claimed if the end of the file is missing."""
    check_duration(seen_ms, limits)
    claimed = header.duration_ms
    if claimed is None or claimed <= seen_ms + _slack_ms(seen_ms, num_frames):
        return seen_ms
    if header.duration_is_shared and other_streams_reach(path, header.demuxer, claimed - 1000):
        return seen_ms  # nothing is missing: the sound simply lasts longer than the picture
    return claimed


def _check_present(wanted_ms: NDArray[np.int64], times: NDArray[np.int64], duration_ms: int) -> None:
    """Refuse if a sampled time lies behind the last frame of a file that was cut off."""
    end = int(times[:, 1].max())
    if wanted_ms[-1] >= end + _slack_ms(end, len(times)):
        raise DecodeError(
            "undecodable_video",
            f"The video is incomplete: it should last {duration_ms} ms, but its data ends after {end} ms.",
        )
