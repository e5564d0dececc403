from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from vidlex.model.eval.metrics import as_masked_arrays, best_f1, last_of_ties, step_auc


def bootstrap_intervals(
    scores: ArrayLike,
    targets: ArrayLike,
    known: ArrayLike | None = None,
    *,
    num_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Percentile bootstrap over videos (Efron 1979): intervals of micro AUPR and micro Peak F1 of scores [B, V].

    A resample is a weight per video, so that the pairs are sorted once. Resamples without a positive are ignored.
    Raises ValueError without any positive.
    """
    s, y, mask = as_masked_arrays(scores, targets, known)
    if not y.any():
        raise ValueError("the bootstrap needs at least one positive")
    video = np.nonzero(mask)[0]
    flat_scores, flat_targets = s[mask], y[mask]
    order = np.argsort(-flat_scores, kind="stable")
    flat_scores, flat_targets, video = flat_scores[order], flat_targets[order], video[order]
    is_last = last_of_ties(flat_scores)
    generator = np.random.default_rng(seed)
    resampled: list[tuple[float, float]] = []
    for _ in range(num_resamples):
        counts = np.bincount(generator.integers(0, len(s), len(s)), minlength=len(s)).astype(np.float64)
        weights = counts[video]
        true_positives = np.cumsum(weights * flat_targets)[is_last]
        if true_positives[-1] > 0:
            precision = true_positives / np.maximum(np.cumsum(weights)[is_last], 1e-300)
            recall = true_positives / true_positives[-1]
            resampled.append((step_auc(precision, recall), best_f1(precision, recall)[0]))
    tail = 50 * (1 - level)
    low, high = np.percentile(np.array(resampled), [tail, 100 - tail], axis=0)
    return {name: (float(low[i]), float(high[i])) for i, name in enumerate(("micro_aupr", "micro_peak_f1"))}
