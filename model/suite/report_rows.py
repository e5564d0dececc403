from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

TITLES = {
    "seen": "seen labels",
    "unseen_words": "unseen nouns and words",
    "unseen_actions": "unseen actions and words",
    "rare_pairs": "rare pairs",
    "unseen_style": "unseen style",
}
METHOD_TITLES = {
    "clip_name": "CLIP, bare class name",
    "clip_photo": "CLIP, a photo of a ...",
    "clip_ensemble": "CLIP, 28 video templates",
    "fixed_llm": "CLIP, fixed LLM prompt",
    "coop": "CoOp",
    "dualcoop": "DualCoOp",
    "vificlip": "ViFi-CLIP",
    "ours": "ours",
    "settled": "ours, labels settled",
}
OURS = ("ours", "settled")
Rows = Sequence[Mapping[str, Any]]


def of_method(main: Rows, method: str) -> list[Mapping[str, Any]]:
    return [row for row in main if row["method"] == method]


def values_of(rows: Rows, column: str, metric: str, part: str | None = None) -> list[float]:
    values = []
    for row in rows:
        metrics = row["columns"][column]
        chosen = metrics["all"] if part is None else metrics["parts"].get(part)
        if chosen is not None:
            values.append(float(chosen[metric]))
    return values


def cell(values: Sequence[float]) -> str:
    if not values:
        return ""
    mean = f"{np.mean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.3f}"


def spread(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
