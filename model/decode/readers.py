"""Reading chosen frames of a file, scaled to the model's size by FFmpeg, in one of two ways with the same pixels.

``read_by_time`` (PyAV) finds frames by their time stamps, always the right ones, and leaves out the work on frames
that nobody wants and no other refers to: 0.6 to 0.8 of decord's time on H.264 with B-frames.

``read_by_count`` (decord) finds frames by counting packets and is the second choice, for files whose packets carry no
usable time stamps. It returns other frames than those asked for where frames refer across a keyframe
(`FrameIndex.is_simple` is false) and in MPEG-TS, and it fails on some sound VP9 and HEVC files.
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

_SKIPPING = ("h264", "hevc")
"""Codecs whose decoders leave out exactly the packets that they are told to."""
_TURNS = {90: "transpose=2,", 180: "transpose=1,transpose=1,", 270: "transpose=1,"}


@cache
def load_decord() -> Any:
    """decord, when it is needed, and without the CUDA libraries: it would load each one that it finds installed
    (600 MB of memory), of which decoding on the CPU uses none."""
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


class Unreadable(Exception):
    """A frame that the index promises does not come out of the decoder."""


def read_by_count(
    path: Path, index: FrameIndex, wanted: NDArray[np.int64], *, size: tuple[int, int], num_threads: int
) -> Iterator[Picture]:
    """The frames ``wanted`` (in order, each once) as RGB [h, w, 3] of ``size`` = (width, height), upright.

    One by one rather than ``get_batch``: as fast, no second copy of all frames, and right for every width. decord
    hands out rows that FFmpeg padded for alignment and takes the padding for more channels when it happens to be a
    multiple of the width (96 pixels: four "channels"); ``get_batch`` fails on them, so it is undone here.
    """
    width, height = size
    reader = load_decord().VideoReader(str(path.absolute()), width=width, height=height, num_threads=num_threads)
    if len(reader) != len(index):
        raise Unreadable(f"decord sees {len(reader)} frames where the packets say {len(index)}")
    for place in wanted:
        reader.seek_accurate(int(place))
        rows = reader.next().asnumpy().reshape(height, -1)
        yield rows[:, : 3 * width].reshape(height, width, 3)


def read_by_time(
    path: Path,
    header: Header,
    index: FrameIndex,
    wanted: NDArray[np.int64],
    *,
    size: tuple[int, int],
    limits: DecodeLimits,
    num_threads: int,
) -> Iterator[Picture]:
    """As `read_by_count`, for any file."""
    targets = index.pts[wanted].tolist()
    # the keyframe that decoding begins at, by its place among the keyframes
    begins = (np.searchsorted(index.keyframes, wanted, side="right") - 1).tolist()
    key_times = index.pts[index.keyframes].tolist()
    only_keyframes = all(key_times[begin] == target for begin, target in zip(begins, targets, strict=True))
    scaler = Scaler(size, header.rotation)
    with open_video(path, header.demuxer) as container:
        stream = container.streams.best("video")
        decoder = stream.codec_context
        decoder.options = decoder_options(limits)
        decoder.thread_count, decoder.thread_type = num_threads, "SLICE" if only_keyframes else "AUTO"
        reached: int | None = None  # time stamp of the last frame that came out
        frames: Iterator[Any] = iter(())
        for target, begin in zip(targets, begins, strict=True):
            if reached is None or key_times[begin] > reached:
                decoder.flush_buffers()
                packets = _packets_from(container, stream, key_times[: begin + 1])
                if only_keyframes:
                    # nothing else is decoded, and None drains a decoder that holds frames back for reordering
                    packets = chain(islice(packets, 1), [None])
                frames = _decoded(decoder, packets, set(targets) if header.info.codec in _SKIPPING else None)
            for frame in frames:
                reached = frame.pts
                if reached is not None and reached >= target:
                    break
            if reached != target:
                raise Unreadable(f"no frame at {target}, but one at {reached}")
            yield scaler(frame)


def _packets_from(container: Any, stream: Any, key_times: list[int]) -> Iterator[Any]:
    """Packets from the last of ``key_times`` on, or from an earlier one: some containers seek to a place behind.

    The first of ``key_times`` is where the file begins; a container not read before needs no seeking to it.
    """
    for back in (1, 2, 4, 16, None):
        if back is None:
            container.seek(key_times[0] - 10 * round(1 / stream.time_base), stream=stream)
        elif len(key_times) > 1:
            container.seek(key_times[-min(back, len(key_times))], stream=stream)
        packets = (packet for packet in container.demux(stream) if packet.size)
        first = next((packet for packet in packets if packet.is_keyframe), None)
        if first is not None and _time(first) <= key_times[-1]:
            return chain([first], packets, [None])
    raise Unreadable("the file cannot be read from the keyframe")


def _time(packet: Any) -> int:
    return int(packet.dts if packet.pts is None else packet.pts)


def _decoded(decoder: Any, packets: Iterator[Any], wanted: set[int] | None) -> Iterator[Any]:
    """Frames of ``packets``; those not ``wanted`` and that no other refers to are not decoded at all."""
    for packet in packets:
        if wanted is not None and packet is not None:
            decoder.skip_frame = "DEFAULT" if _time(packet) in wanted else "NONREF"
        yield from decoder.decode(packet)


class Scaler:
    """To ``size`` = (width, height), and upright, by the same filters as decord's, so to the same pixels. A stream may
    change its size on the way."""

    def __init__(self, size: tuple[int, int], rotation: int) -> None:
        self._size = size
        self._turn = _TURNS.get(rotation % 360, "")
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
        for step in filter(None, [*self._turn.split(","), f"scale={width}:{height}", "format=rgb24", "buffersink="]):
            name, _, arguments = step.partition("=")
            node = graph.add(name, arguments or None)
            last.link_to(node)
            last = node
        graph.configure()
        return graph
