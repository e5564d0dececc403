"""Reads selected frames of a file, scaled by FFmpeg, in one of two ways with identical pixels.

``read_by_time`` (PyAV) finds frames by their time stamps, and skips frames that are neither selected nor referred to:
0.6 to 0.8 of decord's time on H.264 with B-frames.

``read_by_count`` (decord) finds frames by counting packets. It is the fallback for files without usable time stamps. It
returns wrong frames for files with references across keyframes (`FrameIndex.is_simple` is false) and for MPEG-TS, and
fails on some valid VP9 and HEVC files.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from fractions import Fraction
from functools import cache
from itertools import chain, islice
from pathlib import Path
from typing import Any

import av
import av.filter
import numpy as np
from numpy.typing import NDArray

from vidlex.model.decode.frame_index import FrameIndex
from vidlex.model.decode.limits import DecodeLimits
from vidlex.model.decode.probe import Header, decoder_options, open_video

Picture = NDArray[np.uint8]

_CODECS_WITH_SKIPPING = ("h264", "hevc")  # codecs whose decoders apply ``skip_frame`` to each packet exactly
_ROTATION_FILTERS = {90: "transpose=2,", 180: "transpose=1,transpose=1,", 270: "transpose=1,"}


@cache
def load_decord() -> Any:
    # decord loads all installed CUDA libraries (600 MB of memory), which decoding on the CPU does not need: hide them
    hidden = sys.modules.get("nvidia")
    sys.modules["nvidia"] = None  # type: ignore[assignment]
    try:
        import decord
    finally:
        if hidden is None:
            del sys.modules["nvidia"]
        else:
            sys.modules["nvidia"] = hidden
    decord.logging.set_level(decord.logging.QUIET)  # FFmpeg prints text from the file to stderr
    return decord


class ReaderError(Exception):
    """The reader cannot decode a frame of the index. Another reader may."""


def read_by_count(
    path: Path, index: FrameIndex, indices: NDArray[np.int64], *, size: tuple[int, int], num_threads: int
) -> Iterator[Picture]:
    """The frames at ``indices`` (increasing) as upright RGB [height, width, 3] of ``size`` = (width, height).

    Read one by one: as fast as ``get_batch``, without a second copy of all frames, and correct for every width. decord
    interprets FFmpeg's row padding as more channels if it is a multiple of the width (96 pixels: four "channels"), on
    which ``get_batch`` fails; the padding is removed here.
    """
    width, height = size
    reader = load_decord().VideoReader(str(path.absolute()), width=width, height=height, num_threads=num_threads)
    if len(reader) != len(index):
        raise ReaderError(f"decord finds {len(reader)} frames, but the index has {len(index)}")
    for i in indices:
        reader.seek_accurate(int(i))
        rows = reader.next().asnumpy().reshape(height, -1)
        yield rows[:, : 3 * width].reshape(height, width, 3)


def read_by_time(
    path: Path,
    header: Header,
    index: FrameIndex,
    indices: NDArray[np.int64],
    *,
    size: tuple[int, int],
    limits: DecodeLimits,
    num_threads: int,
) -> Iterator[Picture]:
    targets, groups, key_times = index.decoding_plan(indices)
    only_keyframes = all(key_times[group] == target for group, target in zip(groups, targets, strict=True))
    scaler = Scaler(size, header.rotation)
    with open_video(path, header.demuxer) as container:
        stream = container.streams.best("video")
        decoder = stream.codec_context
        decoder.options = decoder_options(limits)
        decoder.thread_count, decoder.thread_type = num_threads, "SLICE" if only_keyframes else "AUTO"
        reached: int | None = None  # time stamp of the last decoded frame
        frames: Iterator[Any] = iter(())
        for target, group in zip(targets, groups, strict=True):
            if reached is None or key_times[group] > reached:
                decoder.flush_buffers()
                packets = _packets_from(container, stream, key_times[: group + 1])
                if only_keyframes:
                    # one packet is enough, and None drains a decoder that delays frames for reordering
                    packets = chain(islice(packets, 1), [None])
                selected = set(targets) if header.info.codec in _CODECS_WITH_SKIPPING else None
                frames = _decode_packets(decoder, packets, selected)
            for frame in frames:
                reached = frame.pts
                if reached is not None and reached >= target:
                    break
            if reached != target:
                raise ReaderError(f"expected a frame at {target}, got one at {reached}")
            yield scaler(frame)


def _packets_from(container: Any, stream: Any, key_times: list[int]) -> Iterator[Any]:
    """Packets from the last of ``key_times`` on, or from an earlier one if the container seeks too far.

    The first of ``key_times`` is the start of the file, which needs no seek in a newly opened container.
    """
    for back in (1, 2, 4, 16, None):
        if back is None:
            container.seek(key_times[0] - 10 * round(1 / stream.time_base), stream=stream)
        elif len(key_times) > 1:
            container.seek(key_times[-min(back, len(key_times))], stream=stream)
        packets = (packet for packet in container.demux(stream) if packet.size)
        first = next((packet for packet in packets if packet.is_keyframe), None)
        if first is not None and _timestamp(first) <= key_times[-1]:
            return chain([first], packets, [None])
    raise ReaderError("seeking to the keyframe failed")


def _timestamp(packet: Any) -> int:
    return int(packet.dts if packet.pts is None else packet.pts)


def _decode_packets(decoder: Any, packets: Iterator[Any], selected: set[int] | None) -> Iterator[Any]:
    for packet in packets:
        if selected is not None and packet is not None:
            decoder.skip_frame = "DEFAULT" if _timestamp(packet) in selected else "NONREF"
        yield from decoder.decode(packet)


class Scaler:
    """Scales frames to ``size`` = (width, height), upright, with decord's filters and so its pixels."""

    def __init__(self, size: tuple[int, int], rotation: int) -> None:
        self._size = size
        self._rotation = _ROTATION_FILTERS.get(rotation % 360, "")
        self._shape: tuple[int, int, str] | None = None
        self._graph: Any = None

    def __call__(self, frame: Any) -> Picture:
        shape = (frame.width, frame.height, frame.format.name)
        if shape != self._shape:
            self._graph, self._shape = self._build(frame), shape
        self._graph.push(frame)
        picture: Picture = self._graph.pull().to_ndarray()
        return picture

    def _build(self, frame: Any) -> Any:
        graph = av.filter.Graph()
        graph.threads = 1
        last = graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 1000)
        )
        width, height = self._size
        for step in filter(
            None, [*self._rotation.split(","), f"scale={width}:{height}", "format=rgb24", "buffersink="]
        ):
            name, _, arguments = step.partition("=")
            node = graph.add(name, arguments or None)
            last.link_to(node)
            last = node
        graph.configure()
        return graph
