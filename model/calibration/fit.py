"""A calibration from a domain's unlabelled videos. What few videos say is shrunk towards the model's own scores.

Over a fixed bank of ordinary labels, both the mean and the variance of a label's similarity differ between labels by
more than chance, or they do not. The share of the difference that is not chance is the weight of the domain's own
estimate (empirical Bayes; Efron and Morris 1975). The rest is as without a calibration: the same for all labels.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from vidlex.model.calibration.domain import (
    CalibrationError,
    DefaultCalibration,
    DomainCalibration,
    bank_of,
    reference_of,
)
from vidlex.model.calibration.statistics import DomainStatistics
from vidlex.model.scoring import Scorer

MIN_VIDEOS = 8
# Part of a label's mean and variance is what it should find, in the videos that show it. They are therefore weighted as
# if this many videos had been seen in which all labels are equal, and the variance at most by a quarter.
_PRIOR_VIDEOS = 4
_PRIOR_VIDEOS_OF_SPREAD = 1000
_MAX_SPREAD_WEIGHT = 0.25
# Of an estimated variance, relative to the normal distribution's 2 / (n - 1): similarities have heavier tails, because
# few videos show what a label means.
_TAIL_FACTOR = 2.0
# Scores without any labelled example: a label is true in one of 50 videos and then lies 3 standard deviations above
# its mean, both distributions normal. The log odds of true are then linear in z.
PRIOR_RATE = 0.02
PRIOR_SHIFT = 3.0


def fit_domain(
    domain: DomainStatistics,
    bank: NDArray[np.float32],
    scorer: Scorer,
    default: DefaultCalibration | None = None,
) -> DomainCalibration:
    """``bank`` [K, D]: vectors of ordinary labels. ``scorer``: the model's own.

    Raises CalibrationError for too few videos, or if they are all the same to the model.
    """
    check_num_videos(domain.num_videos)
    if bank.shape[1] != domain.dim or (default is not None and default.statistics.dim != domain.dim):
        raise CalibrationError("the statistics are of another model")
    means, variances = domain.moments(bank)
    mean_variance = float(variances.mean())
    if not mean_variance > 1e-12:
        raise CalibrationError("the videos are all the same to this model")
    n = domain.num_videos
    weight = _share(means - means.mean(), mean_variance / n) * n / (n + _PRIOR_VIDEOS)
    weight *= 1.0 if default is None else default.mean_weight
    spread_weight = _share(variances / mean_variance - 1, 2 * _TAIL_FACTOR / (n - 1))
    spread_weight *= _MAX_SPREAD_WEIGHT * n / (n + _PRIOR_VIDEOS_OF_SPREAD)
    calibration = DomainCalibration(
        domain,
        mean_weight=weight,
        offset=(1 - weight) * float(means.mean()),
        spread_weight=spread_weight,
        constant=(1 - spread_weight) * mean_variance,
        min_variance=0.05 * mean_variance,
        bank=bank_of(domain, bank),
    )
    if default is not None:
        return replace(calibration, reference=default.reference)
    if not is_fitted(scorer):
        return replace(calibration, scorer=prior_scorer())
    # The scorer was fitted to similarities of unknown mean and std: the bank's keep their level.
    return replace(calibration, reference=reference_of(domain, bank))


def check_num_videos(num_videos: int) -> None:
    """Raises CalibrationError."""
    if num_videos < MIN_VIDEOS:
        raise CalibrationError(f"{num_videos} videos are too few to calibrate on; give at least {MIN_VIDEOS}")


def _share(deviations: NDArray[np.float64], chance: float) -> float:
    """Of the mean square of ``deviations``, what errors of variance ``chance`` do not explain."""
    total = float(np.mean(deviations**2))
    return max(0.0, 1 - chance / total) if total > 0 else 0.0


def is_fitted(scorer: Scorer) -> bool:
    """Whether its probabilities were fitted to labelled videos."""
    return scorer.calibration != type(scorer.calibration)()


def prior_scorer() -> Scorer:
    """Of z: the log odds of two normal distributions of variance 1, ``PRIOR_SHIFT`` apart."""
    log_odds = float(np.log(PRIOR_RATE / (1 - PRIOR_RATE)))
    return Scorer(logit_scale=PRIOR_SHIFT, logit_bias=log_odds - PRIOR_SHIFT**2 / 2)
