"""Random domains: videos that show some of many labels, seen by an imperfect encoder."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
NUM_VIDEOS = 600


@dataclass(frozen=True, eq=False)
class RandomDomain:
    features: Floats  # [NUM_VIDEOS, D] unit vectors
    labels: Floats  # [V, D] unit vectors
    bank: Floats  # [K, D] of labels that no video shows
    targets: NDArray[np.bool_]  # [NUM_VIDEOS, V]


def random_domain(
    seed: int,
    *,
    hub: float,
    effect: float,
    rates: tuple[float, float] = (0.01, 0.3),
    share_shown: float = 0.7,
    noise: float = 1.0,
    dim: int = 128,
    num_labels: int = 80,
    num_bank: int = 64,
) -> RandomDomain:
    """``hub``: how much a label's name is drawn to the domain's mean video; ``effect``: how much a label shows."""
    rng = np.random.default_rng(seed)
    spectrum = np.exp(-np.arange(dim) / 25)
    spectrum /= np.sqrt((spectrum**2).mean())
    concepts = _unit(rng.standard_normal((num_labels + num_bank, dim)))
    mean = _unit(rng.standard_normal(dim))
    names = concepts + 0.3 * hub * rng.standard_normal((len(concepts), 1)) * mean
    names = _unit(names + 0.5 * rng.standard_normal(names.shape) / np.sqrt(dim))
    rate = np.exp(rng.uniform(*np.log(rates), num_labels)) * (rng.random(num_labels) < share_shown)
    targets = rng.random((NUM_VIDEOS, num_labels)) < rate
    effects = effect * np.exp(0.3 * rng.standard_normal(num_labels))
    videos = 2 * mean + (targets * effects) @ concepts[:num_labels]
    videos = _unit(videos + noise * spectrum * rng.standard_normal(videos.shape) / np.sqrt(dim))
    return RandomDomain(_float(videos), _float(names[:num_labels]), _float(names[num_labels:]), targets)


def _unit(x: NDArray[np.float64]) -> NDArray[np.float64]:
    unit: NDArray[np.float64] = x / np.linalg.norm(x, axis=-1, keepdims=True)
    return unit


def _float(x: NDArray[np.float64]) -> Floats:
    return x.astype(np.float32)
