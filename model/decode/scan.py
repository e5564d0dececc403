"""Decodes a whole file from start to end, past damaged places: for files whose packets do not tell their frames.

Such files have no usable time stamps (H.264 with B-frames in AVI), clocks that start again (recordings joined to one
file), streams without a place to start from (intra refresh), or lost data. It costs two passes over the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from vidlex.model.decode.container import decoder_options, intact_packets, open_video
from vidlex.model.decode.frame_index import BROADCAST_DEMUXERS, MAX_STEP_SECONDS, FrameIndex, times_ms
from vidlex.model.decode.limits import DecodeLimits, check_file_frames
from vidlex.model.decode.scaler import Picture, Scaler

_MAX_STEP_BACK_SECONDS = 0.5  # and 16 frames; more is a clock that starts again


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


def decode_tolerantly(
    path: Path,
    demuxer: str,
    limits: DecodeLimits,
    *,
    num_threads: int,
    errors: list[str] | None = None,
    max_packets: int | None = None,
) -> Iterator[Any]:
    """All frames that can be decoded. ``errors`` collects the errors of packets that cannot.

    Threads share one frame (slices): with several frames in work, an error could lose the frames around it.
    """
    with open_video(path, demuxer) as container:
        stream = container.streams.best("video")
        decoder = stream.codec_context
        decoder.options = decoder_options(limits)
        decoder.thread_count, decoder.thread_type = num_threads, "SLICE"
        for packet in chain(islice(intact_packets(container, stream), max_packets), [None]):
            frames: list[Any] = []
            try:
                frames = decoder.decode(packet)
            except (av.FFmpegError, ValueError) as error:
                if errors is not None:
                    errors.append(type(error).__name__)
            yield from frames


def scan_frames(
    path: Path, demuxer: str, time_base: Fraction, limits: DecodeLimits, *, num_threads: int
) -> Scan | None:
    """None if no frame can be decoded."""
    stamps: list[tuple[int | None, int | None]] = []  # (presentation time, decoding time)
    durations: list[int] = []
    is_key: list[bool] = []
    is_good: list[bool] = []
    errors: list[str] = []
    first: Any = None
    is_intact, num_errors = True, 0  # frames after a damaged place refer to it, up to the next keyframe
    for frame in decode_tolerantly(path, demuxer, limits, num_threads=num_threads, errors=errors):
        first = first or frame
        stamps.append((frame.pts, frame.dts))
        durations.append(frame.duration or 0)
        is_key.append(bool(frame.key_frame))
        is_intact = not frame.is_corrupt and ((is_intact and num_errors == len(errors)) or bool(frame.key_frame))
        num_errors = len(errors)
        is_good.append(is_intact)
        check_file_frames(len(stamps), limits)
    if first is None:
        return None
    good = np.array(is_good) if any(is_good) else np.ones(len(is_good), np.bool_)
    times = trusted_times(stamps, has_presentation_times=demuxer != "avi")
    pts = continuous_times(times, durations, time_base, is_broadcast=demuxer in BROADCAST_DEMUXERS)
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
    return Scan(index, good, len(errors), first)


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


def trusted_times(stamps: list[tuple[int | None, int | None]], *, has_presentation_times: bool) -> list[int | None]:
    """The presentation or the decoding times of frames in the order in which they are shown, whichever go back less
    often: as FFmpeg's `guess_correct_pts`, but for all frames alike.
    """
    presented, decoded = ([stamp[kind] for stamp in stamps] for kind in (0, 1))
    if has_presentation_times and _num_faults(presented) <= _num_faults(decoded):
        return presented
    return decoded


def _num_faults(times: list[int | None]) -> tuple[int, int]:
    # the last frames of a decoder that reorders have no decoding times: steps back count first
    known = [time for time in times if time is not None]
    return sum(b <= a for a, b in pairwise(known)), len(times) - len(known)


def continuous_times(
    times: list[int | None], durations: list[int], time_base: Fraction, *, is_broadcast: bool
) -> NDArray[np.int64]:
    """Increasing time stamps of frames in the order in which they are shown.

    A missing one follows from the frame before it. A clock that starts again (or, in broadcast streams, jumps) goes on
    where it was. Small disorder means that the stamps were given in another order: they are sorted.
    """
    if not times:
        return np.zeros(0, np.int64)
    tick_seconds = float(time_base)
    filled: list[int] = []
    offset, last_raw = 0, None
    for time, duration in zip(times, [0, *durations[:-1]], strict=True):  # of the frame before
        step = duration or (filled[-1] - filled[-2] if len(filled) > 1 else 1)
        if time is None:
            filled.append(filled[-1] + step if filled else 0)
            last_raw = None if last_raw is None else last_raw + step
            continue
        if last_raw is None and filled:
            offset = filled[-1] + step - time
        elif last_raw is not None:
            change = time - last_raw
            is_restart = change < -16 * step and change * tick_seconds < -_MAX_STEP_BACK_SECONDS
            if is_restart or (is_broadcast and change * tick_seconds > MAX_STEP_SECONDS):
                offset = filled[-1] + step - time
        filled.append(time + offset)
        last_raw = time
    return np.sort(np.array(filled, np.int64), kind="stable")
