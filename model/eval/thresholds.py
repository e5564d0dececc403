from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from vidlex.model.eval.metrics import as_masked_arrays, cumulative_counts, peak_f1


def threshold_loss(
    scores: ArrayLike, targets: ArrayLike, known: ArrayLike | None, kinds: Sequence[str]
) -> dict[str, Any]:
    """Micro F1 of scores [B, V] at the best single threshold and at the best thresholds per kind, and their difference.

    ``kinds`` [V]. The thresholds per kind maximise the joint F1, a ratio of sums over kinds, with the method of
    Dinkelbach (1967), which reaches the global optimum.
    """
    s, y, mask = as_masked_arrays(scores, targets, known)
    single_f1, single_threshold = peak_f1(s[mask], y[mask])
    curves = {}
    for kind in sorted(set(kinds)):
        selected = mask & (np.asarray(kinds) == kind)[None, :]
        counts = cumulative_counts(s[selected], y[selected])
        # The first threshold of a kind is infinite: nothing is predicted.
        curves[kind] = tuple(np.r_[first, values] for first, values in zip((0.0, 0.0, np.inf), counts, strict=True))
    num_positives = int(y.sum())
    f1, indices = 0.0, dict.fromkeys(curves, 0)
    while True:
        trial = {kind: int(np.argmax(2 * hits - f1 * sizes)) for kind, (hits, sizes, _) in curves.items()}
        true_positives = sum(float(curves[kind][0][index]) for kind, index in trial.items())
        num_predictions = sum(float(curves[kind][1][index]) for kind, index in trial.items())
        trial_f1 = 2 * true_positives / (num_positives + num_predictions)
        if trial_f1 <= f1 + 1e-15:
            break
        f1, indices = trial_f1, trial
    return {
        "single_f1": single_f1,
        "single_logit": single_threshold,
        "per_kind_f1": f1,
        "per_kind_logit": {kind: float(curves[kind][2][index]) for kind, index in indices.items()},
        "loss": max(0.0, f1 - single_f1),
    }
