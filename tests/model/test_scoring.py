"""Similarity to logit to probability."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vidlex.model.dummy import DummyClassifier
from vidlex.model.scoring import Calibration, Scorer, sigmoid, similarity_to_logit


def test_scores_match_values_computed_by_hand() -> None:
    scorer = Scorer(logit_scale=10.0, logit_bias=-5.0)
    assert scorer.logit(np.array([0.5, 1.0])).tolist() == [0.0, 5.0]
    assert scorer.probability(np.array([0.5, 1.0])).tolist() == pytest.approx([0.5, 1 / (1 + np.exp(-5))])
    calibrated = Scorer(10.0, -5.0, Calibration(slope=2.0, intercept=-10.0))
    assert calibrated.probability(np.array([1.0])).tolist() == [0.5]


def test_numpy_and_torch_agree() -> None:
    s = np.linspace(-1, 1, 9, dtype=np.float32)
    from_numpy = similarity_to_logit(s, 12.5, -3.0)
    from_torch = similarity_to_logit(torch.from_numpy(s), 12.5, -3.0)
    assert np.array_equal(from_numpy, from_torch.numpy())


def test_sigmoid_does_not_overflow() -> None:
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        assert sigmoid(np.array([-800.0, 0.0, 800.0])).tolist() == [0.0, 0.5, 1.0]


def test_a_probability_does_not_depend_on_the_other_labels() -> None:
    scorer = Scorer(17.3, -6.1, Calibration(0.9, 0.2))
    s = np.random.default_rng(0).normal(size=501).astype(np.float32) * 0.3
    alone = np.array([scorer.probability(s[i : i + 1])[0] for i in range(501)])
    assert np.array_equal(scorer.probability(s), alone)
    assert np.array_equal(scorer.probability(s[:500]), alone[:500])


@pytest.mark.parametrize("slope", [0.0, -1.0, float("nan"), float("inf")])
def test_a_calibration_that_would_change_the_ranking_is_rejected(slope: float) -> None:
    with pytest.raises(ValueError, match="positive slope"):
        Calibration(slope=slope)


def test_dummy_scores_match_values_computed_by_hand() -> None:
    dummy = DummyClassifier()
    red = np.zeros((2, 32, 32, 3), np.uint8)
    red[..., 0] = 255
    similarities = dummy.encode_video([red]) @ dummy.encode_labels(["red", "green", "Yellow", "four"]).T
    assert similarities[0].tolist() == pytest.approx([1, 0, 0.5**0.5, 0])  # "four" has 4 letters: axis 1
    assert dummy.scorer.probability(similarities)[0, :2].tolist() == pytest.approx([0.99331, 0.00669], abs=1e-5)
