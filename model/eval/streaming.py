"""Micro average precision and Peak F1 of more pairs than fit in memory: counts of logits in equal bins.

Scores of one bin count as equal. The figures are exactly those of scores rounded down to their bin, so the error is
that of the rounding: with 2^16 bins over 64 logits a bin is a thousandth wide.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vidlex.model.eval.metrics import FloatArray, area, as_pairs, best_f1

NUM_BINS = 1 << 16


class StreamingMetrics:
    """Logits between ``low`` and ``high``; those beyond count at the ends."""

    def __init__(self, *, low: float = -32.0, high: float = 32.0, num_bins: int = NUM_BINS) -> None:
        if not low < high or num_bins < 2:
            raise ValueError("low must be below high, with two bins at least")
        self.low, self.high, self.num_bins = low, high, num_bins
        self._positives: NDArray[np.int64] = np.zeros(num_bins, np.int64)
        self._negatives: NDArray[np.int64] = np.zeros(num_bins, np.int64)

    def update(self, scores: ArrayLike, targets: ArrayLike, known: ArrayLike | None = None) -> None:
        """Count a batch of logits [B, V]. ValueError for NaN."""
        s, y, mask = as_pairs(scores, targets, known)
        if np.isnan(s[mask]).any():
            raise ValueError("scores hold NaN")
        inside = np.clip((s - self.low) / (self.high - self.low) * self.num_bins, 0, self.num_bins - 1)
        bins = inside[mask].astype(np.int64)
        self._positives += np.bincount(bins[y[mask]], minlength=self.num_bins)
        self._negatives += np.bincount(bins[~y[mask]], minlength=self.num_bins)

    def curve(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Precision, recall and threshold (lower edge) of each bin that holds anything, descending."""
        if not self._positives.any():
            raise ValueError("average precision needs at least one positive")
        used = np.flatnonzero(self._positives + self._negatives)[::-1]
        hits = np.cumsum(self._positives[used]).astype(np.float64)
        predicted = hits + np.cumsum(self._negatives[used])
        thresholds: FloatArray = self.low + used.astype(np.float64) * ((self.high - self.low) / self.num_bins)
        return hits / predicted, hits / hits[-1], thresholds

    def average_precision(self) -> float:
        precision, recall, _ = self.curve()
        return area(precision, recall)

    def peak_f1(self) -> tuple[float, float]:
        """Best F1, and its threshold."""
        precision, recall, thresholds = self.curve()
        f1, place = best_f1(precision, recall)
        return f1, float(thresholds[place])
