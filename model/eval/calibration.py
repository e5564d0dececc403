from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from vidlex.model.calibration.domain import DomainCalibration
from vidlex.model.scoring import Calibration, Scorer, sigmoid


def fit_platt(logits: NDArray[np.floating[Any]], targets: NDArray[np.bool_]) -> Calibration:
    """Slope and intercept that minimise the log loss of ``sigmoid(slope * logit + intercept)`` (Platt 1999).

    The slope is positive, so that the ranking does not change. Raises ValueError if either class is missing.
    """
    x = np.asarray(logits, np.float64).ravel()
    y = np.asarray(targets, bool).ravel()
    if y.all() or not y.any():
        raise ValueError("calibration needs positives and negatives")

    def loss(theta: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        slope = np.exp(theta[0])
        z = slope * x + theta[1]
        value = np.mean(np.logaddexp(0.0, z) - y * z)
        residual = (sigmoid(z) - y) / len(x)
        return float(value), np.array([np.sum(residual * x) * slope, np.sum(residual)])

    result = minimize(loss, np.zeros(2), jac=True, method="L-BFGS-B", bounds=((-5, 5), (-50, 50)))
    return Calibration(slope=float(np.exp(result.x[0])), intercept=float(result.x[1]))


def fit_scorer(
    calibration: DomainCalibration, adjusted: NDArray[np.floating[Any]], targets: NDArray[np.bool_], scorer: Scorer
) -> DomainCalibration:
    """Platt scaling on labelled pairs: adjusted similarities and targets [n]. Raises ValueError if a class is missing.

    ``scorer``: the model's own.
    """
    own = calibration.scorer or scorer
    return replace(calibration, scorer=replace(own, calibration=fit_platt(own.logit(adjusted), targets)))


def reliability(
    probabilities: NDArray[np.floating[Any]], targets: NDArray[np.bool_], num_bins: int = 15
) -> list[dict[str, float]]:
    p = np.asarray(probabilities, np.float64).ravel()
    y = np.asarray(targets, bool).ravel()
    bins = np.minimum((p * num_bins).astype(int), num_bins - 1)
    counts = np.bincount(bins, minlength=num_bins)
    sums, positives = np.bincount(bins, p, num_bins), np.bincount(bins, y, num_bins)
    return [
        {
            "probability": float(sums[i] / counts[i]),
            "frequency": float(positives[i] / counts[i]),
            "num_pairs": int(counts[i]),
        }
        for i in np.flatnonzero(counts)
    ]


def expected_calibration_error(
    probabilities: NDArray[np.floating[Any]], targets: NDArray[np.bool_], num_bins: int = 15
) -> float:
    """Mean difference of probability and frequency over equal-width bins, weighted by their size (Guo et al. 2017)."""
    rows = reliability(probabilities, targets, num_bins)
    total = sum(row["num_pairs"] for row in rows)
    return sum(abs(row["probability"] - row["frequency"]) * row["num_pairs"] for row in rows) / total
