"""The frames of a file in the order in which they are shown, from its packets alone: nothing is decoded."""

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
    """Frame ``i`` is on screen from ``starts_ms[i]`` to ``ends_ms[i]``, counted from the first frame."""

    pts: NDArray[np.int64]
    """[N] time stamps as the container writes them, in order, in units of ``time_base`` seconds."""
    time_base: Fraction
    starts_ms: NDArray[np.int64]
    ends_ms: NDArray[np.int64]
    keyframes: NDArray[np.int64]
    """Frames that decode without any other."""
    is_simple: bool
    """Every frame before a keyframe is stored before it too, and nothing is hidden: counting packets finds frames.

    Not so with an open group of pictures, where frames shown before a keyframe refer to it and are stored behind it
    (x265 writes that by default).
    """

    def __len__(self) -> int:
        return len(self.pts)

    @property
    def end_ms(self) -> int:
        """Where the last frame ends; at least 1, since even a single frame is shown."""
        return max(1, int(self.ends_ms.max()))


def index_frames(packets: Iterable[Any], time_base: Fraction, limits: DecodeLimits) -> FrameIndex | None:
    """Read all ``packets`` of one stream (as PyAV demuxes them); None if it holds no frame to begin with."""
    rows: list[tuple[int, int, bool]] = []
    hidden = False
    for packet in packets:
        if packet.size == 0:  # PyAV marks the end of the file so
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
    stored = stored[stored[:, 0] >= stored[0, 0]]  # what is shown before the first keyframe cannot be decoded
    hidden |= len(stored) != len(rows)
    order = np.argsort(stored[:, 0], kind="stable")
    pts, durations, is_key = stored[order].T
    keyframes = np.flatnonzero(is_key)
    starts = _milliseconds(pts - pts[0], time_base)
    # a frame without a duration lasts as long as the one before it
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
