"""RareAct's official scores (antoine77340/RareAct, compute_score.py): mWAP and mSAP over rows, hard negatives included.

A class is judged on its own rows (code 1 positive, 0 negative, 2 to 4 hard negative) and on every row of another class
with code 1: hard negative if it shares the verb or the noun, else negative. Each of the three groups weighs or samples
its rows by video by itself. Classes without a positive do not count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidlex.model.data.rareact import Rating, native_id
from vidlex.model.eval.metrics import average_precision

Groups = tuple[list[int], list[int], list[int]]


def class_groups(ratings: Sequence[Rating]) -> dict[int, Groups]:
    """Class id -> places in ``ratings`` of its positives, negatives and hard negatives."""
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
    """mWAP of ``predictions`` [rows, classes] (columns by class id), and the number of classes that count."""
    found = []
    for c, groups in class_groups(ratings).items():
        if groups[0]:
            rows = [i for group in groups for i in group]
            weights = [w for group in groups for w in _weights(ratings, group)]
            truth = np.arange(len(rows)) < len(groups[0])
            found.append(average_precision(predictions[rows, c], truth, weights))
    return _mean(found), len(found)


def mean_sampled_ap(
    ratings: Sequence[Rating], predictions: NDArray[np.floating[Any]], *, num_samples: int = 100, seed: int = 0
) -> float:
    """mSAP: one row per video and group, drawn ``num_samples`` times. Seeded, where the official script is not."""
    generator = np.random.default_rng(seed)
    found = []
    for c, groups in class_groups(ratings).items():
        if not groups[0]:
            continue
        videos = [_by_video(ratings, group) for group in groups]
        total = 0.0
        for _ in range(num_samples):
            drawn = [[rows[generator.integers(len(rows))] for rows in group] for group in videos]
            rows = [i for group in drawn for i in group]
            total += average_precision(predictions[rows, c], np.arange(len(rows)) < len(drawn[0]))
        found.append(total / num_samples)
    return _mean(found)


def _weights(ratings: Sequence[Rating], group: Sequence[int]) -> list[float]:
    count = Counter(ratings[i].video for i in group)
    return [1 / count[ratings[i].video] for i in group]


def _by_video(ratings: Sequence[Rating], group: Sequence[int]) -> list[list[int]]:
    found: dict[str, list[int]] = {}
    for i in group:
        found.setdefault(ratings[i].video, []).append(i)
    return list(found.values())


def _mean(values: Sequence[float]) -> float:
    if not values:
        raise ValueError("no class of RareAct has a positive among the rows that were scored")
    return float(np.mean(values))


def official_scores(
    ratings: Sequence[Rating], segments: Mapping[str, int], labels: Sequence[str], scores: NDArray[np.floating[Any]]
) -> dict[str, Any]:
    """mWAP and mSAP from segment scores [segments, V]: ``segments`` maps a native id to its row, ``labels`` [V] holds
    the actions' keys. Rows of segments that were not scored are left out and counted. ValueError when actions lack.
    """
    column = {label: i for i, label in enumerate(labels)}
    actions = {r.class_id: r.action for r in ratings}
    if lacking := [name for name in actions.values() if name not in column]:
        raise ValueError(f"RareAct's score needs all {len(actions)} actions; {len(lacking)} are not among the labels")
    kept = [r for r in ratings if native_id(*r.segment) in segments]
    predictions = np.full((len(kept), max(actions) + 1), np.nan)
    for i, rating in enumerate(kept):
        row = scores[segments[native_id(*rating.segment)]]
        for c, action in actions.items():
            predictions[i, c] = row[column[action]]
    weighted, num_classes = mean_weighted_ap(kept, predictions)
    return {
        "mwap": weighted,
        "msap": mean_sampled_ap(kept, predictions),
        "num_rows": len(kept),
        "num_rows_without_video": len(ratings) - len(kept),
        "num_classes": num_classes,
    }
