"""Metrics against scikit-learn and against numbers worked out by hand."""

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


def test_hand_worked_example() -> None:
    figures = summarise(SCORES, TRUTH)
    assert figures["micro_aupr"] == pytest.approx(0.2 * (1 + 2 / 3 + 1 / 2 + 4 / 7 + 5 / 9))
    assert figures["macro_aupr"] == pytest.approx((5 / 6 + 1 + 1) / 3)
    assert figures["chance"] == pytest.approx(5 / 12)
    assert figures["micro_peak_f1"] == pytest.approx(5 / 7)
    assert figures["micro_peak_f1_logit"] == 0.35
    assert f1_at(SCORES, TRUTH, 0.5) == pytest.approx(6 / 11)


def test_a_shift_of_one_label_moves_micro_not_macro() -> None:
    shifted = SCORES - np.array([0, 0, 0.42])
    figures = summarise(shifted, TRUTH)
    assert figures["micro_aupr"] == pytest.approx(0.942857, abs=1e-6)
    assert figures["micro_peak_f1"] == pytest.approx(8 / 9)
    assert figures["macro_aupr"] == pytest.approx(0.944444, abs=1e-6)


def test_ties_count_as_one_threshold() -> None:
    assert average_precision([0.9, 0.5, 0.5, 0.1], [1, 0, 1, 0]) == pytest.approx(5 / 6)


def test_unknown_pairs_are_neither_positive_nor_negative() -> None:
    known = np.ones_like(TRUTH)
    known[2, 2] = False  # the wrong .85
    keep = known.ravel()
    figures = summarise(SCORES, TRUTH, known)
    assert figures["micro_aupr"] == pytest.approx(average_precision(SCORES.ravel()[keep], TRUTH.ravel()[keep]))
    assert figures["micro_aupr"] > summarise(SCORES, TRUTH)["micro_aupr"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=2, max_size=40))
def test_equal_to_scikit_learn(pairs: list[tuple[int, bool]]) -> None:
    scores, truth = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])
    if not truth.any():
        with pytest.raises(ValueError, match="at least one positive"):
            average_precision(scores, truth)
        return
    assert average_precision(scores, truth) == pytest.approx(average_precision_score(truth, scores), abs=1e-12)
    best, threshold = peak_f1(scores, truth)
    assert best == pytest.approx(max(f1_score(truth, scores >= t) for t in np.unique(scores)), abs=1e-12)
    assert f1_at(scores, truth, threshold) == pytest.approx(best, abs=1e-12)


def test_nan_and_disagreeing_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        average_precision([0.1, float("nan")], [1, 0])
    with pytest.raises(ValueError, match="agree"):
        average_precision([0.1, 0.2], [1])


def test_platt_finds_the_scale_that_made_the_data() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 4, 60_000)
    truth = rng.random(60_000) < sigmoid(0.5 * logits - 1)
    found = fit_platt(logits, truth)
    assert found.slope == pytest.approx(0.5, abs=0.02)
    assert found.intercept == pytest.approx(-1, abs=0.05)
    raw = expected_calibration_error(sigmoid(logits), truth)
    calibrated = expected_calibration_error(sigmoid(found.slope * logits + found.intercept), truth)
    assert calibrated < 0.01 < raw


def test_calibration_error_by_hand() -> None:
    """Ten predictions of 0.25 of which five are true: off by 0.25."""
    assert expected_calibration_error(np.full(10, 0.25), np.arange(10) < 5) == pytest.approx(0.25)
