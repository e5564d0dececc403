"""Mean and variance of a label's similarity in closed form, against brute force over the videos."""

from __future__ import annotations

import json

import numpy as np
import pytest

from support.domains import random_domain
from vidlex.model.calibration.statistics import MAX_RANK, DomainStatistics


@pytest.fixture(scope="module")
def features() -> np.ndarray:
    return random_domain(1, hub=1, effect=1).features


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    return random_domain(1, hub=1, effect=1).labels * np.float32(0.9)  # of any length up to 1


def brute_force(features: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    similarities = features.astype(np.float64) @ labels.T.astype(np.float64)
    return similarities.mean(axis=0), similarities.var(axis=0, ddof=1)


@pytest.mark.parametrize("num_videos", [16, 100, 600])
def test_closed_form_equals_brute_force(features: np.ndarray, labels: np.ndarray, num_videos: int) -> None:
    statistics = DomainStatistics.of(features[:num_videos], max_rank=128)
    mean, variance = statistics.moments(labels)
    expected_mean, expected_variance = brute_force(features[:num_videos], labels)
    np.testing.assert_allclose(mean, expected_mean, atol=1e-6)
    np.testing.assert_allclose(variance, expected_variance, rtol=2e-3)


def test_few_directions_and_one_residual_are_close(features: np.ndarray, labels: np.ndarray) -> None:
    statistics = DomainStatistics.of(features, max_rank=MAX_RANK)
    assert statistics.basis.shape == (MAX_RANK, 128)
    _, expected = brute_force(features, labels)
    np.testing.assert_allclose(np.sqrt(statistics.moments(labels)[1]), np.sqrt(expected), rtol=0.02)
    total = np.trace(np.cov(features.astype(np.float64).T))
    assert statistics.total_variance() == pytest.approx(total, rel=1e-5)


def test_added_videos_equal_all_at_once(features: np.ndarray, labels: np.ndarray) -> None:
    whole = DomainStatistics.of(features[:200], max_rank=128)
    added = DomainStatistics.of(features[:1], 128)
    for feature in features[1:200]:
        added = added.add(feature, 128)
    assert added.num_videos == 200
    np.testing.assert_allclose(added.mean, whole.mean, atol=1e-6)
    np.testing.assert_allclose(added.moments(labels)[1], whole.moments(labels)[1], rtol=2e-3)


def test_bounded_memory_of_added_videos(features: np.ndarray, labels: np.ndarray) -> None:
    added = DomainStatistics.of(features[:1])
    for feature in features[1:]:
        added = added.add(feature)
    assert len(added.basis) == MAX_RANK
    _, expected = brute_force(features, labels)
    np.testing.assert_allclose(np.sqrt(added.moments(labels)[1]), np.sqrt(expected), rtol=0.02)


def test_a_labels_moments_are_the_same_to_the_bit_among_any_others(features: np.ndarray) -> None:
    statistics = DomainStatistics.of(features)
    rng = np.random.default_rng(0)
    labels = rng.standard_normal((2100, 128)).astype(np.float32)
    together = np.array(statistics.moments(labels))
    for i in (0, 1, 777, 1023, 1024, 2099):
        np.testing.assert_array_equal(np.array(statistics.moments(labels[i : i + 1]))[:, 0], together[:, i])
    order = rng.permutation(len(labels))
    np.testing.assert_array_equal(np.array(statistics.moments(labels[order])), together[:, order])
    padded = np.zeros((2100, 160), np.float32)
    padded[:, :128] = labels
    np.testing.assert_array_equal(np.array(statistics.moments(padded)), together)


def test_json_keeps_every_bit(features: np.ndarray) -> None:
    statistics = DomainStatistics.of(features)
    read = DomainStatistics.from_dict(json.loads(json.dumps(statistics.to_dict())))
    np.testing.assert_array_equal(read.mean, statistics.mean)
    np.testing.assert_array_equal(read.basis, statistics.basis)
    assert (read.residual, read.num_videos) == (statistics.residual, statistics.num_videos)


@pytest.mark.parametrize(
    "change",
    [
        {"num_videos": 0},
        {"residual": -1.0},
        {"residual": float("nan")},
        {"mean": ""},
        {"basis": "AAA"},
        {"mean": "AADAfw=="},  # not a number
    ],
)
def test_invalid_statistics_are_refused(features: np.ndarray, change: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        DomainStatistics.from_dict(DomainStatistics.of(features).to_dict() | change)
