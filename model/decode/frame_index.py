"""The frames of a file in presentation order, read from its packets without decoding."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidlex.model.decode.limits import DecodeLimits, check_file_frames


@dataclass(frozen=True, eq=False)
class FrameIndex:
    """Frame ``i`` is shown from ``starts_ms[i]`` to ``ends_ms[i]``, relative to the first frame."""

    pts: NDArray[np.int64]  # in ``time_base`` seconds; not decreasing
    time_base: Fraction
    starts_ms: NDArray[np.int64]
    ends_ms: NDArray[np.int64]
    keyframes: NDArray[np.int64]  # indices of frames that decode without any other frame
    # no packet is hidden, and frames shown before a keyframe are stored before it, so frames can be found by counting
    # packets; false for open groups of pictures (x265's default)
    is_simple: bool

    def __len__(self) -> int:
        return len(self.pts)

    @property
    def end_ms(self) -> int:
        return max(1, int(self.ends_ms.max()))

    def decoding_plan(self, indices: NDArray[np.int64]) -> tuple[list[int], list[int], list[int]]:
        """Time stamps of the frames, numbers of the keyframes that they decode from, time stamps of all keyframes."""
        groups = np.searchsorted(self.keyframes, indices, side="right") - 1
        return self.pts[indices].tolist(), groups.tolist(), self.pts[self.keyframes].tolist()


def index_frames(packets: Iterable[Any], time_base: Fraction, limits: DecodeLimits) -> FrameIndex | None:
    """Index all ``packets`` of one stream, as demuxed by PyAV; None without a keyframe."""
    rows: list[tuple[int, int, bool]] = []
    hidden = False
    for packet in packets:
        if packet.size == 0:  # PyAV's end-of-file marker
            continue
        time = packet.dts if packet.pts is None else packet.pts
        if time is None or packet.is_discard or (not rows and not packet.is_keyframe):
            hidden = True
            continue
        rows.append((time, packet.duration or 0, packet.is_keyframe))
        check_file_frames(len(rows), limits)
    if not rows:
        return None
    stored = np.array(rows, np.int64)
    stored = stored[stored[:, 0] >= stored[0, 0]]  # frames before the first keyframe cannot be decoded
    hidden |= len(stored) != len(rows)
    order = np.argsort(stored[:, 0], kind="stable")
    pts, durations, is_key = stored[order].T
    keyframes = np.flatnonzero(is_key)
    starts = _milliseconds(pts - pts[0], time_base)
    # a last frame without a duration gets that of the frame before it
    last = durations[-1] or (pts[-1] - pts[-2] if len(pts) > 1 else 0)
    next_pts = np.append(pts[1:], pts[-1] + last)
    return FrameIndex(
        pts=pts,
        time_base=time_base,
        starts_ms=starts,
        ends_ms=_milliseconds(next_pts - pts[0], time_base),
        keyframes=keyframes,
        is_simple=not hidden and bool((np.flatnonzero(stored[:, 2]) == keyframes).all()),
    )


def _milliseconds(ticks: NDArray[np.int64], time_base: Fraction) -> NDArray[np.int64]:
    milliseconds: NDArray[np.int64] = np.rint(ticks * (float(time_base) * 1000)).astype(np.int64)
    return milliseconds
