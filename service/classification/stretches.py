"""Merges a label's scores over time into stretches in which it applies.

With one bound a label whose score varies around its threshold would fall into many pieces. So there are two, as in the
hysteresis of an edge detector: a stretch needs one segment whose score reaches the label's threshold, and extends over
the adjacent segments that reach a lower bound, at which the odds are half of the threshold's. Odds, because a score is
a logistic function of the evidence: half the odds is the same step (ln 2) less evidence for a label with threshold 0.1
as for one with 0.9, while a fixed difference of scores would swallow the first and do little for the second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidlex.service.classification.segments import Segment


@dataclass(frozen=True, slots=True)
class Stretch:
    start_ms: int
    end_ms: int
    score: float  # of its best segment
    peak_ms: int  # the middle of the first best segment


@dataclass(frozen=True, eq=False)
class Timeline:
    """S segments in order, at least one. ``touches`` [S - 1]: whether segment i + 1 continues segment i."""

    segments: Sequence[Segment]
    touches: NDArray[np.bool_]

    @classmethod
    def of(cls, segments: Sequence[Segment], times_ms: Sequence[int]) -> Timeline:
        """``times_ms`` are those of all looks. Two single frames touch if no other look lies between them."""
        starts = np.array([segment.start_ms for segment in segments], np.int64)
        ends = np.array([segment.end_ms for segment in segments], np.int64)
        touches = starts[1:] <= ends[:-1]
        if (starts == ends).all():
            times = np.unique(np.asarray(times_ms, np.int64))
            touches = np.diff(np.searchsorted(times, starts)) <= 1
        return cls(segments, touches)

    def stretches(self, scores: NDArray[np.floating[Any]], threshold: float) -> tuple[Stretch, ...]:
        """Of a label with ``scores`` [S], in order of time."""
        if scores.max() < threshold:
            return ()
        if len(self.segments) == 1:
            (only,) = self.segments
            return (Stretch(only.start_ms, only.end_ms, float(scores[0]), (only.start_ms + only.end_ms) // 2),)
        holds = scores >= lower_bound(threshold)
        continues = np.append(False, holds[:-1] & self.touches)
        firsts = np.flatnonzero(holds & ~continues)
        lasts = np.flatnonzero(holds & ~np.append(continues[1:] & holds[1:], False))
        found = []
        for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True):
            best = first + int(scores[first : last + 1].argmax())
            if scores[best] >= threshold:
                peak = self.segments[best]
                found.append(
                    Stretch(
                        self.segments[first].start_ms,
                        self.segments[last].end_ms,
                        float(scores[best]),
                        (peak.start_ms + peak.end_ms) // 2,
                    )
                )
        return tuple(found)


def lower_bound(threshold: float) -> float:
    """The probability whose odds are half those of ``threshold``: t / (2 - t), so 1/3 for 1/2; 0 and 1 stay."""
    return threshold / (2.0 - threshold)
