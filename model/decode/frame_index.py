"""The frames of a file in presentation order, read from its packets without decoding."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidlex.model.decode.limits import DecodeLimits, check_file_frames

# A clock that goes back by more than this, or forward in a broadcast stream, was set: two recordings in one file.
MAX_STEP_BACK_SECONDS = 0.5
MAX_STEP_SECONDS = 10.0
_MIN_STEADY_SHARE = 0.9
BROADCAST_DEMUXERS = ("mpegts", "mpeg", "flv")


@dataclass(frozen=True, eq=False)
class FrameIndex:
    """Frame ``i`` is shown from ``starts_ms[i]`` to ``ends_ms[i]``, relative to the first shown frame."""

    pts: NDArray[np.int64]  # [n] in ``time_base`` seconds; increasing if ``has_exact_times``
    time_base: Fraction
    starts_ms: NDArray[np.int64]  # [n]
    ends_ms: NDArray[np.int64]  # [n]
    keyframes: NDArray[np.int64]  # indices of frames that decode without any other frame
    num_bytes: NDArray[np.int64]  # [n] of the frame's packet
    key_pts: NDArray[np.int64]  # of all keyframes, including hidden ones from which shown frames decode; sorted
    half_frame: float = 0.0  # ticks from a frame to its second field, if fields are stored in packets of their own
    has_exact_times: bool = True  # ``pts`` are those of decoded frames, so frames can be found by them

    def __len__(self) -> int:
        return len(self.pts)

    @property
    def end_ms(self) -> int:
        return max(1, int(self.ends_ms.max()))

    @property
    def fps(self) -> float:
        """Frames per second; 0 for a single frame. A few gaps in a steady rate do not count."""
        steps = np.diff(self.pts)
        if not steps.sum():
            return 0.0
        steady = steps[np.abs(steps - np.median(steps)) <= max(1, np.median(steps) / 2)]
        if steady.sum() and len(steady) >= _MIN_STEADY_SHARE * len(steps):
            steps = steady
        return float(len(steps) / (int(steps.sum()) * self.time_base))

    def since(self, pts: int) -> FrameIndex:
        """The frames at and after ``pts``, at least the last one. Their times count from the first of them."""
        first = min(int(np.searchsorted(self.pts, pts)), len(self) - 1)
        if first == 0:
            return self
        rest = slice(first, None)
        keyframes = self.keyframes[self.keyframes >= first] - first
        return replace(
            self,
            pts=self.pts[rest],
            starts_ms=self.starts_ms[rest] - self.starts_ms[first],
            ends_ms=self.ends_ms[rest] - self.starts_ms[first],
            keyframes=keyframes,
            num_bytes=self.num_bytes[rest],
        )

    def decoding_plan(self, indices: NDArray[np.int64]) -> tuple[list[int], list[int], list[int]]:
        """Time stamps of the frames, numbers of the keyframes that they decode from, time stamps of all keyframes."""
        return self.pts[indices].tolist(), self.groups(indices).tolist(), self.key_pts.tolist()

    def groups(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Numbers of the keyframes (in ``key_pts``) that the frames decode from."""
        groups: NDArray[np.int64] = np.maximum(np.searchsorted(self.key_pts, self.pts[indices], side="right") - 1, 0)
        return groups


