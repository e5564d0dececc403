"""How far a figure would move with other videos: percentile intervals over resampled videos (Efron 1979)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from vidlex.model.eval.metrics import area, as_pairs, best_f1


def bootstrap_intervals(
    scores: ArrayLike,
    targets: ArrayLike,
    known: ArrayLike | None = None,
    *,
    num_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Intervals of micro AUPR and micro Peak F1 of scores [B, V], over ``num_resamples`` draws of B videos.

    A draw is a count per video, so the pairs are sorted once. Draws without a positive are left out.
    Raises ValueError without any positive.
    """
    s, y, mask = as_pairs(scores, targets, known)
    if not y.any():
        raise ValueError("the bootstrap needs at least one positive")
    video = np.nonzero(mask)[0]
    flat, truth = s[mask], y[mask]
    order = np.argsort(-flat, kind="stable")
    flat, truth, video = flat[order], truth[order], video[order]
    last = np.r_[flat[1:] != flat[:-1], True]
    generator = np.random.default_rng(seed)
    found: list[tuple[float, float]] = []
    for _ in range(num_resamples):
        counts = np.bincount(generator.integers(0, len(s), len(s)), minlength=len(s)).astype(np.float64)
        weights = counts[video]
        hits = np.cumsum(weights * truth)[last]
        if hits[-1] > 0:
            precision = hits / np.maximum(np.cumsum(weights)[last], 1e-300)
            recall = hits / hits[-1]
            found.append((area(precision, recall), best_f1(precision, recall)[0]))
    tail = 50 * (1 - level)
    low, high = np.percentile(np.array(found), [tail, 100 - tail], axis=0)
    return {name: (float(low[i]), float(high[i])) for i, name in enumerate(("micro_aupr", "micro_peak_f1"))}
