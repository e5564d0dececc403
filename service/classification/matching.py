"""Scores video features against labels and ranks them."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from vidlex.model.types import FramePolicy
from vidlex.service.classification.stretches import Stretch, Timeline
from vidlex.service.errors import InvalidParameter
from vidlex.service.labels.store.indexed_label import IndexedLabel
from vidlex.service.models.applied_calibration import AppliedCalibration, as_applied, scorer_of
from vidlex.service.models.scoring_vocabulary import ScoringVocabulary
from vidlex.service.models.served_model import ModelFacts
from vidlex.service.sharing.requester import Requester

MAX_SEGMENT_SCORES = 500_000  # labels times segments in one response
# Tolerance of float32 similarities against a bound; false positives are removed by their score.
_ROUNDING = 1e-6
MAX_HELD = 2**23  # similarities of one request in memory; a search for more is done in blocks of segments
_BLOCK_SCORES = 2**18  # scored at a time
_MAX_ATTEMPTS = 3
HIGHEST_BOUND = 0.999999  # higher scores do not have distinguishable similarities

ScoreT = TypeVar("ScoreT", bound=np.floating[Any])

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
    frame_policy: FramePolicy | None = None  # None: shots for a whole video without ``num_frames``, else uniform
    aggregate_by: AggregateBy = "video"
    segment_ms: int = 4000
    start_ms: int | None = None
    end_ms: int | None = None
    min_revision: int | None = None


class Similarities(Protocol):
    """Of n labels with S segments."""

    @property
    def names(self) -> Sequence[str]: ...

    @property
    def labels(self) -> Sequence[IndexedLabel] | None: ...  # None for candidate labels

    @property
    def calibration(self) -> AppliedCalibration | None: ...

    @property
    def revision(self) -> int: ...

    @property
    def approximate(self) -> bool: ...

    @property
    def num_segments(self) -> int: ...

    def best(self) -> NDArray[np.float32]: ...  # [n] adjusted, see ``combine``

    def at(self, rows: Sequence[int]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Similarities and adjusted ones [S, k] of k labels. Raises VocabularyChanged."""


