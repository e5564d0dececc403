"""Decodes a whole file from start to end, past damaged places: for files whose packets do not tell their frames.

Such files have no usable time stamps (H.264 with B-frames in AVI), clocks that start again (recordings joined to one
file), streams without a place to start from (intra refresh), or lost data. It costs two passes over the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, islice
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from vidlex.model.decode.container import decoder_options, intact_packets, open_video
from vidlex.model.decode.frame_index import (
    BROADCAST_DEMUXERS,
    MAX_STEP_BACK_SECONDS,
    MAX_STEP_SECONDS,
    FrameIndex,
    times_ms,
)
from vidlex.model.decode.limits import DecodeLimits, check_file_frames
from vidlex.model.decode.scaler import Picture, Scaler
from vidlex.model.decode.source import VideoSource

_MAX_DISORDER = 16  # frames

Stamp = tuple[int | None, int | None]  # presentation and decoding time


@dataclass(frozen=True, eq=False)
class Scan:
    """The frames that a file's decoder gives, in its order."""

    index: FrameIndex
    is_good: NDArray[np.bool_]  # [n]; false: damaged, or after a damaged place in its group of pictures
    num_errors: int  # packets that the decoder rejected
    first: Any  # the first frame

    @property
    def is_damaged(self) -> bool:
        return self.num_errors > 0 or not self.is_good.all()


@dataclass
class Events:
    """What happened while a file was decoded, up to the last frame."""

    num_errors: int = 0  # packets that the decoder rejected
    first_error: str = ""
    num_restarts: int = 0  # of the clock of decoding times
    _last_dts: Fraction | None = None
    _last_shown: Fraction | None = None

    def note_time(self, packet: Any) -> None:
        """The clock starts again if a decoding time, or the presentation time of a keyframe, goes back."""
        dts = None if packet.dts is None else packet.dts * packet.time_base
        pts = None if packet.pts is None else packet.pts * packet.time_base
        is_back = _is_before(dts, self._last_dts) or (packet.is_keyframe and _is_before(pts, self._last_shown))
        if is_back:
            self.num_restarts += 1
            self._last_shown = None
        self._last_dts = self._last_dts if dts is None else dts
        self._last_shown = max((time for time in (pts, self._last_shown) if time is not None), default=None)


def _is_before(time: Fraction | None, last: Fraction | None) -> bool:
    return time is not None and last is not None and time < last - MAX_STEP_BACK_SECONDS


def decode_tolerantly(
    source: VideoSource,
    demuxer: str,
    limits: DecodeLimits,
    *,
    num_threads: int,
    events: Events | None = None,
    max_packets: int | None = None,
) -> Iterator[Any]:
    """All frames that can be decoded.

    Threads share one frame (slices): with several frames in work, an error could lose the frames around it.
    """
    events = events or Events()
    with open_video(source, demuxer) as container:
        stream = container.streams.best("video")
        decoder = stream.codec_context
        decoder.options = decoder_options(limits)
        decoder.thread_count, decoder.thread_type = num_threads, "SLICE"
        packets = chain(islice(intact_packets(container, stream), max_packets), [None])
        yield from decode_past_errors(decoder, packets, events)


def decode_past_errors(decoder: Any, packets: Iterator[Any], events: Events) -> Iterator[Any]:
    """The frames of ``packets``, the last of which is None, without those that cannot be decoded."""
    for packet in packets:
        frames: list[Any] = []
        if packet is not None:
            events.note_time(packet)
        try:
            frames = decoder.decode(packet)
        except (av.FFmpegError, ValueError) as error:
            events.num_errors += 1
            events.first_error = events.first_error or f"{type(error).__name__}: {error}"
        yield from frames


