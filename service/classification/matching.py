"""A video's features to its ranked labels: search, then scores for those that the answer shows."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidlex.service.errors import InvalidParameter
from vidlex.service.labels.store.records import Label
from vidlex.service.models.served_model import ModelFacts, Vocabulary
from vidlex.service.schemas.classify import ClassifyParams, ScoredLabelView, SegmentView

MAX_SEGMENT_SCORES = 500_000
"""Bounds the answer: labels in it times segments."""
_ROUNDING = 1e-6
"""Of float32 similarities against a bound; what it lets through too much is dropped by its score."""
_HIGHEST_BOUND = 0.999999
"""Beyond it a score's similarity is no longer told from the next one's."""


@dataclass(frozen=True)
class Part:
    """A stretch of the video that is encoded by itself."""

    start_ms: int
    end_ms: int


@dataclass(frozen=True)
class Candidates:
    """What the video is compared with: n stored or ad hoc labels, and the similarity of each part [S, n]."""

    names: Sequence[str]
    labels: Sequence[Label] | None
    similarity: NDArray[np.float32]
    revision: int
    approximate: bool = False


def compare(features: NDArray[np.float32], params: ClassifyParams, vocabulary: Vocabulary) -> Candidates:
    """Features [S, D] with the labels that the request asks for. Raises InvalidParameter for ids that are none, and
    what the labeler raises for candidate labels."""
    if params.candidate_labels is not None:
        candidates, vectors = vocabulary.labeler.candidates(params.candidate_labels)
        # One product per label and part, as in the index: no label's digits depend on its neighbours.
        similarity = np.vecdot(vectors[None], features[:, None])
        return Candidates(candidates, None, similarity, vocabulary.index.revision)
    matches = vocabulary.index.search(
        features,
        label_ids=params.label_ids,
        include_categories=params.include_categories,
        exclude_categories=params.exclude_categories,
        fingerprint=vocabulary.facts.fingerprint,
        top_k=params.top_k,
    )
    if matches.unknown_ids:
        assert params.label_ids is not None
        unknown = set(matches.unknown_ids)
        problems = [
            {"pointer": f"/label_ids/{i}", "detail": "there is no such label"}
            for i, label_id in enumerate(params.label_ids)
            if label_id in unknown
        ]
        raise InvalidParameter("Some label_ids do not exist", errors=problems[:100])
    return Candidates(
        NamesOf(matches.labels), matches.labels, matches.similarity, matches.revision, matches.approximate
    )


def rank(found: Candidates, parts: Sequence[Part], params: ClassifyParams, facts: ModelFacts) -> list[ScoredLabelView]:
    """The best labels, best first, each with the best of its parts' scores; equal ones by name.

    Raises InvalidParameter when the scores of all parts would be too many.
    """
    if found.similarity.shape[1] == 0:
        return []
    # A score rises with its similarity: ranked by that, only the survivors' scores, names and labels are looked up.
    best = found.similarity.max(axis=0)  # [n]
    least = facts.scorer.similarity(min(params.min_score, _HIGHEST_BOUND))
    order = top_rows(best, found.names, params.top_k, least - _ROUNDING * (1 + abs(least)))
    scores = facts.scorer.probability(found.similarity[:, order])  # [S, k]
    with_parts = params.aggregate_by != "video"
    if with_parts and len(order) * len(parts) > MAX_SEGMENT_SCORES:
        raise InvalidParameter("The answer would be too long; lower top_k or raise segment_ms")
    views = []
    for place, row in enumerate(order):
        score = float(scores[:, place].max())
        if score < params.min_score:
            break
        label = found.labels[row] if found.labels is not None else None
        own = None if label is None else label.threshold
        threshold = facts.default_threshold if own is None else own
        segments = [
            SegmentView(start_ms=part.start_ms, end_ms=part.end_ms, score=float(part_score))
            for part, part_score in zip(parts, scores[:, place], strict=True)
        ]
        views.append(
            ScoredLabelView(
                id=None if label is None else label.id,
                name=found.names[row],
                score=score,
                similarity=float(best[row]),
                threshold=threshold,
                matched=score >= threshold,
                categories=[] if label is None else list(label.categories),
                segments=segments if with_parts else [],
            )
        )
    return views


class NamesOf(Sequence[str]):
    """The names of labels, without a second list of a hundred thousand."""

    def __init__(self, labels: Sequence[Label]) -> None:
        self._labels = labels

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, place: Any) -> Any:
        return self._labels[place].name


def top_rows(
    scores: NDArray[np.floating[Any]], names: Sequence[str], top_k: int, min_score: float = -math.inf
) -> list[int]:
    """Rows with at least ``min_score``, best first, equal scores by name; at most ``top_k`` (0: all)."""
    rows = np.flatnonzero(scores >= min_score) if min_score > -math.inf else np.arange(len(scores))
    if 0 < top_k < len(rows):
        kept = scores[rows]
        kth = np.partition(kept, len(kept) - top_k)[len(kept) - top_k]
        rows = rows[np.flatnonzero(kept >= kth)]  # with all that equal the last one: the name decides among them

    def place(row: int) -> tuple[float, str]:
        return -float(scores[row]), names[row]

    # Not sorted whole: thousands may equal the last one.
    return heapq.nsmallest(top_k, rows.tolist(), key=place) if top_k else sorted(rows.tolist(), key=place)
