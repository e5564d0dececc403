"""Decodes the sampled frames of a video file, scaled to the model's input size.

Files are untrusted: `model.decode.probe` validates a file before `model.decode.readers` decodes it. Native decoders can
still crash or hang: decode untrusted files in a process that can be killed.

Imports no torch: every decode process loads this module and must stay small.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

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

_MAX_PARALLEL_PIXELS = 4096 * 2304  # larger pictures use one decoder: each holds up to about twenty of them
_MAX_THREADS = 16  # FFmpeg's maximum; 64 threads exceeded the 2 GiB of a decode process at 8192x4320
# readers to try in order; PyAV supports every file, the others can be faster
_READER_ORDER: dict[DecoderName, tuple[DecoderName, ...]] = {
    "auto": ("pyav", "decord"),
    "pyav": ("pyav",),
    "decord": ("decord", "pyav"),
    "torchcodec": ("torchcodec", "pyav"),
}
_MAX_BUSIEST_SHARE = 0.75  # several decoders are used only if the busiest has at most this fraction of the work


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
    """``num_frames`` upright square RGB frames of the window [start_ms, end_ms), by default the whole video.

    With ``segment_ms`` the window is divided into segments of that length, the last possibly shorter, and
    ``num_frames`` per segment are sampled evenly over the window. A truncated file is decoded if it contains every
    sampled time. ``num_threads`` = 0 uses one thread per core, at most 16. Neither it nor ``decoder`` (the preferred
    reader) changes a pixel. Raises `DecodeError`, or OSError if the file cannot be read.
    """
    _check_parameters(num_frames, policy, start_ms, end_ms, limits)
    if segment_ms is not None and segment_ms < 1:
        raise DecodeError("invalid_parameter", f"segment_ms must be positive, not {segment_ms}.")
    header = read_header(path, limits, with_index=True)
    info, index = header.info, header.index
    if index is None:
        raise DecodeError("undecodable_video", "The video has no frames.")
    duration_ms = _actual_duration(path, header, index.end_ms, len(index), limits)
    start, end = _window(start_ms, end_ms, duration_ms)
    if segment_ms is not None:
        num_frames *= len(range(start, end, segment_ms))
        if num_frames > limits.max_frames:
            raise DecodeError("too_many_frames", f"The segments need more than {limits.max_frames} frames.")
    _check_not_truncated(int(centre_times(num_frames, start, end)[-1]), index.end_ms, len(index), duration_ms)
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


def decode_chunks(path: Path, *, max_chunk_frames: int, **job: Any) -> Iterator[FrameBatch]:
    """The frames of `decode_frames`, in batches of at most ``max_chunk_frames``."""
    batch = decode_frames(path, **job)
    for first in range(0, len(batch.frames), max_chunk_frames):
        part = slice(first, first + max_chunk_frames)
        yield FrameBatch(batch.frames[part], batch.timestamps_ms[part], batch.video)


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
    unique_indices, copies = np.unique(indices, return_counts=True)
    size = scaled_size(geometry, header.info.width, header.info.height)
    frames = np.empty((len(indices), geometry.image_size, geometry.image_size, 3), np.uint8)
    threads = min(num_threads or os.cpu_count() or 1, _MAX_THREADS)
    max_decoders = 1 if header.info.width * header.info.height > _MAX_PARALLEL_PIXELS else threads
    parts = _split_among_decoders(index, unique_indices, max_decoders)
    ends = np.cumsum(copies)

    def by_time(first: int, last: int) -> None:
        pictures = read_by_time(
            path,
            header,
            index,
            unique_indices[first:last],
            size=size,
            limits=limits,
            num_threads=threads if len(parts) == 1 else 1,
        )
        _fill(frames[ends[first] - copies[first] : ends[last - 1]], pictures, copies[first:last])

    def by_time_in_parallel() -> None:
        with ThreadPoolExecutor(len(parts)) as pool:
            for _ in pool.map(lambda part: by_time(*part), parts):
                pass

    def by_count() -> None:
        _fill(frames, read_by_count(path, index, unique_indices, size=size, num_threads=threads), copies)

    def by_torchcodec() -> None:
        pictures = read_by_torchcodec(
            path, index, unique_indices, size=size, rotation=header.rotation, num_threads=threads
        )
        _fill(frames, pictures, copies)

    readers: dict[DecoderName, Callable[[], None]] = {"pyav": by_time_in_parallel, "torchcodec": by_torchcodec}
    if index.is_simple and header.demuxer != "mpegts":  # decord returns wrong frames for other files
        readers["decord"] = by_count
    failures = []
    for name in _READER_ORDER[decoder]:
        if name not in readers:
            continue
        try:
            readers[name]()
        except MemoryError:
            raise
        except Exception as error:  # decord raises DECORDError, RuntimeError, AssertionError and StopIteration
            failures.append(f"{type(error).__name__}: {error}")
        else:
            return frames
    raise DecodeError(
        "undecodable_video",
        "The video stream cannot be decoded: its data is damaged or incomplete.",
        internal="; then ".join(failures),
    )


def _split_among_decoders(index: FrameIndex, indices: NDArray[np.int64], max_decoders: int) -> list[tuple[int, int]]:
    """Parts [first, last) of ``indices`` for parallel decoders, with about equal numbers of frames to decode.

    Frames of one group of pictures stay in one part. Several decoders with one thread each are faster than one with
    several threads, which restart after each seek; but one part is returned if one group holds most of the work.
    """
    groups = np.searchsorted(index.keyframes, indices, side="right") - 1
    starts = np.flatnonzero(np.diff(groups, prepend=-1))  # first of each group in ``indices``
    lasts = np.append(starts[1:], len(indices))
    costs = indices[lasts - 1] - index.keyframes[groups[starts]] + 1
    decoder_of = ((np.cumsum(costs) - costs / 2) * max_decoders / costs.sum()).astype(np.int64)
    loads = np.bincount(decoder_of, weights=costs)
    if max_decoders == 1 or loads.max() > _MAX_BUSIEST_SHARE * costs.sum():
        return [(0, len(indices))]
    edges = starts[np.flatnonzero(np.diff(decoder_of, prepend=-1))].tolist()
    return list(zip(edges, [*edges[1:], len(indices)], strict=True))


def _fill(frames: NDArray[np.uint8], pictures: Iterator[Picture], copies: NDArray[np.int64]) -> None:
    position = 0
    for picture, count in zip(pictures, copies.tolist(), strict=True):
        fit_square(picture, frames[position])
        frames[position + 1 : position + count] = frames[position]
        position += count


# --- validation --------------------------------------------------------------------------------------------------


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


def _tolerance_ms(duration_ms: int, num_frames: int) -> int:
    return max(500, 2 * duration_ms // num_frames)


def _actual_duration(path: Path, header: Header, indexed_ms: int, num_frames: int, limits: DecodeLimits) -> int:
    check_duration(indexed_ms, limits)
    claimed = header.duration_ms
    if claimed is None or claimed <= indexed_ms + _tolerance_ms(indexed_ms, num_frames):
        return indexed_ms
    if header.duration_is_shared and other_streams_reach(path, header.demuxer, claimed - 1000):
        return indexed_ms  # not truncated: another stream is longer than the video
    return claimed


def _check_not_truncated(last_ms: int, indexed_ms: int, num_frames: int, duration_ms: int) -> None:
    if last_ms >= indexed_ms + _tolerance_ms(indexed_ms, num_frames):
        raise DecodeError(
            "undecodable_video",
            f"The video is incomplete: it should last {duration_ms} ms, but its data ends after {indexed_ms} ms.",
        )
