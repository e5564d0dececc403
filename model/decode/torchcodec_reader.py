"""The third way of reading chosen frames: ``read_by_torchcodec``, where torchcodec is installed and asked for.

It decodes and nothing else: frames are found by the index that was read from the packets, and their planes, as the
decoder made them, go through the same scaler as PyAV's, so the pixels are the same. What it cannot do (formats whose
planes are interleaved, containers that seek to a place behind) is `Unreadable` and then PyAV's.

Two things are PyAV's alone: the demuxer is the one that the sniffed content named, and a stream that grows on its way
is refused by the decoder. Here the sandbox of the decode process bounds both.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from vidlex.model.decode.frame_index import FrameIndex
from vidlex.model.decode.readers import Picture, Scaler, Unreadable

_SPACES = {"gbr": 0, "bt709": 1, "fcc": 4, "bt470bg": 5, "smpte170m": 6, "smpte240m": 7, "ycgco": 8, "bt2020nc": 9}
_RANGES = {"tv": 1, "pc": 2}
"""FFmpeg's numbers for what says how colours become RGB; 2 and 0 stand for what the file does not say."""


@cache
def load_torchcodec() -> Any:
    """``torchcodec.decoders``, which brings torch along. Raises ImportError with what may be missing."""
    try:
        module = import_module("torchcodec.decoders")
        if not hasattr(module, "Demuxer"):
            raise ImportError("0.17 or newer is needed")
    except (ImportError, RuntimeError, OSError, MemoryError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ImportError(
            "torchcodec cannot be loaded: it must be installed, find FFmpeg's shared libraries and fit torch, and a "
            f"process that loads it needs some 6 GiB of address space (VIDLEX_DECODE_MEMORY_BYTES): {reason}"
        ) from error
    return module


def read_by_torchcodec(
    path: Path,
    index: FrameIndex,
    wanted: NDArray[np.int64],
    *,
    size: tuple[int, int],
    rotation: int,
    num_threads: int,
) -> Iterator[Picture]:
    """The frames ``wanted`` (in order, each once) as RGB [h, w, 3] of ``size`` = (width, height), upright.

    Raises Unreadable for what it cannot do, and what torchcodec raises.
    """
    demuxer = load_torchcodec().Demuxer(str(path.absolute()))
    (stream,) = demuxer.streams
    decoder = stream.make_decoder(device="cpu", num_ffmpeg_threads=num_threads)
    scaler = Scaler(size, rotation)
    tick = float(index.time_base)
    targets = index.pts[wanted].tolist()
    begins = (np.searchsorted(index.keyframes, wanted, side="right") - 1).tolist()
    key_times = index.pts[index.keyframes].tolist()
    reached: int | None = None  # time stamp of the last frame that came out
    frames: Iterator[Any] = _decoded(demuxer, decoder)
    for target, begin in zip(targets, begins, strict=True):
        if begin and (reached is None or key_times[begin] > reached):
            demuxer.seek((key_times[begin] + 0.5) * tick)
            decoder.reset()
            frames = _decoded(demuxer, decoder)
        for frame in frames:
            reached = round(frame.pts_seconds / tick)
            if reached >= target:
                break
        if reached != target:
            raise Unreadable(f"no frame at {target}, but one at {reached}")
        yield scaler(_as_pyav(frame))


def _decoded(demuxer: Any, decoder: Any) -> Iterator[Any]:
    for packet in demuxer:
        yield from decoder.decode(packet)
    yield from decoder.drain()


def _as_pyav(raw: Any) -> Any:
    """The same picture, its samples copied, for FFmpeg's filters."""
    frame: Any = av.VideoFrame(raw.width, raw.height, raw.pixel_format)
    planes = raw.planes
    if len(planes) != len(frame.planes):
        raise Unreadable(f"{raw.pixel_format} is laid out otherwise")
    for plane, samples in zip(frame.planes, planes, strict=True):
        values = np.ascontiguousarray(samples.numpy()).view(np.uint8)
        rows = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)
        rows[:, : values.shape[1]] = values
    frame.colorspace = _SPACES.get(raw.color_space, 2)
    frame.color_range = _RANGES.get(raw.color_range, 0)
    return frame
