"""Judgements of videos for tests of feedback, and kept videos."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vidlex.service.videos.records import KeptSegment, NewKeptVideo
from vidlex.service.videos.store import KeptVideoStore


def sha256_of(name: object) -> str:
    return hashlib.sha256(str(name).encode()).hexdigest()


def judgement(video: object, label: str, right: bool, score: float | None = None, **fields: Any) -> dict[str, Any]:
    """The body of one, of the dummy model's own scores."""
    body: dict[str, Any] = {"sha256": sha256_of(video), "label": label, "right": right, **fields}
    return body if score is None else body | {"score": score, "fingerprint": "dummy-1"} | fields


def thirty(label: str) -> list[dict[str, Any]]:
    """15 videos of score 0.6, of which 3 are right, and 15 of score 0.9, of which 12 are."""
    return [
        judgement(f"{score}-{i}", label, i < num_right, score)
        for score, num_right in ((0.6, 3), (0.9, 12))
        for i in range(15)
    ]


def platt_by_hand(
    groups: Sequence[tuple[float, int, int]], slope_std: float = 0.25, intercept_std: float = 2.0
) -> tuple[float, float]:
    """Slope and intercept at which both derivatives of the penalised likelihood are zero. ``groups``: logit, number of
    judgements, of which right. For each slope the second derivative gives the intercept, then the first one the slope.
    """

    def p(z: float, a: float, b: float) -> float:
        return 1 / (1 + math.exp(-(a * z + b)))

    def intercept_of(a: float) -> float:
        return _bisected(lambda b: sum(n * p(z, a, b) - r for z, n, r in groups) + b / intercept_std**2)

    def slope_derivative(a: float) -> float:
        b = intercept_of(a)
        return sum(z * (n * p(z, a, b) - r) for z, n, r in groups) + (a - 1) / slope_std**2

    slope = _bisected(slope_derivative)
    return slope, intercept_of(slope)


def _bisected(rising: Callable[[float], float]) -> float:
    low, high = -50.0, 50.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return (low + high) / 2


def new_video(name: object, namespace: str = "default") -> NewKeptVideo:
    return NewKeptVideo(
        namespace=namespace, client="test", sha256=sha256_of(name), sampling={"frames": 4}, facts={}, receipt={}
    )


def keep(videos: KeptVideoStore, name: object, vectors: Sequence[Sequence[float]], fingerprint: str = "dummy-1") -> str:
    """Its id, of segments of a second each."""
    segments = [KeptSegment(i * 1000, (i + 1) * 1000) for i in range(len(vectors))]
    return videos.keep(new_video(name), fingerprint, segments, np.asarray(vectors, np.float32)).id
