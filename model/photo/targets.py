"""Where the label of a text should lie: a direction in the image tower's space, a slope and a bias.

A photo's feature is ``z = unit(f - centre)`` with f the tower's pooled feature. A class's direction is its row of the
tower's classifier, centred over the rows and normalised. ``logit(photo, text) = w . z + b``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vidlex.model.photo.concepts import ONE_CLASS, Truth

Floats = NDArray[np.float32]

# Photos of a class are simulated around its direction. 0.42 is the cosine in ImageNet's own photos; the rest is random
# directions and mixtures of other classes. Cosines between 0.15 and 0.42 gave the same results on validation photos.
CLASS_COSINE = 0.42
ISOTROPIC_SHARE, MIXTURE_SHARE = 0.65, 0.6
NUM_PHOTOS_PER_CLASS = 6
SHRINKAGE = 1.0  # of the covariance, towards a sphere of the same trace
NEWTON_STEPS = 40
ADAPT_STEPS = 60


@dataclass(frozen=True, eq=False)
class Target:
    weight: Floats  # [D]
    bias: float


def sigmoid32(x: Floats) -> Floats:
    value: Floats = (0.5 * (1 + np.tanh(0.5 * x))).astype(np.float32)
    return value


def class_directions(classifier_weight: NDArray[np.floating]) -> Floats:  # [classes, D] unit vectors
    weight = np.asarray(classifier_weight, dtype=np.float64)
    weight = weight - weight.mean(axis=0)
    directions: Floats = (weight / np.linalg.norm(weight, axis=1, keepdims=True)).astype(np.float32)
    return directions


def simulate_photos(directions: Floats, classes: Sequence[int], rng: np.random.Generator) -> Floats:
    """[len(classes), D] unit vectors."""
    dim, num_directions = directions.shape[1], len(directions)
    noise = rng.standard_normal((len(classes), dim), dtype=np.float32) * (ISOTROPIC_SHARE / dim**0.5)
    mixture = rng.standard_normal((len(classes), num_directions), dtype=np.float32)
    noise += mixture @ directions * (MIXTURE_SHARE / num_directions**0.5)
    noise *= 0.9 / np.linalg.norm(noise, axis=1, keepdims=True)
    photos: Floats = CLASS_COSINE * directions[list(classes)] + noise
    photos /= np.linalg.norm(photos, axis=1, keepdims=True)
    return photos


def fit_targets(
    concepts: Mapping[str, Truth], directions: Floats, classes: Sequence[int], *, seed: int = 0
) -> dict[str, Target]:
    """The name of one class lies in its direction. A text that several classes show lies in the direction that tells
    photos of these from others (linear discriminant analysis: the inverse covariance of simulated photos times the
    difference of the means). Slope and bias: logistic regression (Newton's method, with a weak prior) on simulated
    photos of all classes."""
    own = directions[list(classes)]
    texts = sorted(concepts)
    truths = np.stack([concepts[text][list(classes)] for text in texts])  # [texts, classes]
    unique, inverse = np.unique(truths.round(3), axis=0, return_inverse=True)
    shown = list(range(len(classes))) * NUM_PHOTOS_PER_CLASS
    photos = simulate_photos(directions, [classes[i] for i in shown], np.random.default_rng(seed))
    weights = unique / unique.sum(axis=1, keepdims=True) @ own - own.mean(axis=0)
    several = unique.sum(axis=1) > ONE_CLASS
    covariance = np.cov(photos.T)
    covariance += SHRINKAGE * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    weights[several] = np.linalg.solve(covariance, weights[several].T).T
    weights = (weights / np.linalg.norm(weights, axis=1, keepdims=True)).astype(np.float32)
    slope, bias = _fit_slopes(weights @ photos.T, unique[:, shown])
    return {
        text: Target((weights[row] * slope[row]).astype(np.float32), float(bias[row]))
        for text, row in zip(texts, inverse.reshape(-1), strict=True)
    }


def _fit_slopes(similarity: Floats, truth: Floats) -> tuple[Floats, Floats]:
    """[U, photos] each -> slopes and biases [U]."""
    num_rows, num_photos = similarity.shape
    slope = np.full(num_rows, 20.0, np.float32)
    bias = np.full(num_rows, -4.0, np.float32)
    prior = 5e-8 * num_photos
    for _ in range(NEWTON_STEPS):
        p = sigmoid32(slope[:, None] * similarity + bias[:, None])
        residual = truth - p
        curvature = p * (1 - p) + 1e-6
        weighted = curvature * similarity
        g_slope = (residual * similarity).sum(axis=1) - prior * (slope - 25)
        g_bias = residual.sum(axis=1)
        h_slope = (weighted * similarity).sum(axis=1) + prior + 1e-3
        h_both, h_bias = weighted.sum(axis=1), curvature.sum(axis=1) + 1e-3
        determinant = h_slope * h_bias - h_both**2
        slope += np.clip((h_bias * g_slope - h_both * g_bias) / determinant, -4, 4)
        bias += np.clip((h_slope * g_bias - h_both * g_slope) / determinant, -1.5, 1.5)
        slope, bias = np.clip(slope, 4, 60), np.clip(bias, -15, 6)
    return slope, bias


def adapt_to_photos(
    start: Sequence[Target], photos: Floats, truth: Floats, known: NDArray[np.bool_], *, l2: float
) -> list[Target]:
    """Fit to real photos [n, D] by logistic regression whose prior is ``start`` (weight of the prior: ``l2``).

    ``truth`` and ``known``: [n, len(start)].
    """
    weight0 = np.stack([target.weight for target in start])
    bias0 = np.array([target.bias for target in start], np.float32)
    parameters = np.zeros((len(start), weight0.shape[1] + 1), np.float32)
    first, second = np.zeros_like(parameters), np.zeros_like(parameters)
    for step in range(ADAPT_STEPS):  # Adam (Kingma and Ba 2015), cosine decay
        logits = photos @ (weight0 + parameters[:, :-1]).T + bias0 + parameters[:, -1]
        residual = (sigmoid32(logits) - truth) * known  # [n, texts]
        gradient = np.concatenate((residual.T @ photos, residual.sum(axis=0)[:, None]), axis=1) + l2 * parameters
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        rate = 0.3 * (0.5 + 0.5 * np.cos(np.pi * step / ADAPT_STEPS))
        corrected = first / (1 - 0.9 ** (step + 1))
        parameters -= rate * corrected / (np.sqrt(second / (1 - 0.999 ** (step + 1))) + 1e-8)
    return [Target(weight0[i] + parameters[i, :-1], float(bias0[i] + parameters[i, -1])) for i in range(len(start))]
