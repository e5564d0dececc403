"""The fit against scipy, scikit-learn and calculations by hand; its estimates against brute force and simulation."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.stats import binomtest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import precision_score, recall_score

from support.judgements import platt_by_hand
from vidlex.model.scoring import sigmoid
from vidlex.service.feedback.estimates import Judged, cross_validated, quality, wilson
from vidlex.service.feedback.fitting import (
    PRIOR,
    PlattFit,
    Prior,
    even_threshold,
    fit_platt,
    logit_of,
    precise_threshold,
    tells_apart,
)

NO_PRIOR = Prior(1e6, 1e6)
Floats = NDArray[np.float64]


def drawn(seed: int, number: int, slope: float = 1.0, intercept: float = 0.0) -> tuple[Floats, Floats]:
    """Logits [n] and whether the label applies, as ``sigmoid(slope * logit + intercept)`` says."""
    random = np.random.default_rng(seed)
    z = random.normal(0.5, 2.0, number)
    return z, (random.random(number) < sigmoid(slope * z + intercept)).astype(np.float64)


def judged_of(z: Floats, right: Floats, per_video: int = 1) -> Judged:
    return Judged(sigmoid(z), right > 0.5, [f"video {i // per_video}" for i in range(len(z))])


def test_thirty_judgements_move_the_threshold_as_a_hand_calculation_says() -> None:
    # 15 videos of score 0.6, of which 3 are right, and 15 of score 0.9, of which 12 are.
    low, high = math.log(0.6 / 0.4), math.log(0.9 / 0.1)
    scores = np.repeat([0.6, 0.9], 15)
    right = np.array([1.0] * 3 + [0.0] * 12 + [1.0] * 12 + [0.0] * 3)
    # Without a prior the line goes through the observed log odds, ln(3 / 12) and ln(12 / 3): by symmetry it crosses
    # zero in the middle of the two logits.
    fit = fit_platt(logit_of(scores), right, NO_PRIOR)
    assert fit.slope == pytest.approx(2 * math.log(4) / (high - low), rel=1e-6)
    assert fit.crossing == pytest.approx((low + high) / 2, rel=1e-6)
    # With it: the two derivatives of the penalised likelihood are zero. They are
    # solved by bisection.
    slope, intercept = platt_by_hand([(low, 15, 3), (high, 15, 12)])
    fit = fit_platt(logit_of(scores), right)
    np.testing.assert_allclose([fit.slope, fit.intercept], [slope, intercept], atol=1e-8)
    threshold = even_threshold(fit, scores)
    assert threshold is not None
    assert threshold.value == pytest.approx(1 / (1 + math.exp(intercept / slope)), abs=1e-8)
    assert 0.75 < threshold.value < 0.80  # from 0.5, and (low + high) / 2 is the logit of 0.786
    assert not threshold.is_at_edge
    assert threshold.low is not None and threshold.high is not None
    assert threshold.low < threshold.value < threshold.high


def test_without_judgements_it_is_the_models_own_calibration() -> None:
    fit = fit_platt(np.zeros(0), np.zeros(0))
    assert (fit.slope, fit.intercept) == (1.0, 0.0)
    assert fit.covariance == pytest.approx((PRIOR.slope_std**2, 0.0, PRIOR.intercept_std**2))


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_minimum_that_scipy_finds(seed: int) -> None:
    z, y = drawn(seed, 20 + 40 * seed, slope=0.4 + 0.5 * seed, intercept=2 - seed)

    def loss(at: Floats) -> float:
        u = at[0] * z + at[1]
        prior = (at[0] - 1) ** 2 / (2 * 0.25**2) + at[1] ** 2 / (2 * 2.0**2)
        return float(np.sum(np.logaddexp(0, u) - y * u) + prior)

    found = minimize(loss, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-10, "fatol": 1e-12, "maxiter": 9999})
    fit = fit_platt(z, y)
    np.testing.assert_allclose([fit.slope, fit.intercept], found.x, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_without_a_prior_it_is_scikit_learns_logistic_regression(seed: int) -> None:
    z, y = drawn(seed, 400, slope=0.7, intercept=-1.0)
    fit = fit_platt(z, y, NO_PRIOR)
    reference = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(z[:, None], y)
    np.testing.assert_allclose(fit.slope, reference.coef_[0, 0], rtol=1e-5)
    np.testing.assert_allclose(fit.intercept, reference.intercept_[0], rtol=1e-5, atol=1e-6)
    # The information of the logistic regression, from which its standard errors come.
    p = reference.predict_proba(z[:, None])[:, 1]
    design = np.stack([z, np.ones_like(z)], axis=1)
    covariance = np.linalg.inv(design.T @ (design * (p * (1 - p))[:, None]))
    expected = covariance[0, 0], covariance[0, 1], covariance[1, 1]
    np.testing.assert_allclose(fit.covariance, expected, rtol=1e-4)


def test_judgements_that_a_threshold_separates_have_a_finite_slope() -> None:
    z = np.concatenate([np.linspace(-3, -1, 15), np.linspace(1, 3, 15)])
    fit = fit_platt(z, (z > 0).astype(np.float64))
    assert 1 < fit.slope < 5
    assert abs(fit.crossing) < 1e-6


def test_scores_that_tell_nothing_give_no_threshold() -> None:
    z = np.linspace(-6, 6, 200)
    scores = sigmoid(z)
    fit = fit_platt(z, (z < 0).astype(np.float64))
    assert not tells_apart(fit, scores)
    assert even_threshold(fit, scores) is None
    assert precise_threshold(fit, scores, 0.9) is None


def test_a_steep_scale_is_no_flat_fit() -> None:
    """As a calibration with a small spread gives them: the fitted slope is small, not the difference it makes."""
    z, y = drawn(4, 60)
    scores = sigmoid(8 * z)
    threshold = even_threshold(fit_platt(logit_of(scores), y), scores)
    assert threshold is not None
    assert abs(float(logit_of(np.asarray(threshold.value)))) < 8  # a crossing of 0 on the scale of z, give or take 1


def test_extreme_scores_do_not_overflow() -> None:
    scores = np.array([0.0, 1.0, 1e-300, 1 - 1e-16, 0.5])
    with np.errstate(all="raise"):
        fit = fit_platt(logit_of(scores), np.array([0.0, 1.0, 0.0, 1.0, 1.0]))
    assert np.isfinite([fit.slope, fit.intercept, *fit.covariance]).all()


def test_a_threshold_stays_between_the_judged_scores() -> None:
    z = np.linspace(0, 3, 30)
    right = even_threshold(fit_platt(z, np.ones(30)), sigmoid(z))
    wrong = even_threshold(fit_platt(z, np.zeros(30)), sigmoid(z))
    assert right is not None and wrong is not None
    assert (right.value, right.is_at_edge) == (float(sigmoid(z[0])), True)
    assert (wrong.value, wrong.is_at_edge) == (float(sigmoid(z[-1])), True)


def test_a_target_precision_is_reached_by_no_lower_score() -> None:
    z, y = drawn(3, 300, slope=1.2, intercept=-0.5)
    scores = sigmoid(z)
    fit = fit_platt(z, y)
    thresholds = []
    for target in (0.6, 0.8, 0.9, 0.97):
        found = precise_threshold(fit, scores, target)
        assert found is not None
        # Brute force over all judged scores.
        reached = [t for t in scores if fit.probability(z[scores >= t]).mean() >= target]
        assert found.value == min(reached)
        thresholds.append(found.value)
    assert thresholds == sorted(thresholds)
    assert precise_threshold(fit, scores, 0.99999) is None


# --- more "wrong" never lowers the threshold


def crossing(z: Floats, y: Floats, prior: Prior = PRIOR) -> float:
    return fit_platt(z, y, prior).crossing


@pytest.mark.parametrize("seed", range(20))
def test_more_wrong_never_lowers_the_threshold_at_the_models_slope(seed: int) -> None:
    """With the slope held it is a theorem: the intercept falls with every judgement that becomes wrong."""
    z, y = drawn(seed, 30, slope=1.3, intercept=float(np.random.default_rng(seed).normal()))
    held = Prior(slope_std=1e-5)
    before = crossing(z, y, held)
    for i in np.flatnonzero(y == 1):
        changed = y.copy()
        changed[i] = 0
        assert crossing(z, changed, held) > before


def test_more_wrong_never_lowers_the_threshold_where_that_is_true() -> None:
    """By the implicit function theorem the crossing falls with the target of judgement i exactly if

        (crossing, 1) H^-1 (z_i, 1)' > 0,    H: Hessian of the loss,

    so it does at the threshold itself and far around it. A wrong judgement of a very high score may lower it instead:
    it says that the scores tell little, which flattens the slope. Where the condition holds on the whole way from right
    to wrong, the threshold must rise; where it fails on the whole way, fall.
    """
    num_rising = num_falling = 0
    for seed in range(30):
        z, y = drawn(seed, 30, slope=0.8, intercept=float(np.random.default_rng(seed).normal(0, 1.5)))
        for i in np.flatnonzero(y == 1):
            fits, signs = [], []
            for target in np.linspace(1, 0, 5):
                soft = y.copy()
                soft[i] = target
                fits.append(fit_platt(z, soft))
                a, c, b = fits[-1].covariance
                at = np.array([fits[-1].crossing, 1.0])
                signs.append(float(at @ np.array([[a, c], [c, b]]) @ np.array([z[i], 1.0])))
            steps = [after.crossing - before.crossing for before, after in pairwise(fits)]
            if min(signs) > 0:
                num_rising += 1
                assert min(steps) > 0
            elif max(signs) < 0:
                num_falling += 1
                assert max(steps) < 0
    assert num_rising > 400
    assert num_falling < 0.03 * num_rising


@pytest.mark.parametrize("seed", range(10))
def test_wrong_judgements_at_the_threshold_raise_it_and_right_ones_lower_it(seed: int) -> None:
    z, y = drawn(seed, 40, slope=1.1, intercept=0.7)
    at = crossing(z, y)
    assert crossing(np.append(z, at), np.append(y, 0.0)) > at > crossing(np.append(z, at), np.append(y, 1.0))


# --- precision, recall, intervals


@pytest.mark.parametrize("seed", range(4))
def test_precision_and_recall_are_those_of_scikit_learn(seed: int) -> None:
    z, y = drawn(seed, 80)
    judged = judged_of(z, y)
    for threshold in (0.0, 0.3, 0.5, float(judged.scores[7]), 0.9):
        found = quality(judged, threshold)
        positive = judged.scores >= threshold
        assert found.precision.value == precision_score(y, positive)
        assert found.recall.value == recall_score(y, positive)
        counts = found.num_true_positive, found.num_false_positive, found.num_false_negative, found.num_true_negative
        brute = [
            sum(bool(p) is want_p and bool(r) is want_r for p, r in zip(positive, y, strict=True))
            for want_p, want_r in ((True, True), (True, False), (False, True), (False, False))
        ]
        assert list(counts) == brute
        assert found.precision.low <= precision_score(y, positive) <= found.precision.high


def test_nothing_above_the_threshold_has_no_precision() -> None:
    found = quality(judged_of(np.array([-1.0, -2.0]), np.array([1.0, 0.0])), 0.9)
    assert (found.precision.value, found.precision.low, found.precision.high) == (None, 0.0, 1.0)
    assert found.recall.value == 0.0


@pytest.mark.parametrize(("hits", "number"), [(0, 5), (3, 15), (15, 15), (26, 30), (199, 200)])
def test_intervals_are_wilsons(hits: int, number: int) -> None:
    expected = binomtest(hits, number).proportion_ci(0.95, method="wilson")
    np.testing.assert_allclose(wilson(hits / number, number), (expected.low, expected.high), atol=1e-12)


def test_intervals_count_videos_not_segments() -> None:
    z, y = drawn(5, 80)
    alone, together = (quality(judged_of(z, y, per_video), 0.5).precision for per_video in (1, 4))
    assert alone.value == together.value
    assert together.high - together.low > 1.3 * (alone.high - alone.low)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """Simulated with a fixed seed: 4,000 sets of 30 judgements at each of five true shares."""
    random = np.random.default_rng(0)
    for share in (0.5, 0.7, 0.8, 0.9, 0.95):
        found = [wilson(hits / 30, 30) for hits in random.binomial(30, share, 4000).tolist()]
        covered = np.mean([low <= share <= high for low, high in found])
        assert 0.92 < covered < 0.985, share


def test_the_thresholds_interval_covers_the_true_crossing() -> None:
    """Labels as the prior says they are, 60 judgements each."""
    random = np.random.default_rng(1)
    covered: list[bool] = []
    while len(covered) < 600:
        slope, intercept = random.normal(1, PRIOR.slope_std), random.normal(0, PRIOR.intercept_std)
        z = random.normal(0, 2, 60)
        if slope < 0.4 or abs(intercept / slope) > 3:
            continue  # nothing is judged near its crossing
        y = (random.random(60) < sigmoid(slope * z + intercept)).astype(np.float64)
        fit: PlattFit = fit_platt(z, y)
        if tells_apart(fit, sigmoid(z)):
            half = 1.96 * fit.crossing_std
            covered.append(abs(fit.crossing + intercept / slope) <= half)
    assert 0.92 < np.mean(covered) < 0.98


def test_shrinkage_lowers_the_error_of_thirty_judgements() -> None:
    random = np.random.default_rng(2)
    errors: dict[str, list[float]] = {"prior": [], "none": []}
    for _ in range(300):
        slope, intercept = np.clip(random.normal(1, 0.3), 0.4, 2), random.normal(0, 1)
        z = random.normal(0, 1.5, 30)
        y = (random.random(30) < sigmoid(slope * z + intercept)).astype(np.float64)
        truth = -intercept / slope
        for name, prior in (("prior", PRIOR), ("none", NO_PRIOR)):
            fit = fit_platt(z, y, prior)
            found = even_threshold(fit, sigmoid(z))
            errors[name].append(abs((0.0 if found is None else float(logit_of(np.asarray(found.value)))) - truth))
    assert np.mean(errors["prior"]) < np.mean(errors["none"])


def test_cross_validation_decides_each_video_without_its_own_judgements() -> None:
    z, y = drawn(9, 120, slope=1.0, intercept=-1.5)
    judged = judged_of(z, y, per_video=2)
    found = cross_validated(judged, 0.5)
    total = found.num_true_positive + found.num_false_positive + found.num_false_negative + found.num_true_negative
    assert total == len(judged)
    # One video alone has no others to fit to: the threshold in use decides.
    one = Judged(np.array([0.4, 0.6]), np.array([True, True]), ["video", "video"])
    assert cross_validated(one, 0.5).num_true_positive == 1
    # A fit to the judgements that it decides is optimistic on average, never by much with two parameters.
    threshold = even_threshold(fit_platt(z, y), judged.scores)
    assert threshold is not None
    inside = quality(judged, threshold.value)
    errors = found.num_false_positive + found.num_false_negative
    assert inside.num_false_positive + inside.num_false_negative <= errors + 2
