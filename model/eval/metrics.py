"""Ranking metrics for multi-label scores: average precision and Peak F1, micro and macro, with unknown pairs masked.

Computed on logits (float32 probabilities tie near 0 and 1). Equal scores count as one threshold, as in
scikit-learn's ``average_precision_score``: ``AP = sum_k (R_k - R_{k-1}) P_k`` over the distinct thresholds.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]


def _curve(scores: ArrayLike, targets: ArrayLike) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Precision and recall after each distinct threshold (descending), and the thresholds."""
    s = np.asarray(scores, dtype=np.float64).ravel()
    y = np.asarray(targets, dtype=bool).ravel()
    if s.shape != y.shape:
        raise ValueError(f"{s.shape = } and {y.shape = } must agree")
    if not y.any():
        raise ValueError("average precision needs at least one positive")
    if np.isnan(s).any():
        raise ValueError("scores hold NaN")
    order = np.argsort(-s, kind="stable")
    s, y = s[order], y[order]
    last = np.r_[s[1:] != s[:-1], True]  # last entry of each group of equal scores
    hits = np.cumsum(y)[last].astype(np.float64)
    predicted = np.flatnonzero(last) + 1.0
    return hits / predicted, hits / y.sum(), s[last]


def average_precision(scores: ArrayLike, targets: ArrayLike) -> float:
    """Area under the precision-recall curve by the step rule. Any shapes that agree. ValueError without a positive."""
    precision, recall, _ = _curve(scores, targets)
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def peak_f1(scores: ArrayLike, targets: ArrayLike) -> tuple[float, float]:
    """Best F1 over all thresholds (score >= threshold is a prediction), and that threshold."""
    precision, recall, thresholds = _curve(scores, targets)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
    best = int(np.argmax(f1))
    return float(f1[best]), float(thresholds[best])


def f1_at(scores: ArrayLike, targets: ArrayLike, threshold: float) -> float:
    """F1 of ``scores >= threshold``; 0 when nothing is predicted and nothing is true."""
    predicted = np.asarray(scores, dtype=np.float64).ravel() >= threshold
    y = np.asarray(targets, dtype=bool).ravel()
    denominator = int(predicted.sum()) + int(y.sum())
    return 2.0 * int((predicted & y).sum()) / denominator if denominator else 0.0


def summarise(scores: ArrayLike, targets: ArrayLike, known: BoolArray | None = None) -> dict[str, Any]:
    """Micro and macro figures of scores [B, V] against targets [B, V].

    ``known`` [B, V]: pairs that count (all by default); an unknown pair is neither positive nor negative. Macro is the
    mean over labels with at least one known positive. ``chance`` is the micro AUPR of random scores: the prevalence.
    """
    s = np.asarray(scores, dtype=np.float64)
    y = np.asarray(targets, dtype=bool)
    mask = np.ones_like(y) if known is None else np.asarray(known, dtype=bool)
    per_label = [average_precision(s[m, v], y[m, v]) for v in range(y.shape[1]) if y[m := mask[:, v], v].any()]
    best, threshold = peak_f1(s[mask], y[mask])
    return {
        "micro_aupr": average_precision(s[mask], y[mask]),
        "micro_peak_f1": best,
        "micro_peak_f1_logit": threshold,
        "macro_aupr": float(np.mean(per_label)),
        "chance": float(y[mask].mean()),
        "num_videos": int(y.shape[0]),
        "num_labels": int(y.shape[1]),
        "num_positives": int(y[mask].sum()),
    }
