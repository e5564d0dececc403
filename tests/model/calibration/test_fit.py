"""Calibrations of random domains: they find what they should, and few videos do no harm."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from support.domains import RandomDomain, random_domain
from vidlex.model.calibration.domain import (
    CalibrationError,
    DefaultCalibration,
    DomainCalibration,
    Reference,
    bank_of,
    reference_of,
)
from vidlex.model.calibration.fit import MIN_VIDEOS, fit_domain, prior_scorer
from vidlex.model.calibration.statistics import DomainStatistics
from vidlex.model.calibration.stored import from_stored, to_stored
from vidlex.model.eval.calibration import expected_calibration_error, fit_scorer
from vidlex.model.scoring import Calibration, Scorer, zero_shot_scorer

ZERO_SHOT = zero_shot_scorer(100.0, None)
FITTED = Scorer(20.0, -8.0, Calibration(0.8, -0.3))
HALF = 300  # videos to calibrate on; the others are scored


def aupr(scores: np.ndarray, targets: np.ndarray) -> float:
    return float(average_precision_score(targets.ravel(), scores.ravel()))


def gain(domain: RandomDomain, num_videos: int) -> float:
    """Of micro AUPR, on videos that the calibration has not seen."""
    videos, targets = domain.features[HALF:], domain.targets[HALF:]
    calibration = fit_domain(DomainStatistics.of(domain.features[:num_videos]), domain.bank, ZERO_SHOT)
    plain = videos @ domain.labels.T
    return aupr(calibration.adjust(plain, domain.labels), targets) - aupr(plain, targets)


@pytest.mark.parametrize("num_videos", [16, HALF])
def test_labels_drawn_to_the_domain_are_held_back(num_videos: int) -> None:
    gains = [gain(random_domain(seed, hub=1, effect=1), num_videos) for seed in range(4)]
    assert min(gains) > 0.2, gains


@pytest.mark.parametrize("num_videos", [16, 50])
def test_few_videos_do_no_harm_where_names_are_drawn_to_nothing(num_videos: int) -> None:
    """In one of twenty domains the labels that many videos show lose a little, as they are drawn to the mean video."""
    gains = []
    for seed in range(60):
        rng = np.random.default_rng(1000 + seed)
        effect, noise = rng.choice([0.15, 0.3, 0.6, 1]), rng.choice([0.5, 1, 2])
        domain = random_domain(seed, hub=0, effect=effect, noise=noise, share_shown=rng.uniform(0.3, 1))
        gains.append(gain(domain, num_videos))
    assert np.mean(np.array(gains) < -0.01) <= 0.05 and min(gains) > -0.05, sorted(gains)[:5]
    assert np.median(gains) > 0.05


def test_the_mean_of_a_label_that_fires_on_everything_is_removed() -> None:
    domain = random_domain(0, hub=0.3, effect=0.5)
    hub = domain.features[:HALF].mean(axis=0)
    labels = np.concatenate([domain.labels, (hub / np.linalg.norm(hub))[None]])
    calibration = fit_domain(DomainStatistics.of(domain.features[:HALF]), domain.bank, ZERO_SHOT)
    plain = domain.features[HALF:] @ labels.T
    assert (plain.argmax(axis=1) == len(labels) - 1).all()
    adjusted = calibration.adjust(plain, labels)
    assert (adjusted.argmax(axis=1) == len(labels) - 1).mean() < 0.1


def test_without_a_prior_z_is_standard_normal_for_ordinary_labels() -> None:
    domain = random_domain(2, hub=1, effect=0)
    calibration = fit_domain(DomainStatistics.of(domain.features[:HALF]), domain.bank, ZERO_SHOT)
    z = calibration.adjust(domain.features[HALF:] @ domain.labels.T, domain.labels)
    assert abs(z.mean()) < 0.05 and z.std() == pytest.approx(1, abs=0.1)
    assert np.abs(z.mean(axis=0)).max() < 0.5
    assert calibration.scorer == prior_scorer()
    # One in 50 is the rate of the prior; an ordinary label scores less where nothing shows it.
    assert calibration.scorer.probability(z).mean() < 0.02


def test_a_fitted_scorer_keeps_the_level_of_ordinary_labels() -> None:
    domain = random_domain(3, hub=1, effect=0.3)
    calibration = fit_domain(DomainStatistics.of(domain.features[:HALF]), domain.bank, FITTED)
    assert calibration.scorer is None
    plain = domain.features[HALF:] @ domain.bank.T
    adjusted = calibration.adjust(plain, domain.bank)
    assert adjusted.mean() == pytest.approx(plain.mean(), abs=0.01)
    assert adjusted.std(axis=0).mean() == pytest.approx(plain.std(axis=0).mean(), rel=0.1)


def test_default_statistics_keep_the_level_that_the_scorer_was_fitted_to() -> None:
    known, domain = random_domain(4, hub=0, effect=0.3), random_domain(4, hub=1, effect=0.3)
    statistics = DomainStatistics.of(known.features)
    default = DefaultCalibration(statistics, reference_of(statistics, known.bank))
    calibration = fit_domain(DomainStatistics.of(domain.features[:HALF]), domain.bank, FITTED, default)
    assert calibration.scorer is None and calibration.reference == default.reference
    adjusted = calibration.adjust(domain.features[HALF:] @ domain.bank.T, domain.bank)
    plain = known.features @ known.bank.T
    assert adjusted.mean() == pytest.approx(plain.mean(), abs=0.01)
    assert adjusted.std(axis=0).mean() == pytest.approx(plain.std(axis=0).mean(), rel=0.15)


def test_a_model_with_learned_biases_bounds_how_much_of_a_mean_is_subtracted() -> None:
    domain = random_domain(4, hub=1, effect=0.3)
    statistics = DomainStatistics.of(domain.features[:HALF])
    whole = DefaultCalibration(statistics, reference_of(statistics, domain.bank))
    quarter = replace(whole, mean_weight=0.25)
    of_whole = fit_domain(statistics, domain.bank, FITTED, whole).mean_weight
    assert of_whole > 0.3
    assert fit_domain(statistics, domain.bank, FITTED, quarter).mean_weight == pytest.approx(0.25 * of_whole)
    entry, tensors = to_stored(quarter)
    assert from_stored(entry, tensors).mean_weight == 0.25
    with pytest.raises(ValueError, match="mean_weight"):
        replace(whole, mean_weight=1.5)


def test_the_spread_counts_only_with_many_videos() -> None:
    domain = random_domain(10, hub=1, effect=1)
    weights = []
    for num_videos in (16, 200, 20_000):
        statistics = replace(DomainStatistics.of(domain.features), num_videos=num_videos)
        weights.append(fit_domain(statistics, domain.bank, ZERO_SHOT).spread_weight)
    assert weights[0] < 0.01 and 0.01 < weights[1] < 0.1 < weights[2] <= 0.25


def test_labelled_videos_make_scores_frequencies() -> None:
    domain = random_domain(5, hub=1, effect=0.5)
    calibration = fit_domain(DomainStatistics.of(domain.features[:HALF]), domain.bank, ZERO_SHOT)
    labelled, targets = domain.features[:HALF], domain.targets[:HALF]
    adjusted = calibration.adjust(labelled @ domain.labels.T, domain.labels)
    fitted = fit_scorer(calibration, adjusted.ravel(), targets.ravel(), ZERO_SHOT)
    assert fitted.scorer is not None
    scores = fitted.scorer.probability(calibration.adjust(domain.features[HALF:] @ domain.labels.T, domain.labels))
    assert expected_calibration_error(scores, domain.targets[HALF:]) < 0.01
    assert np.mean(scores) == pytest.approx(domain.targets[HALF:].mean(), abs=0.01)


def test_a_calibration_survives_json_to_the_bit_and_has_a_fingerprint_of_everything() -> None:
    domain = random_domain(7, hub=1, effect=0.3)
    statistics = DomainStatistics.of(domain.features[:50])
    calibration = fit_domain(statistics, domain.bank, ZERO_SHOT)
    read = DomainCalibration.from_dict(json.loads(json.dumps(calibration.to_dict())))
    for a, b in zip(read.affine(domain.labels), calibration.affine(domain.labels), strict=True):
        np.testing.assert_array_equal(a, b)
    fingerprint = calibration.fingerprint("model")
    assert read.fingerprint("model") == fingerprint == calibration.fingerprint("model")
    others = [
        replace(calibration, offset=calibration.offset + 1e-6),
        replace(calibration, scorer=None),
        replace(calibration, reference=Reference(0.1)),
        fit_domain(DomainStatistics.of(domain.features[:51]), domain.bank, ZERO_SHOT),
    ]
    assert len({fingerprint, calibration.fingerprint("other"), *(x.fingerprint("model") for x in others)}) == 6


def test_what_cannot_be_calibrated_is_refused() -> None:
    domain = random_domain(8, hub=1, effect=0.3)
    few = DomainStatistics.of(domain.features[: MIN_VIDEOS - 1])
    same = DomainStatistics.of(np.repeat(domain.features[:1], 20, axis=0))
    other = DomainStatistics.of(domain.features[:20, :64])
    for statistics, problem in ((few, "too few"), (same, "all the same"), (other, "another model")):
        with pytest.raises(CalibrationError, match=problem):
            fit_domain(statistics, domain.bank, ZERO_SHOT)
    for values in (
        {},
        {"format": 99},
        {**fit_domain(DomainStatistics.of(domain.features), domain.bank, ZERO_SHOT).to_dict(), "offset": None},
    ):
        with pytest.raises(CalibrationError):
            DomainCalibration.from_dict(values)


def test_the_bank_tells_how_far_ordinary_labels_are_apart() -> None:
    domain = random_domain(9, hub=1, effect=0.3)
    bank = bank_of(DomainStatistics.of(domain.features), domain.bank)
    similarities = domain.features.astype(np.float64) @ domain.bank.T
    assert bank.mean == pytest.approx(similarities.mean(), abs=1e-5)
    assert bank.std_of_means == pytest.approx(similarities.mean(axis=0).std(), abs=1e-5)
    assert bank.std == pytest.approx(np.sqrt(similarities.var(axis=0, ddof=1).mean()), rel=0.02)