@dataclass
class PacketTable:
    """Collects the packets of one stream, as demuxed by PyAV, and makes an index of them."""

    limits: DecodeLimits
    rows: list[tuple[int, int, int, int, bool, bool]] = field(default_factory=list)
    num_without_time: int = 0

    def add(self, packets: Iterable[Any]) -> None:
        """Raises DecodeError for too many."""
        rows, max_rows = self.rows, self.limits.max_file_frames
        for packet in packets:
            time, dts = packet.pts, packet.dts
            if time is None:
                self.num_without_time += 1
                time = dts
                if time is None:
                    continue
            elif dts is None:
                dts = time
            rows.append((time, dts, packet.duration or 0, packet.size, packet.is_keyframe, packet.is_discard))
            if len(rows) > max_rows:
                check_file_frames(len(rows), self.limits)

    def index(
        self, time_base: Fraction, demuxer: str, *, reorders: bool, can_seek: bool = True, half_frame: float = 0.0
    ) -> FrameIndex | None:
        """None without a shown frame that can be decoded.

        ``reorders``: whether the decoder shows frames in another order than they are stored. ``can_seek``: whether
        packets have the same times after a seek; else all frames decode from the first.
        """
        stored = np.array(self.rows, np.int64).reshape(-1, 6)
        first_key = next(iter(np.flatnonzero(stored[:, 4])), len(stored))
        stored = stored[first_key:]
        if not len(stored):
            return None
        is_continuous = _is_continuous(stored[:, 1], time_base, demuxer)
        stored = stored[stored[:, 0] >= stored[0, 0]]  # frames before the first keyframe cannot be decoded
        if half_frame:
            stored = stored[np.rint((stored[:, 0] - stored[0, 0]) / half_frame).astype(np.int64) % 2 == 0]
        shown = stored[stored[:, 5] == 0]
        if not len(shown):
            return None
        shown = shown[np.argsort(shown[:, 0], kind="stable")]
        pts, _, durations, num_bytes, is_key, _ = shown.T
        # AVI stores no presentation times: FFmpeg numbers its packets in the order of decoding
        has_exact_times = (
            is_continuous
            and self.num_without_time == 0
            and bool((np.diff(pts) > 0).all())
            and not (demuxer == "avi" and reorders)
        )
        key_pts = np.sort(stored[stored[:, 4] == 1, 0])
        starts, ends = times_ms(pts, int(2 * half_frame or durations[-1]), time_base)
        return FrameIndex(
            pts=pts,
            time_base=time_base,
            starts_ms=starts,
            ends_ms=ends,
            keyframes=np.flatnonzero(is_key),
            num_bytes=num_bytes,
            key_pts=key_pts if can_seek else key_pts[:1],
            half_frame=half_frame,
            has_exact_times=has_exact_times,
        )


def index_of_pictures(starts_ms: NDArray[np.int64], ends_ms: NDArray[np.int64]) -> FrameIndex:
    """Of an animation that is not read from packets: one group of pictures."""
    return FrameIndex(
        pts=starts_ms,
        time_base=Fraction(1, 1000),
        starts_ms=starts_ms,
        ends_ms=ends_ms,
        keyframes=np.zeros(1, np.int64),
        num_bytes=np.zeros(len(starts_ms), np.int64),
        key_pts=starts_ms[:1],
    )


def _is_continuous(dts: NDArray[np.int64], time_base: Fraction, demuxer: str) -> bool:
    steps = np.diff(dts) * float(time_base)
    if len(steps) == 0:
        return True
    is_forward = demuxer not in BROADCAST_DEMUXERS or steps.max() <= MAX_STEP_SECONDS
    return bool(is_forward and steps.min() >= -MAX_STEP_BACK_SECONDS)


def times_ms(
    pts: NDArray[np.int64], last_duration: int, time_base: Fraction
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Starts and ends in milliseconds from the first of the sorted ``pts``.

    A last frame without a duration, or with that of a tick of a recorder's clock, gets that of the frame before it.
    """
    before = pts[-1] - pts[-2] if len(pts) > 1 else 0
    last = last_duration if 2 * last_duration >= before else before
    edges = milliseconds(np.append(pts, pts[-1] + last) - pts[0], time_base)
    return edges[:-1], edges[1:]


def milliseconds(ticks: NDArray[np.int64], time_base: Fraction) -> NDArray[np.int64]:
    rounded: NDArray[np.int64] = np.rint(ticks * (float(time_base) * 1000)).astype(np.int64)
    return rounded
