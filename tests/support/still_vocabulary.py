"""Vocabularies without a service, and what classifying features with them gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from support.stores import label_id, vector_of
from vidlex.model.calibration.domain import DomainCalibration
from vidlex.model.calibration.statistics import DomainStatistics
from vidlex.model.scoring import Calibration, Scorer
from vidlex.model.types import FrameGeometry
from vidlex.service.classification.matching import ClassifyOptions, LabelNames, LabelSimilarities, ScoredLabel, rank
from vidlex.service.classification.segments import Segment
from vidlex.service.classification.stretches import Timeline
from vidlex.service.engine.video_queue import EncodedVideo
from vidlex.service.labels.index.label_index import LabelIndex
from vidlex.service.labels.index.vector_slabs import Storage
from vidlex.service.labels.store.calibrations import Calibration as StoredCalibration
from vidlex.service.labels.store.indexed_label import IndexedLabel
from vidlex.service.models.applied_calibration import AppliedCalibration, as_applied
from vidlex.service.models.served_model import ModelFacts
from vidlex.service.videos.records import KeptFeatures


class NoEngine:
    def encode_videos(self, *_: object, **__: object) -> list[EncodedVideo]:
        raise AssertionError("nothing is encoded")


class TextVectors:
    """In place of a label encoder."""

    def __init__(self, dim: int) -> None:
        self._dim = dim

    def candidates(self, names: Sequence[str], requester: Any = None) -> tuple[list[str], NDArray[np.float32]]:
        return list(names), np.stack([vector_of(name, self._dim) for name in names])


@dataclass(frozen=True)
class StillVocabulary:
    facts: ModelFacts
    index: LabelIndex
    namespace: str = "default"
    engine: NoEngine = field(default_factory=NoEngine)
    labeler: TextVectors | None = None


def vocabulary_of(
    num_labels: int, dim: int, *, storage: Storage = "float32", calibrated: bool = False
) -> tuple[StillVocabulary, NDArray[np.float32]]:
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((num_labels, dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    thresholds = [None, 0.4, 0.6, 0.0, 1.0, 0.05]
    labels = [IndexedLabel(label_id(i), f"label {i}", (), thresholds[i % 6]) for i in range(num_labels)]
    index = LabelIndex(dim, "bench", storage=storage)
    index.apply(labels, vectors, revision=7)
    if calibrated:
        statistics = DomainStatistics.of(rng.standard_normal((40, dim)) * 0.1 + vectors[0] * 0.3)
        domain = DomainCalibration(statistics, scorer=Scorer(3.0, -1.0, Calibration(1.3, 0.2)))
        index.calibrate(AppliedCalibration(domain, StoredCalibration("c0ffee", "videos", 40, 0, False, {})))
    facts = ModelFacts("bench", "bench", dim, FrameGeometry(1), 1, Scorer(12.0, -7.0), 0.5)
    return StillVocabulary(facts, index, labeler=TextVectors(dim)), vectors


def classified(vocabulary: StillVocabulary, video: KeptFeatures, ids: list[str]) -> dict[str, ScoredLabel]:
    """As ``POST /classify`` answers for these features."""
    features = video.vectors.astype(np.float32)
    found = vocabulary.index.search(features, label_ids=ids)
    similarities = LabelSimilarities(
        LabelNames(found.labels), found.labels, found.similarity, found.adjusted,
        as_applied(found.calibration), found.revision,
    )  # fmt: skip
    timeline = Timeline.of([Segment(s.start_ms, s.end_ms) for s in video.segments], [])
    scored = rank(similarities, ClassifyOptions(top_k=0), vocabulary.facts, timeline)
    return {label.label.id: label for label in scored if label.label is not None}
