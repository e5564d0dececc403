"""What labels are scored by: vectors, calibration, thresholds, of one revision of a vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vidlex.model.scoring import Scorer
from vidlex.service.classification.matching import HIGHEST_BOUND
from vidlex.service.labels.store.indexed_label import IndexedLabel
from vidlex.service.models.applied_calibration import as_applied, fingerprint_of, scorer_of
from vidlex.service.models.scoring_vocabulary import ScoringVocabulary

_ROUNDING = 1e-6  # of a bound in float32
_MAX_ATTEMPTS = 20


@dataclass(frozen=True, eq=False)
class ScoredLabels:
    """V labels. ``adjusted = scale * similarity + shift`` is what the scorer turns into a probability."""

    labels: Sequence[IndexedLabel]
    vectors: NDArray[np.float32]  # [V, D]
    thresholds: NDArray[np.float64]  # [V]
    scale: NDArray[np.float32] | None  # [V]; None, as ``shift``: similarities are not adjusted
    shift: NDArray[np.float32] | None
    bounds: NDArray[np.float32]  # [V] adjusted similarities below which no video matches
    model: str  # fingerprint
    calibration: str | None  # fingerprint
    revision: int
    scorer: Scorer

    def __len__(self) -> int:
        return len(self.labels)

    def adjusted(self, row: int, similarity: NDArray[np.float32]) -> NDArray[np.float32]:
        """Of one label, in the arithmetic of the label index."""
        if self.scale is None or self.shift is None:
            return similarity
        adjusted: NDArray[np.float32] = similarity * self.scale[row]
        adjusted += self.shift[row]
        return adjusted

    def probability(self, adjusted: NDArray[np.float32]) -> NDArray[np.float64]:
        return self.scorer.probability(adjusted)

    def part(self, start: int, stop: int) -> ScoredLabels:
        return ScoredLabels(
            self.labels[start:stop],
            self.vectors[start:stop],
            self.thresholds[start:stop],
            None if self.scale is None else self.scale[start:stop],
            None if self.shift is None else self.shift[start:stop],
            self.bounds[start:stop],
            self.model,
            self.calibration,
            self.revision,
            self.scorer,
        )


def read_labels(
    vocabulary: ScoringVocabulary, label_ids: Sequence[str], *, min_score: float | None = None
) -> tuple[ScoredLabels, tuple[str, ...]]:
    """Labels of the index, and those of ``label_ids`` that it does not have.

    ``min_score`` takes the place of all thresholds.
    """
    facts, index = vocabulary.facts, vocabulary.index
    for _ in range(_MAX_ATTEMPTS):
        # Not for the similarities: labels, calibration and revision are of one moment.
        found = index.search(np.zeros((1, facts.dim), np.float32), label_ids=label_ids, fingerprint=facts.fingerprint)
        vectors = [index.vector(label.id) for label in found.labels]
        if index.revision == found.revision and index.calibration is found.calibration:
            break
    known = [(label, vector) for label, vector in zip(found.labels, vectors, strict=True) if vector is not None]
    matrix = np.stack([vector for _, vector in known]) if known else np.empty((0, facts.dim), np.float32)
    labels = [label for label, _ in known]
    thresholds = np.array([facts.threshold_of(x) if min_score is None else min_score for x in labels], np.float64)
    applied = as_applied(found.calibration)
    scale, shift = (None, None) if applied is None else applied.affine(matrix)
    scorer = scorer_of(facts.scorer, applied)
    bounds = [scorer.similarity(min(threshold, HIGHEST_BOUND)) for threshold in thresholds.tolist()]
    with_rounding = [bound - _ROUNDING * (1 + abs(bound)) if np.isfinite(bound) else bound for bound in bounds]
    scored = ScoredLabels(
        labels,
        matrix,
        thresholds,
        scale,
        shift,
        np.array(with_rounding, np.float32),
        facts.fingerprint,
        fingerprint_of(applied),
        found.revision,
        scorer,
    )
    return scored, found.unknown_ids
