"""What tagging says about a video: the same from the engine in this process, a service and a cluster."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace


@dataclass(frozen=True, slots=True)
class Stretch:
    """A part of the video in which a label applies. Times in milliseconds from the first frame."""

    start_ms: int
    end_ms: int
    peak_ms: int
    score: float


@dataclass(frozen=True, slots=True)
class TaggedLabel:
    id: str | None  # None for a label that is not stored
    name: str
    score: float  # probability, 0 to 1
    threshold: float
    matched: bool
    stretches: Sequence[Stretch] = ()


@dataclass(frozen=True, slots=True)
class TaggedSegment:
    start_ms: int
    end_ms: int
    labels: Sequence[TaggedLabel]
    features: Sequence[float] | None = None  # [D], unit length; with TagOptions.features


@dataclass(frozen=True, slots=True)
class VideoFacts:
    duration_ms: int
    start_ms: int
    width: int
    height: int
    fps: float
    codec: str


@dataclass(frozen=True, slots=True)
class Receipt:
    """All that the scores depend on, next to the file's sha256 and the options."""

    decoder: str
    encoder: str
    model_id: str
    fingerprint: str
    calibration: str | None
    vocabulary: str  # see `VocabularyIdentity.digest`
    vocabulary_revision: int | None  # None for a vocabulary that is not stored
    frame_policy: str
    frames_decoded: int
    frames_failed: int


@dataclass(frozen=True, slots=True)
class TagFailure:
    """Why a video has no labels. ``code`` is stable: one of the service's error codes, or ``file_not_readable``."""

    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class TagResult:
    """Of one video. Either ``failure`` is set, or ``video`` and ``receipt`` are."""

    uri: str
    result_id: str | None = None  # see ``result_id_of``; None if the file could not be read
    client_id: str | None = None
    sha256: str | None = None
    num_bytes: int | None = None
    video: VideoFacts | None = None
    labels: Sequence[TaggedLabel] = ()  # highest score first
    segments: Sequence[TaggedSegment] = ()  # with TagOptions.segments or features
    receipt: Receipt | None = None
    warnings: Sequence[tuple[str, str]] = ()  # (code, detail)
    timings_ms: Mapping[str, float] = field(default_factory=dict)  # fetch, decode, queue, encode, match
    failure: TagFailure | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def matched(self) -> Sequence[TaggedLabel]:
        return [label for label in self.labels if label.matched]


def segment_labels(labels: Sequence[TaggedLabel], scores: Sequence[float]) -> list[TaggedLabel]:
    """The labels of a video with their ``scores`` in one segment, highest first."""
    scored = [
        replace(label, score=score, matched=score >= label.threshold, stretches=())
        for label, score in zip(labels, scores, strict=True)
    ]
    return sorted(scored, key=lambda label: (-label.score, label.name))


def result_id_of(sha256: str, fingerprint: str, vocabulary: str, options: str) -> str:
    """Equal for equal content, encoder, vocabulary and options: 64 hexadecimal digits.

    ``vocabulary`` is the digest of labels, thresholds and calibration, ``options`` is ``TagOptions.digest_text``.
    """
    return hashlib.sha256("\n".join((sha256, fingerprint, vocabulary, options)).encode()).hexdigest()
