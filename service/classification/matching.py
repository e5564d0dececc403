"""Scores video features against labels and ranks them."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from vidlex.model.types import FramePolicy
from vidlex.service.errors import InvalidParameter
from vidlex.service.labels.store.records import Label
from vidlex.service.models.applied_calibration import AppliedCalibration, as_applied, scorer_of
from vidlex.service.models.served_model import ModelFacts, Vocabulary

MAX_SEGMENT_SCORES = 500_000  # labels times segments in one response
# Tolerance of float32 similarities against a bound; false positives are removed by their score.
_ROUNDING = 1e-6
_HIGHEST_BOUND = 0.999999  # higher scores do not have distinguishable similarities

AggregateBy = Literal["video", "segments", "timestamps"]


@dataclass(frozen=True, kw_only=True)
class ClassifyOptions:
    """``label_ids`` and ``candidate_labels`` exclude each other."""

    label_ids: Sequence[str] | None = None
    candidate_labels: Sequence[str] | None = None  # names that are not stored
    include_categories: Sequence[str] | None = None
    exclude_categories: Sequence[str] | None = None
    min_score: float = 0.0
    top_k: int = 20  # 0: all
    num_frames: int | None = None  # per segment; None: the model's default
    frame_policy: FramePolicy = "uniform"
    aggregate_by: AggregateBy = "video"
    segment_ms: int = 4000
    start_ms: int | None = None
    end_ms: int | None = None
    min_revision: int | None = None


@dataclass(frozen=True)
class Segment:
    start_ms: int
    end_ms: int


@dataclass(frozen=True)
class LabelSimilarities:
    names: Sequence[str]
    labels: Sequence[Label] | None  # None for candidate labels
    similarity: NDArray[np.float32]  # [S, n] for S segments and n labels
    adjusted: NDArray[np.float32]  # [S, n] as calibrated
    calibration: AppliedCalibration | None
    revision: int
    approximate: bool = False


@dataclass(slots=True)
class ScoredLabel:
    name: str
    label: Label | None  # None for a candidate label
    score: float  # the highest of the segments' scores
    similarity: float
    threshold: float
    matched: bool
    segment_scores: Sequence[float]  # empty for ``aggregate_by="video"``


def compare(features: NDArray[np.float32], options: ClassifyOptions, vocabulary: Vocabulary) -> LabelSimilarities:
    """Compare features [S, D] with the requested labels.

    Raises InvalidParameter for unknown label ids, and what ``Labeler.candidates`` raises.
    """
    if options.candidate_labels is not None:
        names, vectors = vocabulary.labeler.candidates(options.candidate_labels)
        # One inner product per label and segment, as in the index, so that no result depends on the other labels.
        similarity = np.vecdot(vectors[None], features[:, None])
        calibration = as_applied(vocabulary.index.calibration)
        adjusted = similarity if calibration is None else calibration.domain.adjust(similarity, vectors)
        return LabelSimilarities(names, None, similarity, adjusted, calibration, vocabulary.index.revision)
    found = vocabulary.index.search(
        features,
        label_ids=options.label_ids,
        include_categories=options.include_categories,
        exclude_categories=options.exclude_categories,
        fingerprint=vocabulary.facts.fingerprint,
        top_k=options.top_k,
    )
    if found.unknown_ids:
        assert options.label_ids is not None
        unknown = set(found.unknown_ids)
        problems = [
            {"pointer": f"/label_ids/{i}", "detail": "there is no such label"}
            for i, label_id in enumerate(options.label_ids)
            if label_id in unknown
        ]
        raise InvalidParameter("Some label_ids do not exist", errors=problems[:100])
    return LabelSimilarities(
        LabelNames(found.labels),
        found.labels,
        found.similarity,
        found.adjusted,
        as_applied(found.calibration),
        found.revision,
        found.is_approximate,
    )


def rank(similarities: LabelSimilarities, options: ClassifyOptions, facts: ModelFacts) -> list[ScoredLabel]:
    """The labels with the highest scores in any segment, best first, ties by name.

    Raises InvalidParameter if the response would exceed MAX_SEGMENT_SCORES.
    """
    num_segments, num_labels = similarities.similarity.shape
    if num_labels == 0:
        return []
    # Scores increase with adjusted similarity: rows are ranked by it, and only the best ones are scored.
    best = similarities.adjusted.max(axis=0)  # [n]
    scorer = scorer_of(facts.scorer, similarities.calibration)
    bound = scorer.similarity(min(options.min_score, _HIGHEST_BOUND))
    rows = top_rows(best, similarities.names, options.top_k, bound - _ROUNDING * (1 + abs(bound)))
    with_segments = options.aggregate_by != "video"
    if with_segments and len(rows) * num_segments > MAX_SEGMENT_SCORES:
        raise InvalidParameter("The answer would be too long; lower top_k or raise segment_ms")
    scores = scorer.probability(similarities.adjusted[:, rows])  # [S, k]
    scored = []
    for row, score, segment_scores in zip(rows, scores.max(axis=0).tolist(), scores.T, strict=True):
        if score < options.min_score:
            break
        label = None if similarities.labels is None else similarities.labels[row]
        threshold = facts.default_threshold if label is None else facts.threshold_of(label)
        scored.append(
            ScoredLabel(
                similarities.names[row],
                label,
                score,
                similarity=float(similarities.similarity[:, row].max()),
                threshold=threshold,
                matched=score >= threshold,
                segment_scores=segment_scores.tolist() if with_segments else (),
            )
        )
    return scored


class LabelNames(Sequence[str]):
    def __init__(self, labels: Sequence[Label]) -> None:
        self._labels = labels

    def __len__(self) -> int:
        return len(self._labels)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...

    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        return LabelNames(self._labels[index]) if isinstance(index, slice) else self._labels[index].name


def top_rows(
    scores: NDArray[np.floating[Any]], names: Sequence[str], top_k: int, min_score: float = -math.inf
) -> list[int]:
    """Indices of the ``top_k`` (0: all) highest scores that are at least ``min_score``, best first, ties by name."""
    rows = np.flatnonzero(scores >= min_score) if min_score > -math.inf else np.arange(len(scores))
    if 0 < top_k < len(rows):
        remaining = scores[rows]
        kth = np.partition(remaining, len(remaining) - top_k)[len(remaining) - top_k]
        rows = rows[np.flatnonzero(remaining >= kth)]  # including all ties with the last one, which names decide

    def sort_key(row: int) -> tuple[float, str]:
        return -float(scores[row]), names[row]

    # Not a full sort: thousands of rows may tie with the last one.
    return heapq.nsmallest(top_k, rows.tolist(), key=sort_key) if top_k else sorted(rows.tolist(), key=sort_key)
