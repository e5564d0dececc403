"""From a video file to the frames that a model looks at: ``decode_frames``.

The file comes from a stranger, so `model.decode.probe` judges it first; then `model.decode.readers` decodes the sampled
frames, which FFmpeg scales to the model's size on the way. A native decoder can still crash or hang: run this in a
process that can be killed when the file is not your own.

No torch here: a decode process imports this file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vidlex.model.decode.frame_index import FrameIndex
from vidlex.model.decode.framing import fit_square, scaled_size
from vidlex.model.decode.limits import DecodeError, DecodeLimits, check_duration
from vidlex.model.decode.probe import Header, other_streams_reach, read_header
from vidlex.model.decode.readers import Picture, read_by_count, read_by_time
from vidlex.model.decode.sampling import centre_times, select_frames
from vidlex.model.decode.torchcodec_reader import read_by_torchcodec
from vidlex.model.types import DecoderName, FrameBatch, FrameGeometry, FramePolicy, VideoInfo

_MAX_SHARED_PIXELS = 4096 * 2304
"""Of a larger picture one decoder alone is enough for a process's memory: each keeps up to some twenty."""
_MAX_THREADS = 16
"""FFmpeg's own bound. Each holds pictures: of 8192x4320, 64 of them took more than the 2 GiB of a decode process."""
_ORDERS: dict[DecoderName, tuple[DecoderName, ...]] = {
    "auto": ("pyav", "decord"),
    "pyav": ("pyav",),
    "decord": ("decord", "pyav"),
    "torchcodec": ("torchcodec", "pyav"),
}
"""Who reads a file, and who when that fails. PyAV is always right; the others may be wanted for their speed."""
_MIN_BALANCE = 0.75
"""Several decoders are used if the busiest has at most this share of the frames."""


def decode_frames(
    path: Path,
    *,
    geometry: FrameGeometry,
    num_frames: int,
    segment_ms: int | None = None,
    policy: FramePolicy = "uniform",
    start_ms: int | None = None,
    end_ms: int | None = None,
    limits: DecodeLimits = DecodeLimits(),
    num_threads: int = 0,
    decoder: DecoderName = "auto",
) -> FrameBatch:
    """``num_frames`` frames of the window [start_ms, end_ms) (default: the whole video), upright, as RGB squares.

    With ``segment_ms`` the window is cut into segments of that length, of which the last may be shorter, and the answer
    has ``num_frames`` times as many frames as there are segments, evenly over the window. Which frames:
    `vidlex.model.decode.sampling`. A file that was cut off is decoded as long as every sampled time is still there.
    ``num_threads`` = 0 takes one for each core, and never more than 16; they change no pixel. ``decoder`` is
    who reads the file first, and changes no pixel either. Raises `DecodeError`, or OSError if the file cannot be read.
    """
    _check_parameters(num_frames, policy, start_ms, end_ms, limits)
    if segment_ms is not None and segment_ms < 1:
        raise DecodeError("invalid_parameter", f"segment_ms must be positive, not {segment_ms}.")
    header = read_header(path, limits, with_index=True)
    info, index = header.info, header.index
    if index is None:
        raise DecodeError("undecodable_video", "The video has no frames.")
    duration_ms = _true_duration(path, header, index.end_ms, len(index), limits)
    start, end = _window(start_ms, end_ms, duration_ms)
    if segment_ms is not None:
        num_frames *= len(range(start, end, segment_ms))
        if num_frames > limits.max_frames:
            raise DecodeError("too_many_frames", f"The segments need more than {limits.max_frames} frames.")
    _check_present(int(centre_times(num_frames, start, end)[-1]), index.end_ms, len(index), duration_ms)
    indices = select_frames(
        index.starts_ms,
        num_frames=num_frames,
        start_ms=start,
        end_ms=end,
        policy=policy,
        keyframes=index.keyframes,
    )
    frames = _read(
        path, header, index, indices, geometry=geometry, limits=limits, num_threads=num_threads, decoder=decoder
    )
    fps = info.fps or len(index) * 1000 / duration_ms
    return FrameBatch(
        frames,
        tuple(int(t) for t in index.starts_ms[indices]),
        VideoInfo(duration_ms, info.width, info.height, fps, info.codec, len(index), info.num_bytes),
    )


