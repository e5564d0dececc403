"""What one threshold for all labels costs against one per concept type: the paper's claim of comparable scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from vidlex.model.eval.metrics import FloatArray, as_pairs, peak_f1


def threshold_loss(
    scores: ArrayLike, targets: ArrayLike, known: ArrayLike | None, kinds: Sequence[str]
) -> dict[str, Any]:
    """Micro F1 of scores [B, V] at the best single threshold and at the best threshold per kind of label, and their
    difference. ``kinds`` [V]. The thresholds per kind are the best jointly (not each kind's own peak): F1 is a ratio
    of sums over kinds, maximised by Dinkelbach's method (1967), which ends at the global optimum.
    """
    s, y, mask = as_pairs(scores, targets, known)
    single, threshold = peak_f1(s[mask], y[mask])
    names = np.asarray(kinds)
    curves = {}
    for kind in sorted(set(kinds)):
        chosen = mask & (names == kind)[None, :]
        curves[kind] = _counts(s[chosen], y[chosen])
    num_positives = int(y.sum())
    f1, places = 0.0, dict.fromkeys(curves, 0)
    while True:
        trial = {kind: int(np.argmax(2 * hits - f1 * sizes)) for kind, (hits, sizes, _) in curves.items()}
        hit = sum(float(curves[kind][0][place]) for kind, place in trial.items())
        size = sum(float(curves[kind][1][place]) for kind, place in trial.items())
        value = 2 * hit / (num_positives + size)
        if value <= f1 + 1e-15:
            break
        f1, places = value, trial
    return {
        "single_f1": single,
        "single_logit": threshold,
        "per_kind_f1": f1,
        "per_kind_logit": {kind: float(curves[kind][2][place]) for kind, place in places.items()},
        "loss": max(0.0, f1 - single),
    }


def _counts(scores: FloatArray, targets: Any) -> tuple[FloatArray, FloatArray, FloatArray]:
    """True positives and predictions at each distinct threshold, the first of which predicts nothing."""
    order = np.argsort(-scores, kind="stable")
    s, y = scores[order], targets[order]
    last = np.flatnonzero(np.r_[s[1:] != s[:-1], np.ones(min(1, len(s)), bool)])
    hits = np.r_[0.0, np.cumsum(y)[last]]
    return hits, np.r_[0.0, last + 1.0], np.r_[np.inf, s[last]]
