"""Kernel ridge regression from the LLM's states of texts to their targets: the tensors of ``KernelLabelEncoder``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Coordinates:
    """How states [V, P, d] become coordinates [V, P * R]: standardised, of unit length per prompt, projected on the
    principal axes of the training texts."""

    mean: Floats  # [P, d]
    std: Floats  # [P, d]
    projection: Floats  # [P, d, R]

    @classmethod
    def of(cls, states: Floats, rank: int) -> Coordinates:
        mean, std = states.mean(axis=0), states.std(axis=0) + 1e-4
        unit = _unit((states - mean) / std)  # [V, P, d]
        axes = []
        for p in range(states.shape[1]):
            _, vectors = np.linalg.eigh(unit[:, p].T @ unit[:, p])
            axes.append(vectors[:, ::-1][:, :rank])
        return cls(mean, std, np.ascontiguousarray(np.stack(axes)))

    def __call__(self, states: Floats) -> Floats:
        unit = _unit((states - self.mean) / self.std)
        projected = np.einsum("vpd,pdr->vpr", unit, self.projection, optimize=True)
        flat: Floats = (projected.reshape(len(states), -1) / self.mean.shape[0] ** 0.5).astype(np.float32)
        return flat


def fit_kinds(coordinates: Floats, ancestors: Sequence[Sequence[str]], *, width: int, ridge: float) -> Floats:
    """Linear map [P * R, width] from a text's coordinates to what it is in WordNet.

    The target of a text is the vector of its ancestors, each weighted by its inverse document frequency, of unit
    length, on the leading ``width`` principal axes.
    """
    counts: dict[str, int] = {}
    for names in ancestors:
        for name in names:
            counts[name] = counts.get(name, 0) + 1
    total = len(ancestors)
    column = {name: i for i, name in enumerate(sorted(name for name, n in counts.items() if 4 <= n <= total // 4))}
    target = np.zeros((total, len(column)), np.float32)
    for row, names in enumerate(ancestors):
        for name in names:
            if name in column:
                target[row, column[name]] = np.log(total / counts[name])
    target /= np.maximum(np.linalg.norm(target, axis=1, keepdims=True), 1e-6)
    target -= target.mean(axis=0)
    _, vectors = np.linalg.eigh(target.T @ target)
    target = target @ vectors[:, ::-1][:, :width]
    gram = coordinates.T @ coordinates + ridge * np.eye(coordinates.shape[1], dtype=np.float32)
    kinds: Floats = np.linalg.solve(gram, coordinates.T @ target).astype(np.float32)
    return kinds


def kernel(a: Floats, b: Floats, scale: float) -> Floats:  # exp(-scale / 2 * |a - b|^2)
    square = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1) - 2 * a @ b.T
    values: Floats = np.exp(-scale / 2 * np.maximum(square, 0)).astype(np.float32)
    return values


def solve(similarities: Floats, targets: Floats, ridge: Floats) -> Floats:
    """``alpha`` [V, S] of the prediction ``similarities @ alpha``.

    ``similarities`` [V, V] of the texts, ``targets`` [V, S], ``ridge`` [V]: how far a prediction may
    be from its target.
    """
    from scipy.linalg import solve as solve_dense

    alpha: Floats = solve_dense(similarities + np.diag(ridge), targets, assume_a="pos").astype(np.float32)
    return alpha


def _unit(x: Floats) -> Floats:
    unit: Floats = x / np.linalg.norm(x, axis=-1, keepdims=True)
    return unit
