"""Metrics against scikit-learn and against hand-computed numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, f1_score

from vidlex.model.eval.calibration import expected_calibration_error, fit_platt
from vidlex.model.eval.metrics import average_precision, f1_at, peak_f1, summarise
from vidlex.model.scoring import sigmoid

# Four videos, labels A, B, C; C has inflated scores.
SCORES = np.array([[0.80, 0.30, 0.90], [0.35, 0.20, 0.70], [0.40, 0.50, 0.85], [0.10, 0.45, 0.65]])
TRUTH = np.array([[1, 0, 1], [1, 0, 0], [0, 1, 0], [0, 1, 0]], bool)


def test_summary_of_four_videos() -> None:
    metrics = summarise(SCORES, TRUTH)
    assert metrics["micro_aupr"] == pytest.approx(0.2 * (1 + 2 / 3 + 1 / 2 + 4 / 7 + 5 / 9))
    assert metrics["macro_aupr"] == pytest.approx((5 / 6 + 1 + 1) / 3)
    assert metrics["chance"] == pytest.approx(5 / 12)
    assert metrics["micro_peak_f1"] == pytest.approx(5 / 7)
    assert metrics["micro_peak_f1_logit"] == 0.35
    assert f1_at(SCORES, TRUTH, 0.5) == pytest.approx(6 / 11)


def test_shifting_one_label_changes_micro_not_macro() -> None:
    shifted = SCORES - np.array([0, 0, 0.42])
    metrics = summarise(shifted, TRUTH)
    assert metrics["micro_aupr"] == pytest.approx(0.942857, abs=1e-6)
    assert metrics["micro_peak_f1"] == pytest.approx(8 / 9)
    assert metrics["macro_aupr"] == pytest.approx(0.944444, abs=1e-6)


def test_ties_form_one_threshold() -> None:
    assert average_precision([0.9, 0.5, 0.5, 0.1], [1, 0, 1, 0]) == pytest.approx(5 / 6)


def test_unknown_pairs_are_neither_positive_nor_negative() -> None:
    known = np.ones_like(TRUTH)
    known[2, 2] = False  # a false positive with 0.85
    mask = known.ravel()
    metrics = summarise(SCORES, TRUTH, known)
    assert metrics["micro_aupr"] == pytest.approx(average_precision(SCORES.ravel()[mask], TRUTH.ravel()[mask]))
    assert metrics["micro_aupr"] > summarise(SCORES, TRUTH)["micro_aupr"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=2, max_size=40))
def test_metrics_equal_scikit_learn(pairs: list[tuple[int, bool]]) -> None:
    scores, truth = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])
    if not truth.any():
        with pytest.raises(ValueError, match="at least one positive"):
            average_precision(scores, truth)
        return
    assert average_precision(scores, truth) == pytest.approx(average_precision_score(truth, scores), abs=1e-12)
    best, threshold = peak_f1(scores, truth)
    assert best == pytest.approx(max(f1_score(truth, scores >= t) for t in np.unique(scores)), abs=1e-12)
    assert f1_at(scores, truth, threshold) == pytest.approx(best, abs=1e-12)


def test_nan_and_different_shapes_raise() -> None:
    with pytest.raises(ValueError, match="NaN"):
        average_precision([0.1, float("nan")], [1, 0])
    with pytest.raises(ValueError, match="agree"):
        average_precision([0.1, 0.2], [1])


def test_fit_platt_recovers_slope_and_intercept() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 4, 60_000)
    truth = rng.random(60_000) < sigmoid(0.5 * logits - 1)
    calibration = fit_platt(logits, truth)
    assert calibration.slope == pytest.approx(0.5, abs=0.02)
    assert calibration.intercept == pytest.approx(-1, abs=0.05)
    raw = expected_calibration_error(sigmoid(logits), truth)
    calibrated = expected_calibration_error(sigmoid(calibration.slope * logits + calibration.intercept), truth)
    assert calibrated < 0.01 < raw


def test_calibration_error_of_one_bin() -> None:
    assert expected_calibration_error(np.full(10, 0.25), np.arange(10) < 5) == pytest.approx(0.25)
