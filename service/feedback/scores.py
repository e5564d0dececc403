"""Scores of judged videos: from their kept features, as POST /classify computes them, else those that clients saw."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from vidlex.service.classification.matching import ClassifyOptions, combine, compare
from vidlex.service.errors import InvalidParameter, KeptVideoDamaged, NotFound
from vidlex.service.feedback.records import Judgement
from vidlex.service.labels.store.records import Label
from vidlex.service.models.applied_calibration import as_applied, fingerprint_of, scorer_of
from vidlex.service.models.served_model import Vocabulary
from vidlex.service.videos.records import KeptFeatures, KeptSegment, KeptVideo


class KeptVideos(Protocol):
    """What is used of ``KeptVideoStore``."""

    def get_many(self, namespace: str, video_ids: Sequence[str]) -> list[KeptVideo]: ...

    def features(self, namespace: str, video_id: str, fingerprint: str) -> KeptFeatures | None: ...


@dataclass(frozen=True)
class Scale:
    """Scores of one are comparable: those of one model, calibration and text of the label."""

    fingerprint: str
    calibration: str | None
    label_name: str

    @classmethod
    def of(cls, vocabulary: Vocabulary, label: Label) -> Scale:
        calibration = fingerprint_of(as_applied(vocabulary.index.calibration))
        return cls(vocabulary.facts.fingerprint, calibration, label.name)

    def is_of(self, judgement: Judgement) -> bool:
        return judgement.score is not None and self == Scale(
            judgement.fingerprint or "", judgement.calibration, judgement.label_name
        )


@dataclass(frozen=True)
class KeptScore:
    score: float
    calibration: str | None


def kept_scores(videos: KeptVideos, vocabulary: Vocabulary, judgements: Sequence[Judgement]) -> dict[str, KeptScore]:
    """By judgement id; without those whose video is not kept (any more), or has no features of the served model that
    can be read, and without labels that have no vector of it. Reads the features of one video at a time.

    Raises StoreUnavailable.
    """
    by_video: dict[str, list[Judgement]] = defaultdict(list)
    for judgement in judgements:
        if judgement.video_id is not None:
            by_video[judgement.video_id].append(judgement)
    found: dict[str, KeptScore] = {}
    for video_id, of_video in by_video.items():
        try:
            features = videos.features(vocabulary.namespace, video_id, vocabulary.facts.fingerprint)
        except (NotFound, KeptVideoDamaged):
            continue
        if features is not None and len(features.vectors):
            found |= _scores_of_video(features, vocabulary, of_video)
    return found


def _scores_of_video(
    features: KeptFeatures, vocabulary: Vocabulary, judgements: Sequence[Judgement]
) -> dict[str, KeptScore]:
    label_ids = list(dict.fromkeys(judgement.label_id for judgement in judgements))
    label_ids = [label_id for label_id in label_ids if vocabulary.index.vector(label_id) is not None]
    if not label_ids:
        return {}
    try:
        vectors = np.ascontiguousarray(features.vectors, np.float32)
        similarities = compare(vectors, ClassifyOptions(label_ids=label_ids, top_k=0), vocabulary)
    except InvalidParameter:  # a label was removed in the meantime
        return {}
    assert similarities.labels is not None
    # By name too: the vector may still be that of a name before a change.
    labels = [(label.id, label.name) for label in similarities.labels]
    row_of = {label: row for row, label in enumerate(labels)}
    _, adjusted = similarities.at(range(len(row_of)))
    scores = scorer_of(vocabulary.facts.scorer, similarities.calibration).probability(adjusted)  # [S, labels]
    calibration = fingerprint_of(similarities.calibration)
    found = {}
    for judgement in judgements:
        column = row_of.get((judgement.label_id, judgement.label_name))
        rows = segments_of(judgement, features.segments)
        if column is not None and rows:
            found[judgement.id] = KeptScore(float(combine(scores[rows])[column]), calibration)
    return found


def segments_of(judgement: Judgement, segments: Sequence[KeptSegment]) -> list[int]:
    """The kept segments that a judgement is about: all, or those that share at least half of the shorter of the two
    with the judged one."""
    if judgement.start_ms is None or judgement.end_ms is None:
        return list(range(len(segments)))
    found = []
    for row, segment in enumerate(segments):
        shared = min(segment.end_ms, judgement.end_ms) - max(segment.start_ms, judgement.start_ms)
        shorter = min(segment.end_ms - segment.start_ms, judgement.end_ms - judgement.start_ms)
        if shared >= 0 and 2 * shared >= shorter:
            found.append(row)
    return found
