"""Reads selected frames of a file by their time stamps, and past damaged places.

Frames that are neither selected nor referred to are skipped. A frame that is not found at its time is never replaced
silently: the reader decodes its group of pictures again, frame by frame, and takes the nearest good frame if the data
is damaged; otherwise `ReaderError` says that the packets do not tell the frames.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from vidlex.model.decode.container import decoder_options, intact_packets, open_video
from vidlex.model.decode.frame_index import FrameIndex
from vidlex.model.decode.limits import DecodeLimits
from vidlex.model.decode.probe import Header
from vidlex.model.decode.scaler import Picture, Scaler
from vidlex.model.decode.scan import Events, decode_past_errors

_CODECS_WITH_SKIPPING = ("h264", "hevc")  # codecs whose decoders apply ``skip_frame`` to each packet exactly


class ReaderError(Exception):
    """The frames cannot be found by the index. Another reader may."""


@dataclass(frozen=True, eq=False)
class ReadFrame:
    picture: Picture
    pts: int  # other than the requested one if that frame cannot be decoded


def read_by_time(
    header: Header,
    index: FrameIndex,
    indices: NDArray[np.int64],
    *,
    size: tuple[int, int],
    limits: DecodeLimits,
    num_threads: int,
) -> Iterator[ReadFrame]:
    """The frames at ``indices`` (increasing), upright, of ``size`` = (width, height)."""
    targets, groups, key_times = index.decoding_plan(indices)
    only_keyframes = all(key_times[group] == target for group, target in zip(groups, targets, strict=True))
    scaler = Scaler(size, header.orientation)
    selected = _packets_of(targets, index) if header.codec in _CODECS_WITH_SKIPPING else None
    position = 0
    while position < len(targets):
        try:
            for frame in _read_intact(
                header,
                targets[position:],
                groups[position:],
                key_times,
                selected,
                limits=limits,
                num_threads=num_threads,
                only_keyframes=only_keyframes and not index.half_frame,
            ):
                yield ReadFrame(scaler(frame), targets[position])
                position += 1
        except (ReaderError, av.FFmpegError, ValueError, EOFError) as error:
            if position == len(targets):
                return
            group = groups[position]
            last = position + next((i for i, g in enumerate(groups[position:]) if g != group), len(groups) - position)
            repaired = _read_damaged(
                header, targets[position:last], key_times, group, scaler=scaler, limits=limits, reason=str(error)
            )
            yield from repaired
            position += len(repaired)


def _packets_of(targets: list[int], index: FrameIndex) -> set[int]:
    # with both fields of a frame that has a packet for each
    selected = set(targets)
    if index.half_frame:
        selected |= {round(target + index.half_frame) + k for target in targets for k in (-1, 0, 1)}
    return selected


def _read_intact(
    header: Header,
    targets: list[int],
    groups: list[int],
    key_times: list[int],
    selected: set[int] | None,
    *,
    limits: DecodeLimits,
    num_threads: int,
    only_keyframes: bool,
) -> Iterator[Any]:
    # exactly the frames at ``targets``, or ReaderError
    with open_video(header.source, header.demuxer) as container:
        stream = container.streams.best("video")
        decoder = stream.codec_context
        decoder.options = decoder_options(limits)
        decoder.thread_count, decoder.thread_type = num_threads, "SLICE" if only_keyframes else "AUTO"
        reached: int | None = None  # time stamp of the last decoded frame
        found: Any = None
        frames: Iterator[Any] = iter(())
        for target, group in zip(targets, groups, strict=True):
            if reached is None or key_times[group] > reached:
                decoder.flush_buffers()
                packets = _packets_from(container, stream, key_times[: group + 1])
                if only_keyframes:
                    # one packet is enough, and None drains a decoder that delays frames for reordering
                    packets = chain(islice(packets, 1), [None])
                frames = _decode_packets(decoder, packets, selected)
            for found in frames:
                reached = found.pts
                if reached is not None and reached >= target:
                    break
            if reached != target or found.is_corrupt:
                raise ReaderError(f"expected a frame at {target}, got one at {reached}")
            yield found


def _read_damaged(
    header: Header,
    targets: list[int],
    key_times: list[int],
    group: int,
    *,
    scaler: Scaler,
    limits: DecodeLimits,
    reason: str,
) -> list[ReadFrame]:
    """For each target of one group of pictures the good frame that is nearest in time.

    Frames after a damaged place refer to it: they are good again from the next keyframe on. Raises ReaderError if
    nothing is damaged, so that the index must be wrong, or if the group has no good frame.
    """
    end = key_times[group + 1] if group + 1 < len(key_times) else None
    events = Events()
    is_damaged = False
    nearest: dict[int, tuple[int, Any]] = {}
    with open_video(header.source, header.demuxer) as container:
        stream = container.streams.best("video")
        decoder = stream.codec_context
        decoder.options = decoder_options(limits)
        decoder.thread_count, decoder.thread_type = 1, "NONE"
        for frame in decode_past_errors(decoder, _packets_from(container, stream, key_times[: group + 1]), events):
            is_damaged |= frame.is_corrupt or events.num_errors > 0
            if frame.pts is None:
                raise ReaderError(f"{reason}; a frame has no time")
            is_next_group = end is not None and frame.pts >= end
            if not is_damaged or (is_next_group and frame.key_frame and not frame.is_corrupt):
                for target in targets:
                    distance = abs(frame.pts - target)
                    if target not in nearest or distance < nearest[target][0]:
                        nearest[target] = (distance, frame)
            if is_next_group:
                break
    if not nearest:
        raise ReaderError(f"{reason}; no good frame in the group of pictures: {events.first_error}")
    if not is_damaged and any(nearest[target][0] for target in targets):
        raise ReaderError(reason)
    return [ReadFrame(scaler(nearest[target][1]), nearest[target][1].pts) for target in targets]


def _packets_from(container: Any, stream: Any, key_times: list[int]) -> Iterator[Any]:
    """Packets from the last of ``key_times`` on, or from an earlier one if the container seeks too far.

    The first of ``key_times`` is the start of the file, which needs no seek in a newly opened container.
    """
    for back in (1, 2, 4, 16, None):
        if back is None:
            container.seek(key_times[0] - 10 * round(1 / stream.time_base), stream=stream)
        elif len(key_times) > 1:
            container.seek(key_times[-min(back, len(key_times))], stream=stream)
        packets = intact_packets(container, stream)
        first = next((packet for packet in packets if packet.is_keyframe), None)
        if first is not None and _timestamp(first) <= key_times[-1]:
            return chain([first], packets, [None])
    raise ReaderError("seeking to the keyframe failed")


def _timestamp(packet: Any) -> int:
    if packet.pts is None:  # the index has times of all packets, but not of the same after a seek
        raise ReaderError("a packet has no time")
    return int(packet.pts)


def _decode_packets(decoder: Any, packets: Iterator[Any], selected: set[int] | None) -> Iterator[Any]:
    for packet in packets:
        if selected is not None and packet is not None:
            decoder.skip_frame = "DEFAULT" if _timestamp(packet) in selected else "NONREF"
        yield from decoder.decode(packet)
