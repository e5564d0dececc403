"""similarity -> logit -> probability. The only scoring arithmetic; training and serving share it.

Paper section 3 (arXiv 2407.09073): ``p = sigmoid(s / tau)`` with ``s`` the inner product of the video and the
label feature. Vidlex writes ``logit = logit_scale * s + logit_bias`` as SigLIP does (the paper is
``logit_scale = 1 / tau, logit_bias = 0``), and then applies a calibration fitted on validation data
(Platt 1999: ``p = sigmoid(slope * logit + intercept)``). Each label's probability depends on its own
similarity alone, never on the other labels.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

ArrayT = TypeVar("ArrayT")
"""numpy array or torch tensor: the arithmetic is the same."""


@dataclass(frozen=True)
class Calibration:
    """Platt scaling of the logit. The identity by default."""

    slope: float = 1.0
    intercept: float = 0.0

    def __post_init__(self) -> None:
        if not (np.isfinite(self.slope) and np.isfinite(self.intercept) and self.slope > 0):
            raise ValueError(f"calibration must be finite with a positive slope, got {self}")

    def probability(self, logit: NDArray[np.floating[Any]] | float) -> NDArray[np.float64]:
        """``sigmoid(slope * logit + intercept)`` in float64, any shape."""
        return sigmoid(np.asarray(logit, dtype=np.float64) * self.slope + self.intercept)


def similarity_to_logit(similarity: ArrayT, logit_scale: Any, logit_bias: Any) -> ArrayT:
    """``logit_scale * similarity + logit_bias``, element by element; any shape, e.g. [B, V]."""
    return similarity * logit_scale + logit_bias  # type: ignore[no-any-return]


def sigmoid(logit: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Logistic function in float64, without overflow at either end. Any shape."""
    x = np.asarray(logit, dtype=np.float64)
    e = np.exp(-np.abs(x))
    result: NDArray[np.float64] = np.where(x >= 0, 1.0, e) / (1.0 + e)
    return result


@dataclass(frozen=True)
class Scorer:
    """A checkpoint's way from similarities to probabilities, as used by the service."""

    logit_scale: float
    logit_bias: float = 0.0
    calibration: Calibration = Calibration()

    def __post_init__(self) -> None:
        if not (np.isfinite(self.logit_scale) and np.isfinite(self.logit_bias) and self.logit_scale > 0):
            raise ValueError(f"a higher similarity must score higher, got {self.logit_scale=}, {self.logit_bias=}")

    def logit(self, similarity: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Uncalibrated logits in float64, same shape. Metrics are computed on these (float32 sigmoids tie)."""
        return similarity_to_logit(np.asarray(similarity, dtype=np.float64), self.logit_scale, self.logit_bias)

    def probability(self, similarity: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Calibrated probabilities in 0..1, float64, same shape as ``similarity``."""
        return self.calibration.probability(self.logit(similarity))

    def similarity(self, probability: float) -> float:
        """The inverse of ``probability``, to about 1e-12; infinite at 0 and 1."""
        if not 0 < probability < 1:
            return float("-inf") if probability <= 0 else float("inf")
        calibrated = float(np.log(probability) - np.log1p(-probability))
        logit = (calibrated - self.calibration.intercept) / self.calibration.slope
        return (logit - self.logit_bias) / self.logit_scale

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Scorer:
        return cls(data["logit_scale"], data["logit_bias"], Calibration(**data["calibration"]))
