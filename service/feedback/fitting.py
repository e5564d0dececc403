"""Platt scaling of one label's scores, shrunk to the model's own calibration, and the threshold that follows from it.

With ``z = logit(score)`` the probability that the label applies is ``sigmoid(slope * z + intercept)`` (Platt 1999,
"Probabilistic outputs for support vector machines"), where slope and intercept minimise

    sum of -ln p(right or wrong)  +  (slope - 1)^2 / (2 * 0.25^2)  +  intercept^2 / (2 * 2^2)

by Newton's method with backtracking, in the form without overflow of Lin, Lin and Weng (2007), "A note on Platt's
probabilistic outputs for support vector machines". The prior takes the place of Platt's smoothed targets, which shrink
to one half instead of to the model's score. Slope 1 and intercept 0 are the model's own calibration.

Why this strength: a judgement of a video at p = 1/2 has the information p (1 - p) = 1/4 about the intercept, as much as
the prior's 1 / 2^2: one judgement. The prior's 1 / 0.25^2 = 16 about the slope is that of about forty judgements of
scores near 0.12 or 0.88 (z^2 p (1 - p) = 0.42), because thirty judgements tell little of a slope. Simulated with labels
whose slopes vary by 0.15, 0.3 and 0.5, thirty judgements miss the true crossing by 0.38, 0.41 and 0.46 on average, a
prior of 0.5 by 0.41, 0.42 and 0.46, and one of 1.0 by 0.44, 0.47 and 0.51. A right judgement that becomes wrong lowers
the threshold in 2 % of the cases, with the weaker ones in 12 % and 18 % (see the tests).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidlex.model.scoring import sigmoid

MIN_RISE = 1.0  # of the log odds from the lowest to the highest judged score, for the scores to tell right from wrong
MAX_LOGIT = 30.0  # beyond it a float64 score is not distinguishable from 0 or 1
Z_95 = 1.959963984540054  # of a normal distribution, two-sided
_MAX_STEPS = 100
_TOLERANCE = 1e-10

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Prior:
    """Standard deviations of independent normal distributions around slope 1 and intercept 0."""

    slope_std: float = 0.25
    intercept_std: float = 2.0


PRIOR = Prior()


@dataclass(frozen=True)
class PlattFit:
    slope: float
    intercept: float
    covariance: tuple[float, float, float]  # of the posterior (Laplace): var slope, covariance, var intercept

    def probability(self, logits: Floats) -> NDArray[np.float64]:
        return sigmoid(np.asarray(logits, np.float64) * self.slope + self.intercept)

    @property
    def crossing(self) -> float:
        """The logit at which the probability is one half. Needs a slope > 0."""
        return -self.intercept / self.slope

    @property
    def crossing_std(self) -> float:
        """By the delta method: the gradient of ``-intercept / slope`` is ``(-crossing, -1) / slope``."""
        var_slope, cov, var_intercept = self.covariance
        z = self.crossing
        return math.sqrt(max(0.0, z * z * var_slope + 2 * z * cov + var_intercept)) / self.slope


def logit_of(scores: Floats) -> NDArray[np.float64]:
    """Of probabilities, within +-MAX_LOGIT."""
    p = np.asarray(scores, np.float64)
    with np.errstate(divide="ignore"):
        logits: NDArray[np.float64] = np.clip(np.log(p) - np.log1p(-p), -MAX_LOGIT, MAX_LOGIT)
    return logits


def fit_platt(logits: Floats, targets: NDArray[Any], prior: Prior = PRIOR) -> PlattFit:
    """``logits`` [n] of the scores, ``targets`` [n] from 0 (wrong) to 1 (right). The minimum is unique."""
    z = np.asarray(logits, np.float64)
    y = np.asarray(targets, np.float64)
    weights = np.array([prior.slope_std**-2, prior.intercept_std**-2])
    centre = np.array([1.0, 0.0])

    def loss(at: NDArray[np.float64]) -> float:
        u = at[0] * z + at[1]
        # -y ln p - (1 - y) ln(1 - p) = ln(1 + e^u) - y u
        return float(np.sum(np.logaddexp(0.0, u) - y * u) + 0.5 * np.sum(weights * (at - centre) ** 2))

    at = centre.copy()
    value = loss(at)
    for _ in range(_MAX_STEPS):
        gradient, hessian = _derivatives(at, z, y, weights, centre)
        step = np.linalg.solve(hessian, -gradient)
        descent = float(gradient @ step)
        if -descent < _TOLERANCE:
            at = at + step  # converges quadratically here, and the loss is at its rounding
            break
        scale = 1.0
        while (new_value := loss(at + scale * step)) > value + 1e-4 * scale * descent and scale > 1e-10:
            scale /= 2
        at, value = at + scale * step, new_value
    _, hessian = _derivatives(at, z, y, weights, centre)
    covariance = np.linalg.inv(hessian)
    return PlattFit(
        float(at[0]),
        float(at[1]),
        (float(covariance[0, 0]), float(covariance[0, 1]), float(covariance[1, 1])),
    )


def _derivatives(
    at: NDArray[np.float64],
    z: NDArray[np.float64],
    y: NDArray[np.float64],
    weights: NDArray[np.float64],
    centre: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    p = sigmoid(at[0] * z + at[1])
    gradient = np.array([np.dot(p - y, z), np.sum(p - y)]) + weights * (at - centre)
    w = p * (1 - p)
    off = np.dot(w, z)
    hessian = np.array([[np.dot(w * z, z), off], [off, np.sum(w)]]) + np.diag(weights)
    return gradient, hessian


@dataclass(frozen=True)
class Threshold:
    """As scores. ``low`` and ``high`` bound it with 95 %; None for a target precision."""

    value: float
    low: float | None
    high: float | None
    is_at_edge: bool  # the fit would put it outside the judged scores; it is at the nearest of them


def tells_apart(fit: PlattFit, scores: Floats) -> bool:
    return fit.slope * float(np.ptp(logit_of(scores))) >= MIN_RISE


def even_threshold(fit: PlattFit, scores: Floats) -> Threshold | None:
    """The score at which the label is as likely right as wrong: the fewest expected errors.

    Not the one with the best F1: that depends on which videos happen to be judged, while the probability at a score
    does not, as long as people choose what they judge by the score. Between the lowest and the highest of the judged
    ``scores``, since nothing is known outside. None if the scores do not tell right from wrong.
    """
    if not tells_apart(fit, scores):
        return None
    half = Z_95 * fit.crossing_std
    low, high = (float(sigmoid(np.asarray(fit.crossing + side * half))) for side in (-1, 1))
    value = float(sigmoid(np.asarray(fit.crossing)))
    lowest, highest = float(np.min(scores)), float(np.max(scores))
    inside = min(max(value, lowest), highest)
    return Threshold(inside, low, high, is_at_edge=inside != value)


def precise_threshold(fit: PlattFit, scores: Floats, target_precision: float) -> Threshold | None:
    """The lowest judged score from which on the mean fitted probability of the judged videos reaches the target.

    None if no score does.
    """
    if not tells_apart(fit, scores):
        return None
    falling = np.sort(np.asarray(scores, np.float64))[::-1]
    probabilities = fit.probability(logit_of(falling))
    # The mean over all scores down to each of them falls with the score.
    means = np.cumsum(probabilities) / np.arange(1, len(falling) + 1)
    enough = np.flatnonzero(means >= target_precision)
    if not len(enough):
        return None
    return Threshold(float(falling[enough[-1]]), None, None, is_at_edge=bool(enough[-1] == len(falling) - 1))
