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


def curve(
    scores: ArrayLike, targets: ArrayLike, weights: ArrayLike | None = None
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Precision and recall after each distinct threshold (descending), and the thresholds.

    ``weights``: how much each pair counts, 1 by default. Raises ValueError without a positive, and for NaN.
    """
    s = np.asarray(scores, dtype=np.float64).ravel()
    y = np.asarray(targets, dtype=bool).ravel()
    w = np.ones(len(s)) if weights is None else np.asarray(weights, dtype=np.float64).ravel()
    if s.shape != y.shape or s.shape != w.shape:
        raise ValueError(f"{s.shape = }, {y.shape = } and {w.shape = } must agree")
    if not y.any():
        raise ValueError("average precision needs at least one positive")
    if np.isnan(s).any():
        raise ValueError("scores hold NaN")
    order = np.argsort(-s, kind="stable")
    s, y, w = s[order], y[order], w[order]
    last = np.r_[s[1:] != s[:-1], True]  # last entry of each group of equal scores
    hits = np.cumsum(w * y)[last]
    predicted = np.cumsum(w)[last]
    return hits / np.maximum(predicted, 1e-300), hits / hits[-1], s[last]


def area(precision: FloatArray, recall: FloatArray) -> float:
    """Average precision of a curve, by the step rule."""
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def best_f1(precision: FloatArray, recall: FloatArray) -> tuple[float, int]:
    """The best F1 on a curve, and where."""
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
    place = int(np.argmax(f1))
    return float(f1[place]), place


def average_precision(scores: ArrayLike, targets: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Area under the precision-recall curve by the step rule. Any shapes that agree. ValueError without a positive."""
    precision, recall, _ = curve(scores, targets, weights)
    return area(precision, recall)


def peak_f1(scores: ArrayLike, targets: ArrayLike) -> tuple[float, float]:
    """Best F1 over all thresholds (score >= threshold is a prediction), and that threshold."""
    precision, recall, thresholds = curve(scores, targets)
    f1, place = best_f1(precision, recall)
    return f1, float(thresholds[place])


def f1_at(scores: ArrayLike, targets: ArrayLike, threshold: float) -> float:
    """F1 of ``scores >= threshold``; 0 when nothing is predicted and nothing is true."""
    predicted = np.asarray(scores, dtype=np.float64).ravel() >= threshold
    y = np.asarray(targets, dtype=bool).ravel()
    denominator = int(predicted.sum()) + int(y.sum())
    return 2.0 * int((predicted & y).sum()) / denominator if denominator else 0.0


def summarise(scores: ArrayLike, targets: ArrayLike, known: BoolArray | None = None) -> dict[str, Any]:
    """Micro and macro figures of scores [B, V] against targets [B, V].

    ``known`` [B, V]: pairs that count (all by default); an unknown pair is neither positive nor negative. Macro is the
    mean over labels with at least one known positive; macro Peak F1 has a threshold per label. ``chance`` is the micro
    AUPR of random scores: the prevalence.
    """
    s, y, mask = as_pairs(scores, targets, known)
    rows = [row for row in per_label(s, y, mask) if row["num_positives"]]
    best, threshold = peak_f1(s[mask], y[mask])
    return {
        "micro_aupr": average_precision(s[mask], y[mask]),
        "micro_peak_f1": best,
        "micro_peak_f1_logit": threshold,
        "macro_aupr": float(np.mean([row["aupr"] for row in rows])),
        "macro_peak_f1": float(np.mean([row["peak_f1"] for row in rows])),
        "chance": float(y[mask].mean()),
        "num_videos": int(y.shape[0]),
        "num_labels": int(y.shape[1]),
        "num_positives": int(y[mask].sum()),
    }


def as_pairs(
    scores: ArrayLike, targets: ArrayLike, known: ArrayLike | None = None
) -> tuple[FloatArray, BoolArray, BoolArray]:
    """Scores, targets and mask [B, V] of equal shape; an unknown pair's target becomes False."""
    s = np.asarray(scores, dtype=np.float64)
    y = np.asarray(targets, dtype=bool)
    mask = np.ones_like(y) if known is None else np.asarray(known, dtype=bool)
    if not s.shape == y.shape == mask.shape or s.ndim != 2:
        raise ValueError(f"{s.shape = }, {y.shape = } and {mask.shape = } must be [B, V] and agree")
    return s, y & mask, mask


def per_label(scores: ArrayLike, targets: ArrayLike, known: ArrayLike | None = None) -> list[dict[str, Any]]:
    """One row per column: its numbers of known positives and negatives, ``aupr``, ``peak_f1`` and the threshold there
    (None without a positive)."""
    s, y, mask = as_pairs(scores, targets, known)
    rows = []
    for v in range(y.shape[1]):
        m = mask[:, v]
        num_positives = int(y[m, v].sum())
        f1, threshold = peak_f1(s[m, v], y[m, v]) if num_positives else (None, None)
        rows.append(
            {
                "num_positives": num_positives,
                "num_negatives": int(m.sum()) - num_positives,
                "aupr": average_precision(s[m, v], y[m, v]) if num_positives else None,
                "peak_f1": f1,
                "threshold": threshold,
            }
        )
    return rows


def federated_average_precision(scores: ArrayLike, targets: ArrayLike, known: ArrayLike) -> tuple[float, int]:
    """Mean over the labels that can be judged, with a known positive and a known negative, and their number.

    The federated protocol of LVIS and TAO: each label on its own verified videos only. ValueError without such a label.
    """
    rows = [row for row in per_label(scores, targets, known) if row["num_positives"] and row["num_negatives"]]
    if not rows:
        raise ValueError("no label has both a known positive and a known negative")
    return float(np.mean([row["aupr"] for row in rows])), len(rows)