def scan_frames(
    source: VideoSource, demuxer: str, time_base: Fraction, limits: DecodeLimits, *, num_threads: int
) -> Scan | None:
    """None if no frame can be decoded."""
    stamps: list[Stamp] = []
    durations: list[int] = []
    is_key: list[bool] = []
    is_good: list[bool] = []
    num_restarts: list[int] = []
    events = Events()
    first: Any = None
    is_intact, num_errors = True, 0  # frames after a damaged place refer to it, up to the next keyframe
    for frame in decode_tolerantly(source, demuxer, limits, num_threads=num_threads, events=events):
        first = first or frame
        stamps.append((frame.pts, frame.dts))
        durations.append(frame.duration or 0)
        is_key.append(bool(frame.key_frame))
        is_intact = not frame.is_corrupt and ((is_intact and num_errors == events.num_errors) or bool(frame.key_frame))
        num_errors = events.num_errors
        num_restarts.append(events.num_restarts)
        is_good.append(is_intact)
        check_file_frames(len(stamps), limits)
    if first is None:
        return None
    times = trusted_times(stamps, has_presentation_times=demuxer != "avi")
    pts, is_astray = continuous_times(
        times, num_restarts, durations, time_base, is_broadcast=demuxer in BROADCAST_DEMUXERS
    )
    good = np.array(is_good) & ~is_astray
    if not good.any():
        good = ~is_astray  # the first one is not
    starts, ends = times_ms(pts, durations[-1], time_base)
    index = FrameIndex(
        pts=pts,
        time_base=time_base,
        starts_ms=starts,
        ends_ms=ends,
        keyframes=np.flatnonzero(is_key),
        num_bytes=np.zeros(len(pts), np.int64),
        key_pts=pts[np.flatnonzero(is_key)],
        has_exact_times=False,
    )
    return Scan(index, good, events.num_errors, first)


class CountedPictures:
    """Pictures of a file by their number in the order of `decode_tolerantly`, which must not decrease."""

    def __init__(self, frames: Iterator[Any], scaler: Scaler) -> None:
        self._frames = frames
        self._scaler = scaler
        self._number = -1
        self._picture: Picture | None = None

    def at(self, number: int) -> Picture:
        """Raises EOFError if the second pass gives fewer frames than the first."""
        if number != self._number or self._picture is None:
            while self._number < number:
                frame = next(self._frames, None)
                if frame is None:
                    raise EOFError(f"frame {number} is missing in the second pass")
                self._number += 1
            self._picture = self._scaler(frame)
        return self._picture


def trusted_times(stamps: list[Stamp], *, has_presentation_times: bool) -> list[int | None]:
    """The presentation or the decoding times of frames in the order in which they are shown: as FFmpeg's
    `guess_correct_pts`, but of one kind for all frames.
    """
    presented, decoded = ([stamp[kind] for stamp in stamps] for kind in (0, 1))
    if has_presentation_times and _num_faults(presented) <= _num_faults(decoded):
        return presented
    return decoded


def _num_faults(times: list[int | None]) -> tuple[int, int]:
    """(repeated times and small steps back, missing times). A large step back is a clock that starts again, or damage.

    The last frames of a decoder that reorders have no decoding times: steps back count first.
    """
    known = [time for time in times if time is not None]
    steps = np.diff(np.array(known, np.int64))
    usual = np.median(steps) if len(steps) else 0
    return int(((steps <= 0) & (steps > -_MAX_DISORDER * usual)).sum()), len(times) - len(known)


def continuous_times(
    times: list[int | None], num_restarts: list[int], durations: list[int], time_base: Fraction, *, is_broadcast: bool
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """(increasing time stamps of frames in the order in which they are shown, which of them were out of order).

    A missing one follows from the frame before it. A clock that starts again goes on where it was, as does one that
    jumps in a broadcast stream. ``num_restarts`` are those of the decoding times before each frame was shown: a damaged
    frame may have any presentation time.
    """
    second = 1 / time_base
    filled: list[int] = []
    is_astray: list[bool] = []
    offset, last_raw, num_seen = 0, None, 0
    for time, restarts, duration in zip(times, num_restarts, [0, *durations[:-1]], strict=True):  # of the frame before
        step = duration or (filled[-1] - filled[-2] if len(filled) > 1 else 1)
        raw = last_raw + step if time is None and last_raw is not None else time or 0
        change = 0 if last_raw is None else raw - last_raw
        is_back = restarts > num_seen and change < -MAX_STEP_BACK_SECONDS * second
        if is_back or (is_broadcast and change > MAX_STEP_SECONDS * second):
            offset, num_seen = filled[-1] + step - raw, restarts
        is_astray.append(bool(filled) and raw + offset <= filled[-1])
        filled.append(filled[-1] + 1 if is_astray[-1] else raw + offset)
        if not is_astray[-1]:
            last_raw = raw
    return np.array(filled, np.int64), np.array(is_astray, np.bool_)
