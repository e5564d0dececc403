"""Ranking metrics for multi-label scores: average precision and Peak F1, micro and macro, with unknown pairs masked.

Computed on logits, because float32 probabilities tie near 0 and 1. Equal scores form one threshold. The numbers are
those of scikit-learn, which takes 20 times as long for the 300 videos of one label.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]


def cumulative_counts(
    scores: ArrayLike, targets: ArrayLike, weights: ArrayLike | None = None
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """True positives and predictions at each distinct threshold (descending), and the thresholds.

    ``weights``: of each pair, 1 by default. Raises ValueError for NaN and for shapes that differ.
    """
    s = np.asarray(scores, dtype=np.float64).ravel()
    y = np.asarray(targets, dtype=bool).ravel()
    w = np.ones(len(s)) if weights is None else np.asarray(weights, dtype=np.float64).ravel()
    if s.shape != y.shape or s.shape != w.shape:
        raise ValueError(f"{s.shape = }, {y.shape = } and {w.shape = } must agree")
    if np.isnan(s).any():
        raise ValueError("scores contain NaN")
    order = np.argsort(-s, kind="stable")
    s, y, w = s[order], y[order], w[order]
    is_last = last_of_ties(s)
    return np.cumsum(w * y)[is_last], np.cumsum(w)[is_last], s[is_last]


def last_of_ties(sorted_scores: FloatArray) -> BoolArray:
    mask: BoolArray = np.r_[sorted_scores[1:] != sorted_scores[:-1], np.ones(min(1, len(sorted_scores)), bool)]
    return mask


def precision_recall_curve(
    scores: ArrayLike, targets: ArrayLike, weights: ArrayLike | None = None
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Precision and recall at each distinct threshold (descending), and the thresholds.

    ``weights``: of each pair, 1 by default. Raises ValueError for NaN, for shapes that differ and without a positive.
    """
    if not np.any(targets):
        raise ValueError("average precision needs at least one positive")
    true_positives, predictions, thresholds = cumulative_counts(scores, targets, weights)
    return true_positives / np.maximum(predictions, 1e-300), true_positives / true_positives[-1], thresholds


def step_auc(precision: FloatArray, recall: FloatArray) -> float:
    """Average precision of a curve, without interpolation: ``sum_k (R_k - R_{k-1}) P_k``."""
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def best_f1(precision: FloatArray, recall: FloatArray) -> tuple[float, int]:  # maximum and its index
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
    index = int(np.argmax(f1))
    return float(f1[index]), index


def average_precision(scores: ArrayLike, targets: ArrayLike, weights: ArrayLike | None = None) -> float:
    precision, recall, _ = precision_recall_curve(scores, targets, weights)
    return step_auc(precision, recall)


def peak_f1(scores: ArrayLike, targets: ArrayLike) -> tuple[float, float]:  # F1 and threshold
    precision, recall, thresholds = precision_recall_curve(scores, targets)
    f1, index = best_f1(precision, recall)
    return f1, float(thresholds[index])


def f1_at(scores: ArrayLike, targets: ArrayLike, threshold: float) -> float:
    predicted = np.asarray(scores, dtype=np.float64).ravel() >= threshold
    y = np.asarray(targets, dtype=bool).ravel()
    denominator = int(predicted.sum()) + int(y.sum())
    return 2.0 * int((predicted & y).sum()) / denominator if denominator else 0.0


def summarise(scores: ArrayLike, targets: ArrayLike, known: BoolArray | None = None) -> dict[str, Any]:
    """Micro and macro metrics of scores [B, V].

    ``known`` [B, V]: pairs that count, all by default. Macro metrics are means over the labels with a known positive,
    with one threshold per label. ``chance`` is the micro AUPR of random scores: the prevalence.
    """
    s, y, mask = as_masked_arrays(scores, targets, known)
    rows = [row for row in per_label(s, y, mask) if row["num_positives"]]
    precision, recall, thresholds = precision_recall_curve(s[mask], y[mask])
    f1, index = best_f1(precision, recall)
    return {
        "micro_aupr": step_auc(precision, recall),
        "micro_peak_f1": f1,
        "micro_peak_f1_logit": float(thresholds[index]),
        "macro_aupr": float(np.mean([row["aupr"] for row in rows])),
        "macro_peak_f1": float(np.mean([row["peak_f1"] for row in rows])),
        "chance": float(y[mask].mean()),
        "num_videos": int(y.shape[0]),
        "num_labels": int(y.shape[1]),
        "num_positives": int(y[mask].sum()),
    }


def as_masked_arrays(
    scores: ArrayLike, targets: ArrayLike, known: ArrayLike | None = None
) -> tuple[FloatArray, BoolArray, BoolArray]:  # [B, V]
    s = np.asarray(scores, dtype=np.float64)
    y = np.asarray(targets, dtype=bool)
    mask = np.ones_like(y) if known is None else np.asarray(known, dtype=bool)
    if not s.shape == y.shape == mask.shape or s.ndim != 2:
        raise ValueError(f"{s.shape = }, {y.shape = } and {mask.shape = } must be [B, V] and agree")
    return s, y & mask, mask


def per_label(scores: ArrayLike, targets: ArrayLike, known: ArrayLike | None = None) -> list[dict[str, Any]]:
    s, y, mask = as_masked_arrays(scores, targets, known)
    rows = []
    for v in range(y.shape[1]):
        m = mask[:, v]
        num_positives = int(y[m, v].sum())
        aupr = f1 = threshold = None
        if num_positives:
            precision, recall, thresholds = precision_recall_curve(s[m, v], y[m, v])
            aupr = step_auc(precision, recall)
            f1, index = best_f1(precision, recall)
            threshold = float(thresholds[index])
        rows.append(
            {
                "num_positives": num_positives,
                "num_negatives": int(m.sum()) - num_positives,
                "aupr": aupr,
                "peak_f1": f1,
                "threshold": threshold,
            }
        )
    return rows


def federated_average_precision(scores: ArrayLike, targets: ArrayLike, known: ArrayLike) -> tuple[float, int]:
    """Mean AUPR over the labels with a known positive and a known negative, and their number.

    The federated protocol of LVIS and TAO: each label is judged on its own verified videos. Raises ValueError without
    such a label.
    """
    rows = [row for row in per_label(scores, targets, known) if row["num_positives"] and row["num_negatives"]]
    if not rows:
        raise ValueError("no label has both a known positive and a known negative")
    return float(np.mean([row["aupr"] for row in rows])), len(rows)