@dataclass(frozen=True)
class LabelSimilarities:
    names: Sequence[str]
    labels: Sequence[IndexedLabel] | None
    similarity: NDArray[np.float32]  # [S, n]
    adjusted: NDArray[np.float32]  # [S, n] as calibrated
    calibration: AppliedCalibration | None
    revision: int
    approximate: bool = False

    @property
    def num_segments(self) -> int:
        return len(self.similarity)

    def best(self) -> NDArray[np.float32]:
        return combine(self.adjusted)

    def at(self, rows: Sequence[int]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        return self.similarity[:, rows], self.adjusted[:, rows]


class VocabularyChanged(Exception):
    """Between two searches that must be of one vocabulary."""


class SimilaritiesInBlocks:
    """Those that are too many to hold: the best of each label first, then those of the labels that are asked for.

    ``search(features, label_ids)`` compares with all labels that pass the filters, or with these. Raises
    VocabularyChanged.
    """

    approximate = False

    def __init__(
        self,
        features: NDArray[np.float32],
        search: Callable[[NDArray[np.float32], Sequence[str] | None], LabelSimilarities],
        max_held: int,
    ) -> None:
        self._features = features
        self._search = search
        self._first = first = search(features[:1], None)
        self._best = first.best()
        block = max(1, max_held // max(1, len(first.names)))
        for start in range(1, len(features), block):
            found = search(features[start : start + block], None)
            self._require_same(found, len(first.names))
            np.maximum(self._best, found.best(), out=self._best)

    def _require_same(self, found: LabelSimilarities, num_labels: int) -> None:
        first = self._first
        is_same = found.revision == first.revision and found.calibration is first.calibration
        if not is_same or len(found.names) != num_labels:
            raise VocabularyChanged

    @property
    def names(self) -> Sequence[str]:
        return self._first.names

    @property
    def labels(self) -> Sequence[IndexedLabel] | None:
        return self._first.labels

    @property
    def calibration(self) -> AppliedCalibration | None:
        return self._first.calibration

    @property
    def revision(self) -> int:
        return self._first.revision

    @property
    def num_segments(self) -> int:
        return len(self._features)

    def best(self) -> NDArray[np.float32]:
        return self._best

    def at(self, rows: Sequence[int]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        assert self._first.labels is not None
        ids = [self._first.labels[row].id for row in rows]
        found = self._search(self._features, ids)
        self._require_same(found, len(ids))
        assert found.labels is not None
        column_of = {label.id: i for i, label in enumerate(found.labels)}
        columns = [column_of[label_id] for label_id in ids]
        return found.similarity[:, columns], found.adjusted[:, columns]


@dataclass(slots=True)
class ScoredLabel:
    name: str
    label: IndexedLabel | None  # None for a candidate label
    score: float  # of the segments' scores, see ``combine``
    similarity: float
    threshold: float
    matched: bool
    segment_scores: Sequence[float]  # empty for ``aggregate_by="video"``
    stretches: Sequence[Stretch] = ()  # where the label applies, in order of time


def match(
    features: NDArray[np.float32],
    options: ClassifyOptions,
    vocabulary: ScoringVocabulary,
    timeline: Timeline,
    requester: Requester | None = None,
) -> tuple[Similarities, list[ScoredLabel]]:
    """Compare features [S, D] with the requested labels. Raises as ``compare`` and ``rank`` do."""
    for _ in range(_MAX_ATTEMPTS):
        try:
            similarities = compare(features, options, vocabulary, requester)
            return similarities, rank(similarities, options, vocabulary.facts, timeline)
        except VocabularyChanged:
            continue
    similarities = compare(features, options, vocabulary, requester, max_held=None)
    return similarities, rank(similarities, options, vocabulary.facts, timeline)


def compare(
    features: NDArray[np.float32],
    options: ClassifyOptions,
    vocabulary: ScoringVocabulary,
    requester: Requester | None = None,
    *,
    max_held: int | None = MAX_HELD,
) -> Similarities:
    """Similarities of features [S, D] with the requested labels, at most ``max_held`` at a time.

    Raises InvalidParameter for unknown label ids, VocabularyChanged, and what ``Labeler.candidates`` raises.
    """
    if options.candidate_labels is not None:
        assert vocabulary.labeler is not None, "candidate labels need an encoder"
        names, vectors = vocabulary.labeler.candidates(options.candidate_labels, requester)
        # One inner product per label and segment, as in the index, so that no result depends on the other labels.
        similarity = np.vecdot(vectors[None], features[:, None])
        calibration = as_applied(vocabulary.index.calibration)
        adjusted = similarity if calibration is None else calibration.domain.adjust(similarity, vectors)
        return LabelSimilarities(names, None, similarity, adjusted, calibration, vocabulary.index.revision)

    def search(features: NDArray[np.float32], label_ids: Sequence[str] | None, top_k: int = 0) -> LabelSimilarities:
        found = vocabulary.index.search(
            features,
            label_ids=label_ids,
            include_categories=options.include_categories,
            exclude_categories=options.exclude_categories,
            fingerprint=vocabulary.facts.fingerprint,
            top_k=top_k,
        )
        if found.unknown_ids:
            raise _unknown_ids(options.label_ids, found.unknown_ids)
        return LabelSimilarities(
            LabelNames(found.labels),
            found.labels,
            found.similarity,
            found.adjusted,
            as_applied(found.calibration),
            found.revision,
            found.is_approximate,
        )

    num_products = len(features) * len(vocabulary.index)
    if options.label_ids is None and max_held is not None and num_products > max_held:
        return SimilaritiesInBlocks(features, search, max_held)
    return search(features, options.label_ids, options.top_k)


def _unknown_ids(label_ids: Sequence[str] | None, unknown: Sequence[str]) -> Exception:
    if label_ids is None:  # asked for by SimilaritiesInBlocks
        return VocabularyChanged()
    missing = set(unknown)
    problems = [
        {"pointer": f"/label_ids/{i}", "detail": "there is no such label"}
        for i, label_id in enumerate(label_ids)
        if label_id in missing
    ]
    return InvalidParameter("Some label_ids do not exist", errors=problems[:100])


def combine(scores: NDArray[ScoreT]) -> NDArray[ScoreT]:
    """What scores or similarities [S, n] of S segments say about the whole video: [n].

    That of the most confident segment: a mean would drown a scene in all those that do not show it.
    """
    best: NDArray[ScoreT] = scores.max(axis=0)
    return best


def rank(
    similarities: Similarities, options: ClassifyOptions, facts: ModelFacts, timeline: Timeline | None = None
) -> list[ScoredLabel]:
    """The labels with the highest scores, best first, ties by name; with their stretches if ``timeline`` is given.

    Raises InvalidParameter if the response would exceed MAX_SEGMENT_SCORES, and VocabularyChanged.
    """
    num_segments = similarities.num_segments
    if not len(similarities.names):
        return []
    # Scores increase with adjusted similarity: rows are ranked by it, and only the best ones are scored.
    best = similarities.best()
    scorer = scorer_of(facts.scorer, similarities.calibration)
    bound = scorer.similarity(min(options.min_score, HIGHEST_BOUND))
    rows = top_rows(best, similarities.names, options.top_k, bound - _ROUNDING * (1 + abs(bound)))
    with_segments = options.aggregate_by != "video"
    if with_segments and len(rows) * num_segments > MAX_SEGMENT_SCORES:
        raise InvalidParameter("The answer would be too long; lower top_k or raise segment_ms")
    scored: list[ScoredLabel] = []
    block = max(1, _BLOCK_SCORES // num_segments)
    num_stretches = 0
    for first in range(0, len(rows), block):
        part = rows[first : first + block]
        similarity, adjusted = similarities.at(part)  # [S, k]
        scores = scorer.probability(adjusted)
        best_similarity = combine(similarity).tolist()
        for i, (row, score) in enumerate(zip(part, combine(scores).tolist(), strict=True)):
            if score < options.min_score:
                return scored
            label = None if similarities.labels is None else similarities.labels[row]
            threshold = facts.default_threshold if label is None else facts.threshold_of(label)
            matched = score >= threshold
            segment_scores = scores[:, i]
            stretches = timeline.stretches(segment_scores, threshold) if timeline is not None and matched else ()
            num_stretches += len(stretches)
            if num_stretches > MAX_SEGMENT_SCORES:
                raise InvalidParameter("The answer would be too long; lower top_k")
            scored.append(
                ScoredLabel(
                    similarities.names[row],
                    label,
                    score,
                    similarity=best_similarity[i],
                    threshold=threshold,
                    matched=matched,
                    segment_scores=segment_scores.tolist() if with_segments else (),
                    stretches=stretches,
                )
            )
    return scored


class LabelNames(Sequence[str]):
    def __init__(self, labels: Sequence[IndexedLabel]) -> None:
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
