"""The official scores of RareAct (antoine77340/RareAct, compute_score.py): mWAP and mSAP, with hard negatives.

A class is judged on its own rows (code 1 positive, 0 negative, 2 to 4 hard negative) and on the rows of other classes
with code 1: hard negative if they share the verb or the noun, else negative. Rows are weighted or sampled by video
within each of the three groups. Classes without a positive are not judged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidlex.model.data.rareact import Rating, native_id
from vidlex.model.eval.metrics import average_precision

Groups = tuple[list[int], list[int], list[int]]  # indices of positives, negatives and hard negatives


def class_groups(ratings: Sequence[Rating]) -> dict[int, Groups]:
    pairs = {r.class_id: (r.verb, r.noun) for r in ratings}
    groups: dict[int, Groups] = {c: ([], [], []) for c in pairs}
    for i, rating in enumerate(ratings):
        if rating.code != 1:
            groups[rating.class_id][1 if rating.code == 0 else 2].append(i)
            continue
        groups[rating.class_id][0].append(i)
        for c, (verb, noun) in pairs.items():
            if c != rating.class_id:
                groups[c][2 if verb == rating.verb or noun == rating.noun else 1].append(i)
    return groups


def mean_weighted_ap(ratings: Sequence[Rating], predictions: NDArray[np.floating[Any]]) -> tuple[float, int]:
    """mWAP of ``predictions`` [rows, classes] (columns by class id), and the number of classes judged."""
    values = []
    for c, groups in class_groups(ratings).items():
        if groups[0]:
            rows = [i for group in groups for i in group]
            weights = [w for group in groups for w in _weights(ratings, group)]
            targets = np.arange(len(rows)) < len(groups[0])
            values.append(average_precision(predictions[rows, c], targets, weights))
    return _mean(values), len(values)


def mean_sampled_ap(
    ratings: Sequence[Rating], predictions: NDArray[np.floating[Any]], *, num_samples: int = 100, seed: int = 0
) -> float:
    """mSAP: one row per video and group, drawn ``num_samples`` times. Unlike the official script, seeded."""
    generator = np.random.default_rng(seed)
    values = []
    for c, groups in class_groups(ratings).items():
        if not groups[0]:
            continue
        videos = [_rows_by_video(ratings, group) for group in groups]
        total = 0.0
        for _ in range(num_samples):
            drawn = [[rows[generator.integers(len(rows))] for rows in group] for group in videos]
            rows = [i for group in drawn for i in group]
            total += average_precision(predictions[rows, c], np.arange(len(rows)) < len(drawn[0]))
        values.append(total / num_samples)
    return _mean(values)


def _weights(ratings: Sequence[Rating], group: Sequence[int]) -> list[float]:
    count = Counter(ratings[i].video for i in group)
    return [1 / count[ratings[i].video] for i in group]


def _rows_by_video(ratings: Sequence[Rating], group: Sequence[int]) -> list[list[int]]:
    rows: dict[str, list[int]] = {}
    for i in group:
        rows.setdefault(ratings[i].video, []).append(i)
    return list(rows.values())


def _mean(values: Sequence[float]) -> float:
    if not values:
        raise ValueError("no class of RareAct has a positive among the scored rows")
    return float(np.mean(values))


def rareact_metrics(
    ratings: Sequence[Rating], segments: Mapping[str, int], labels: Sequence[str], scores: NDArray[np.floating[Any]]
) -> dict[str, Any]:
    """mWAP and mSAP from ``scores`` [segments, V]; ``segments`` maps a native id to its row, ``labels`` [V] are keys.

    Ratings of segments without scores are ignored and counted. Raises ValueError if an action is not among the labels.
    """
    column = {label: i for i, label in enumerate(labels)}
    actions = {r.class_id: r.action for r in ratings}
    if missing := [name for name in actions.values() if name not in column]:
        raise ValueError(
            f"the score of RareAct needs all {len(actions)} actions; {len(missing)} are not among the labels"
        )
    scored = [r for r in ratings if native_id(*r.segment) in segments]
    predictions = np.full((len(scored), max(actions) + 1), np.nan)
    for i, rating in enumerate(scored):
        row = scores[segments[native_id(*rating.segment)]]
        for c, action in actions.items():
            predictions[i, c] = row[column[action]]
    mwap, num_classes = mean_weighted_ap(scored, predictions)
    return {
        "mwap": mwap,
        "msap": mean_sampled_ap(scored, predictions),
        "num_rows": len(scored),
        "num_rows_without_video": len(ratings) - len(scored),
        "num_classes": num_classes,
    }