def _read(
    path: Path,
    header: Header,
    index: FrameIndex,
    indices: NDArray[np.int64],
    *,
    geometry: FrameGeometry,
    limits: DecodeLimits,
    num_threads: int,
    decoder: DecoderName,
) -> NDArray[np.uint8]:
    """[T, S, S, 3], by the first of the decoder's order that can."""
    wanted, copies = np.unique(indices, return_counts=True)
    size = scaled_size(geometry, header.info.width, header.info.height)
    frames = np.empty((len(indices), geometry.image_size, geometry.image_size, 3), np.uint8)
    threads = min(num_threads or os.cpu_count() or 1, _MAX_THREADS)
    many = 1 if header.info.width * header.info.height > _MAX_SHARED_PIXELS else threads
    parts = _shares(index, wanted, many)
    ends = np.cumsum(copies)

    def by_time(first: int, last: int) -> None:
        pictures = read_by_time(
            path,
            header,
            index,
            wanted[first:last],
            size=size,
            limits=limits,
            num_threads=threads if len(parts) == 1 else 1,
        )
        _fill(frames[ends[first] - copies[first] : ends[last - 1]], pictures, copies[first:last])

    def all_by_time() -> None:
        with ThreadPoolExecutor(len(parts)) as pool:
            for _ in pool.map(lambda part: by_time(*part), parts):
                pass

    def by_count() -> None:
        _fill(frames, read_by_count(path, index, wanted, size=size, num_threads=threads), copies)

    def by_torchcodec() -> None:
        pictures = read_by_torchcodec(path, index, wanted, size=size, rotation=header.rotation, num_threads=threads)
        _fill(frames, pictures, copies)

    readers: dict[DecoderName, Callable[[], None]] = {"pyav": all_by_time, "torchcodec": by_torchcodec}
    if index.is_simple and header.demuxer != "mpegts":  # decord miscounts elsewhere
        readers["decord"] = by_count
    failures = []
    for name in _ORDERS[decoder]:
        if name not in readers:
            continue
        try:
            readers[name]()
        except MemoryError:
            raise
        except Exception as error:  # decord raises its own errors, RuntimeError, AssertionError and StopIteration
            failures.append(f"{type(error).__name__}: {error}")
        else:
            return frames
    raise DecodeError(
        "undecodable_video",
        "The video stream cannot be decoded: its data is damaged or incomplete.",
        internal="; then ".join(failures),
    )


def _shares(index: FrameIndex, wanted: NDArray[np.int64], num_shares: int) -> list[tuple[int, int]]:
    """Parts [first, last) of ``wanted`` for several decoders side by side, each with about as many frames to decode.

    What one keyframe leads to stays together. Several decoders with a thread each beat several threads of one, which
    have to start anew behind each keyframe that is sought; but one is all there is to do where one group of pictures
    holds most of the work.
    """
    begins = np.searchsorted(index.keyframes, wanted, side="right") - 1
    starts = np.flatnonzero(np.diff(begins, prepend=-1))  # where another keyframe's frames begin
    lasts = np.append(starts[1:], len(wanted))
    costs = wanted[lasts - 1] - index.keyframes[begins[starts]] + 1
    share_of = ((np.cumsum(costs) - costs / 2) * num_shares / costs.sum()).astype(np.int64)
    loads = np.bincount(share_of, weights=costs)
    if num_shares == 1 or loads.max() > _MIN_BALANCE * costs.sum():
        return [(0, len(wanted))]
    edges = starts[np.flatnonzero(np.diff(share_of, prepend=-1))].tolist()
    return list(zip(edges, [*edges[1:], len(wanted)], strict=True))


def _fill(frames: NDArray[np.uint8], pictures: Iterator[Picture], copies: NDArray[np.int64]) -> None:
    """Lay each picture into as many of the ``frames`` as it stands for."""
    place = 0
    for picture, count in zip(pictures, copies.tolist(), strict=True):
        fit_square(picture, frames[place])
        frames[place + 1 : place + count] = frames[place]
        place += count


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


def _check_present(last_ms: int, seen_ms: int, num_frames: int, duration_ms: int) -> None:
    """Refuse if the last sampled time lies behind the last frame of a file that was cut off."""
    if last_ms >= seen_ms + _slack_ms(seen_ms, num_frames):
        raise DecodeError(
            "undecodable_video",
            f"The video is incomplete: it should last {duration_ms} ms, but its data ends after {seen_ms} ms.",
        )
