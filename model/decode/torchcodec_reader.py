"""Reads selected frames with torchcodec, if it is installed and requested.

Frames are found by the packet index, and the decoder's planes go through PyAV's scaler, so the pixels are identical.
`ReaderError` is raised for what torchcodec does not support (interleaved planes, containers that seek too far).

Unlike PyAV's reader, it cannot force the detected demuxer, and cannot reject pictures that grow within a stream; the
sandbox of the decode process bounds both.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib import import_module
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from vidlex.model.decode.frame_index import FrameIndex
from vidlex.model.decode.orientation import Orientation
from vidlex.model.decode.readers import ReaderError
from vidlex.model.decode.scaler import Picture, Scaler
from vidlex.model.decode.source import VideoSource, open_unbuffered

_SPACES = {"gbr": 0, "bt709": 1, "fcc": 4, "bt470bg": 5, "smpte170m": 6, "smpte240m": 7, "ycgco": 8, "bt2020nc": 9}
_RANGES = {"tv": 1, "pc": 2}  # FFmpeg's AVColorSpace and AVColorRange; 2 and 0 mean unspecified


@cache
def load_torchcodec() -> Any:  # imports torch
    try:
        module = import_module("torchcodec.decoders")
        if not hasattr(module, "Demuxer"):
            raise ImportError("0.17 or newer is required")
    except (ImportError, RuntimeError, OSError, MemoryError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ImportError(
            "torchcodec cannot be loaded: it must be installed, match torch and find FFmpeg's shared libraries, and a "
            f"process that loads it needs about 6 GiB of address space (VIDLEX_DECODE_MEMORY_BYTES): {reason}"
        ) from error
    return module


def read_by_torchcodec(
    source: VideoSource,
    index: FrameIndex,
    indices: NDArray[np.int64],
    *,
    size: tuple[int, int],
    orientation: Orientation,
    num_threads: int,
) -> Iterator[Picture]:
    demuxer = load_torchcodec().Demuxer(open_unbuffered(source))
    (stream,) = demuxer.streams
    decoder = stream.make_decoder(device="cpu", num_ffmpeg_threads=num_threads)
    scaler = Scaler(size, orientation)
    tick = float(index.time_base)
    targets, groups, key_times = index.decoding_plan(indices)
    reached: int | None = None  # time stamp of the last decoded frame
    frames: Iterator[Any] = _decode_packets(demuxer, decoder)
    for target, group in zip(targets, groups, strict=True):
        if group and (reached is None or key_times[group] > reached):
            demuxer.seek((key_times[group] + 0.5) * tick)
            decoder.reset()
            frames = _decode_packets(demuxer, decoder)
        for frame in frames:
            reached = round(frame.pts_seconds / tick)
            if reached >= target:
                break
        if reached != target:
            raise ReaderError(f"expected a frame at {target}, got one at {reached}")
        yield scaler(_to_pyav(frame))


def _decode_packets(demuxer: Any, decoder: Any) -> Iterator[Any]:
    for packet in demuxer:
        yield from decoder.decode(packet)
    yield from decoder.drain()


def _to_pyav(raw: Any) -> Any:
    frame: Any = av.VideoFrame(raw.width, raw.height, raw.pixel_format)
    planes = raw.planes
    if len(planes) != len(frame.planes):
        raise ReaderError(f"the planes of {raw.pixel_format} are interleaved")
    for plane, samples in zip(frame.planes, planes, strict=True):
        values = np.ascontiguousarray(samples.numpy()).view(np.uint8)
        rows = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)
        rows[:, : values.shape[1]] = values
    frame.colorspace = _SPACES.get(raw.color_space, 2)
    frame.color_range = _RANGES.get(raw.color_range, 0)
    return frame
