"""Groups the looks at a video into segments as they arrive, so that no more than the open segment is in memory.

A look is a sampled frame. Each segment is encoded on its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vidlex.model.types import FrameBatch

# A cell may have more looks than requested: twice as many if the window is little longer than one cell, and all frames
# of a burst if a video with a variable rate has fewer frames than requested.
_MAX_LOOKS_PER_REQUESTED = 4


@dataclass(frozen=True)
class Segment:
    start_ms: int
    end_ms: int  # ``start_ms`` for a single frame


@dataclass(frozen=True, eq=False)
class Look:
    time_ms: int
    frame: NDArray[np.uint8]  # [H, W, 3]
    is_blank: bool = False
    is_repeated: bool = False
    starts_shot: bool = False


@dataclass(frozen=True, eq=False)
class SegmentLooks:
    segment: Segment
    looks: Sequence[Look]  # at least one

    @property
    def is_blank(self) -> bool:
        return all(look.is_blank for look in self.looks)

    def frames(self, *, drop_repeated: bool = False) -> NDArray[np.uint8]:
        """The frames [T, H, W, 3] that decide: without blank ones, and without those that repeat the one before.

        All are kept if all are blank, and repeated ones if fewer than two others remain: a static picture is no fault.
        """
        shown = [look for look in self.looks if not look.is_blank] or self.looks
        if not drop_repeated:
            return np.stack([look.frame for look in shown])
        distinct = [look for i, look in enumerate(shown) if i == 0 or not look.is_repeated]
        return np.stack([look.frame for look in (distinct if len(distinct) > 1 else shown)])


class Grouping(Protocol):
    """``add`` and ``finish`` return the segments that are complete, in order. ``end_ms`` is that of the window.

    ``hold`` copies the frames of the open segment: call it before the memory of the frames is used again.
    """

    def add(self, look: Look, end_ms: int) -> list[SegmentLooks]: ...

    def finish(self, end_ms: int) -> list[SegmentLooks]: ...

    def hold(self) -> None: ...


class OneSegment:
    """All looks. They stay in memory until the end."""

    def __init__(self, start_ms: int) -> None:
        self._start_ms = start_ms
        self._looks: list[Look] = []

    def add(self, look: Look, end_ms: int) -> list[SegmentLooks]:
        self._looks.append(look)
        return []

    def finish(self, end_ms: int) -> list[SegmentLooks]:
        return [SegmentLooks(Segment(self._start_ms, end_ms), self._looks)] if self._looks else []

    def hold(self) -> None:
        self._looks = list(map(_owned, self._looks))


class EachTime:
    """A segment per time: a short video repeats its last frame, which must not be scored twice."""

    def __init__(self) -> None:
        self._look: Look | None = None

    def add(self, look: Look, end_ms: int) -> list[SegmentLooks]:
        done = self.finish(end_ms) if self._look is not None and look.time_ms > self._look.time_ms else []
        self._look = look
        return done

    def finish(self, end_ms: int) -> list[SegmentLooks]:
        look, self._look = self._look, None
        return [] if look is None else [SegmentLooks(Segment(look.time_ms, look.time_ms), [look])]

    def hold(self) -> None:
        self._look = None if self._look is None else _owned(self._look)


class Cells:
    """Segments of ``segment_ms`` from ``start_ms`` on, the last one possibly shorter.

    A cell in which no frame starts has the one that is on screen since before. Of one frame a cell has at most
    ``num_frames`` copies, else a still of an hour would stand in the cell in which it starts some thousand times. A
    cell with very many looks keeps every second, fourth, ... of them.
    """

    def __init__(self, start_ms: int, segment_ms: int, num_frames: int) -> None:
        self._start_ms = start_ms  # of the open cell
        self._segment_ms = segment_ms
        self._num_frames = num_frames
        self._looks: list[Look] = []  # of the open cell
        self._num_looks = 0  # of the open cell, including those that were not kept
        self._stride = 1  # every how many looks are kept
        self._shown: Look | None = None  # the newest

    def add(self, look: Look, end_ms: int) -> list[SegmentLooks]:
        done = []
        while self._start_ms < end_ms and look.time_ms >= min(self._start_ms + self._segment_ms, end_ms):
            done.append(self._complete(end_ms, self._shown or look))
        if look.time_ms >= self._start_ms and not self._has_enough_copies(look):
            self._keep(look)
        self._shown = look
        return done

    def finish(self, end_ms: int) -> list[SegmentLooks]:
        done = []
        while self._shown is not None and self._start_ms < end_ms:
            done.append(self._complete(end_ms, self._shown))
        return done

    def hold(self) -> None:
        self._looks = list(map(_owned, self._looks))
        self._shown = None if self._shown is None else _owned(self._shown)

    def _complete(self, end_ms: int, shown: Look) -> SegmentLooks:
        cell = Segment(self._start_ms, min(self._start_ms + self._segment_ms, end_ms))
        looks, self._looks = self._looks or [shown], []
        self._num_looks, self._stride = 0, 1
        self._start_ms += self._segment_ms
        return SegmentLooks(cell, looks)

    def _has_enough_copies(self, look: Look) -> bool:
        num, looks = self._num_frames, self._looks
        return len(looks) >= num and looks[-num].time_ms == look.time_ms

    def _keep(self, look: Look) -> None:
        if self._num_looks % self._stride == 0:
            self._looks.append(look)
        self._num_looks += 1
        if len(self._looks) > _MAX_LOOKS_PER_REQUESTED * self._num_frames:
            self._looks = self._looks[::2]
            self._stride *= 2


class Shots:
    """A segment per shot, and per ``max_looks`` within one. The segments touch: each lasts until the next one."""

    def __init__(self, start_ms: int, max_looks: int) -> None:
        self._start_ms = start_ms  # of the open segment
        self._max_looks = max_looks
        self._looks: list[Look] = []

    def add(self, look: Look, end_ms: int) -> list[SegmentLooks]:
        is_full = bool(self._looks) and (look.starts_shot or len(self._looks) == self._max_looks)
        done = self.finish(look.time_ms) if is_full else []
        self._looks.append(look)
        return done

    def finish(self, end_ms: int) -> list[SegmentLooks]:
        if not self._looks:
            return []
        done = SegmentLooks(Segment(self._start_ms, max(end_ms, self._start_ms)), self._looks)
        self._looks, self._start_ms = [], end_ms
        return [done]

    def hold(self) -> None:
        self._looks = list(map(_owned, self._looks))


def looks_of(batch: FrameBatch) -> Iterator[Look]:
    """Their frames are views of the batch, whose memory the next chunk may take."""
    content = batch.content
    for i, (time_ms, frame) in enumerate(zip(batch.timestamps_ms, batch.frames, strict=True)):
        if content is None:
            yield Look(time_ms, frame)
        else:
            blank, repeated, starts = content.is_blank[i], content.is_repeated[i], content.starts_shot[i]
            yield Look(time_ms, frame, bool(blank), bool(repeated), bool(starts))


def _owned(look: Look) -> Look:
    return look if look.frame.flags.owndata else replace(look, frame=look.frame.copy())
