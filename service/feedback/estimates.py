"""Precision and recall of a threshold on judged videos, with intervals.

They describe the judged videos, which are no random sample: people judge what the service shows them, so that recall
does not count what was never shown.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidlex.service.feedback.fitting import PRIOR, Z_95, Prior, even_threshold, fit_platt, logit_of

NUM_FOLDS = 10


@dataclass(frozen=True)
class Rate:
    """A share with its 95 % interval; ``value`` is None of nothing."""

    value: float | None
    low: float
    high: float


@dataclass(frozen=True)
class Quality:
    """Judgements with a score of at least ``threshold`` are positive. None: each by a threshold of its own fold."""

    threshold: float | None
    num_true_positive: int
    num_false_positive: int
    num_false_negative: int
    num_true_negative: int
    precision: Rate
    recall: Rate


@dataclass(frozen=True, eq=False)
class Judged:
    """Usable judgements of one label, n of them."""

    scores: NDArray[np.float64]  # [n]
    is_right: NDArray[np.bool_]  # [n]
    videos: Sequence[str]  # [n] content

    def __len__(self) -> int:
        return len(self.scores)


def wilson(share: float, number: float, z: float = Z_95) -> tuple[float, float]:
    """Wilson's score interval (1927, "Probable inference, the law of succession, and statistical inference")."""
    if number <= 0:
        return 0.0, 1.0
    shrunk = z * z / number
    centre = (share + shrunk / 2) / (1 + shrunk)
    half = math.sqrt(shrunk * (share * (1 - share) + shrunk / 4)) / (1 + shrunk)
    return (0.0 if share == 0 else max(0.0, centre - half)), (1.0 if share == 1 else min(1.0, centre + half))


def rate(hits: NDArray[np.bool_], among: NDArray[np.bool_], videos: Sequence[str]) -> Rate:
    """The share of ``hits`` among ``among``. The interval counts videos, not judgements: segments of one
    video depend on each other."""
    number = int(np.count_nonzero(among))
    if not number:
        return Rate(None, 0.0, 1.0)
    share = int(np.count_nonzero(hits & among)) / number
    num_videos = len({videos[i] for i in np.flatnonzero(among).tolist()})
    return Rate(share, *wilson(share, num_videos))


def quality(judged: Judged, threshold: float) -> Quality:
    return _quality(judged, judged.scores >= threshold, threshold)


def cross_validated(judged: Judged, otherwise: float, prior: Prior = PRIOR) -> Quality:
    """Each judgement is decided by the threshold that the judgements of other videos give, in ten parts; by
    ``otherwise`` where they give none. What a threshold promises for videos that it was not fitted to."""
    folds = np.array([zlib.crc32(video.encode()) % NUM_FOLDS for video in judged.videos])
    logits = logit_of(judged.scores)
    is_positive = np.zeros(len(judged), np.bool_)
    for fold in np.unique(folds).tolist():
        others, own = folds != fold, folds == fold
        threshold = None
        if others.any():
            fit = fit_platt(logits[others], judged.is_right[others], prior)
            threshold = even_threshold(fit, judged.scores[others])
        is_positive[own] = judged.scores[own] >= (otherwise if threshold is None else threshold.value)
    return _quality(judged, is_positive, None)


def _quality(judged: Judged, is_positive: NDArray[Any], threshold: float | None) -> Quality:
    right = judged.is_right
    return Quality(
        threshold,
        num_true_positive=int(np.count_nonzero(is_positive & right)),
        num_false_positive=int(np.count_nonzero(is_positive & ~right)),
        num_false_negative=int(np.count_nonzero(~is_positive & right)),
        num_true_negative=int(np.count_nonzero(~is_positive & ~right)),
        precision=rate(right, is_positive, judged.videos),
        recall=rate(is_positive, right, judged.videos),
    )
