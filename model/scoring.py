"""Similarity to logit to probability: the scoring arithmetic of both training and serving.

Paper section 3 (arXiv 2407.09073): ``p = sigmoid(s / tau)`` with ``s`` the inner product of the video and the
label feature. As in SigLIP, ``logit = logit_scale * s + logit_bias`` (the paper has ``logit_scale = 1 / tau,
logit_bias = 0``), followed by a calibration fitted on validation data (Platt 1999: ``p = sigmoid(slope * logit +
intercept)``). A label's probability depends only on its own similarity.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

ArrayT = TypeVar("ArrayT")  # numpy array or torch tensor


@dataclass(frozen=True)
class Calibration:
    slope: float = 1.0
    intercept: float = 0.0

    def __post_init__(self) -> None:
        if not (np.isfinite(self.slope) and np.isfinite(self.intercept) and self.slope > 0):
            raise ValueError(f"calibration must be finite with a positive slope, got {self}")

    def probability(self, logit: NDArray[np.floating[Any]] | float) -> NDArray[np.float64]:
        return sigmoid(np.asarray(logit, dtype=np.float64) * self.slope + self.intercept)


def similarity_to_logit(similarity: ArrayT, logit_scale: Any, logit_bias: Any) -> ArrayT:
    return similarity * logit_scale + logit_bias  # type: ignore[no-any-return]


def sigmoid(logit: NDArray[np.floating[Any]]) -> NDArray[np.float64]:  # without overflow
    x = np.asarray(logit, dtype=np.float64)
    e = np.exp(-np.abs(x))
    result: NDArray[np.float64] = np.where(x >= 0, 1.0, e) / (1.0 + e)
    return result


@dataclass(frozen=True)
class Scorer:
    logit_scale: float
    logit_bias: float = 0.0
    calibration: Calibration = Calibration()

    def __post_init__(self) -> None:
        if not (np.isfinite(self.logit_scale) and np.isfinite(self.logit_bias) and self.logit_scale > 0):
            raise ValueError(f"a higher similarity must score higher, got {self.logit_scale=}, {self.logit_bias=}")

    def logit(self, similarity: NDArray[np.floating[Any]]) -> NDArray[np.float64]:  # uncalibrated
        return similarity_to_logit(np.asarray(similarity, dtype=np.float64), self.logit_scale, self.logit_bias)

    def probability(self, similarity: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        return self.calibration.probability(self.logit(similarity))

    def similarity(self, probability: float) -> float:
        """The inverse of ``probability``, to about 1e-12; infinite at 0 and 1."""
        if not 0 < probability < 1:
            return float("-inf") if probability <= 0 else float("inf")
        calibrated = float(np.log(probability) - np.log1p(-probability))
        logit = (calibrated - self.calibration.intercept) / self.calibration.slope
        return (logit - self.logit_bias) / self.logit_scale


def zero_shot_scorer(logit_scale: float, logit_bias: float | None) -> Scorer:
    """A model trained with softmax has no bias: its logits are centred at a cosine of 0.25, typical of a matching pair
    of CLIP. The probabilities are then not calibrated."""
    return Scorer(logit_scale, -0.25 * logit_scale if logit_bias is None else logit_bias)
