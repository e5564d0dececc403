"""Classifies a video file: decode, encode, compare, rank. Blocking: call it in a thread.

A label's score depends only on its own similarity, not on which other labels are requested.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vidlex.model.types import FrameBatch
from vidlex.service.classification.features import FeatureCache, FeatureKey, VideoFeatures
from vidlex.service.classification.matching import (
    ClassifyOptions,
    LabelSimilarities,
    ScoredLabel,
    Segment,
    compare,
    rank,
)
from vidlex.service.decode.pool import DecodeJob, DecodePool, too_many_frames
from vidlex.service.errors import Overloaded, VidlexError
from vidlex.service.metrics import Metrics
from vidlex.service.models.applied_calibration import fingerprint_of
from vidlex.service.models.recent_statistics import RecentStatistics
from vidlex.service.models.recent_videos import RecentVideos
from vidlex.service.models.served_model import ModelFacts, Vocabulary
from vidlex.service.tracing import record_stage, stage


@dataclass
class StageTimes:
    """Zero for a stage that was skipped."""

    decode_seconds: float = 0.0
    queue_seconds: float = 0.0
    encode_seconds: float = 0.0
    match_seconds: float = 0.0


@dataclass(frozen=True, eq=False)
class Classification:
    sha256: str
    features: VideoFeatures
    num_requested_frames: int
    labels: Sequence[ScoredLabel]  # best first
    facts: ModelFacts
    calibration: str | None  # fingerprint
    revision: int  # of the vocabulary
    times: StageTimes
    cached: bool  # neither decoded nor encoded for this request
    warnings: Sequence[tuple[str, str]]  # (code, detail)


@dataclass(frozen=True, eq=False)
class _Request:
    path: Path
    sha256: str
    options: ClassifyOptions
    vocabulary: Vocabulary
    num_frames: int
    deadline: float  # of time.monotonic
    cancelled: threading.Event


@dataclass(frozen=True, eq=False)
class _SegmentFrames:
    segment: Segment
    frames: NDArray[np.uint8]  # [T, H, W, 3]


class VideoClassifier:
    """Thread-safe."""

    def __init__(
        self,
        *,
        pool: DecodePool,
        metrics: Metrics,
        max_frames: int,
        is_store_available: Callable[[], bool],
        features: FeatureCache,
        recent_videos: RecentVideos,
        recent_statistics: RecentStatistics,
        revision_wait_seconds: float = 2.0,
    ) -> None:
        self._pool = pool
        self._metrics = metrics
        self._max_frames = max_frames
        self._is_store_available = is_store_available
        self._features = features
        self._recent_videos = recent_videos
        self._recent_statistics = recent_statistics
        self._revision_wait_seconds = revision_wait_seconds

    def classify(
        self,
        path: Path,
        options: ClassifyOptions,
        vocabulary: Vocabulary,
        *,
        sha256: str,
        timeout_seconds: float,
        cancelled: threading.Event,
    ) -> Classification:
        """Raises what the decode pool, the engine and the labeler raise, InvalidParameter for unknown label ids or a
        response that would be too long, RevisionNotReached, and Overloaded if ``cancelled`` is set.
        """
        facts = vocabulary.facts
        request = _Request(
            path,
            sha256,
            options,
            vocabulary,
            num_frames=options.num_frames or facts.num_frames,
            deadline=time.monotonic() + timeout_seconds,
            cancelled=cancelled,
        )
        vocabulary.await_revision(options.min_revision, min(timeout_seconds, self._revision_wait_seconds))
        times = StageTimes()
        features, cached = self._features.get(
            _feature_key(request),
            lambda: self._compute_features(request, times),
            deadline=request.deadline,
            cancelled=cancelled,
        )
        self._metrics.feature_lookups.labels("hit" if cached else "miss").inc()

        started = time.monotonic()
        with stage("match", cached=cached):
            similarities = compare(features.vectors, options, vocabulary)
            if similarities.revision < (options.min_revision or 0):  # the store was restored in the meantime
                raise vocabulary.revision_not_reached(similarities.revision)
            labels = rank(similarities, options, facts)
        times.match_seconds = time.monotonic() - started
        self._metrics.observe("match", times.match_seconds)

        return Classification(
            sha256,
            features,
            num_requested_frames=request.num_frames
            * (len(features.segments) if options.aggregate_by == "segments" else 1),
            labels=labels,
            facts=facts,
            calibration=fingerprint_of(similarities.calibration),
            revision=similarities.revision,
            times=times,
            cached=cached,
            warnings=self._warnings(similarities, vocabulary),
        )

    def _compute_features(self, request: _Request, times: StageTimes) -> VideoFeatures:
        started = time.monotonic()
        with stage("decode"):
            batch = self._decode(request)
            segments = _segment_frames(batch, request.options)
        times.decode_seconds = time.monotonic() - started
        self._metrics.observe("decode", times.decode_seconds)
        queued = time.monotonic()
        try:
            encoded = request.vocabulary.engine.encode_videos(
                [segment.frames for segment in segments],
                timeout_seconds=request.deadline - time.monotonic(),
                cancelled=request.cancelled,
            )
        except VidlexError as error:
            failed_stage = "queue" if isinstance(error, Overloaded) else "encode"
            record_stage(failed_stage, queued, time.monotonic() - queued, error)
            raise
        times.queue_seconds = min(e.queue_seconds for e in encoded)
        # Segments may be in several batches: from the start of the first one to the end of the last one.
        spread_seconds = max(e.queue_seconds for e in encoded) - times.queue_seconds
        times.encode_seconds = max(e.encode_seconds for e in encoded) + spread_seconds
        self._metrics.observe("queue", times.queue_seconds)
        self._metrics.observe("encode", times.encode_seconds)
        record_stage("queue", queued, times.queue_seconds)
        num_frames = sum(len(segment.frames) for segment in segments)
        record_stage("encode", queued + times.queue_seconds, times.encode_seconds, frames=num_frames)
        if request.options.aggregate_by == "video":
            vocabulary = request.vocabulary
            self._recent_videos.add(vocabulary.namespace, request.sha256, batch.frames)
            self._recent_statistics.add(vocabulary.namespace, vocabulary.facts.fingerprint, encoded[0].vector)
        return VideoFeatures(
            video=batch.video,
            timestamps_ms=batch.timestamps_ms,
            segments=tuple(segment.segment for segment in segments),
            vectors=np.stack([e.vector for e in encoded]),
        )

    def _decode(self, request: _Request) -> FrameBatch:
        options = request.options
        if request.num_frames > self._max_frames:
            raise too_many_frames(self._max_frames)
        if request.cancelled.is_set():
            raise Overloaded("The request was cancelled")
        job = DecodeJob(
            geometry=request.vocabulary.facts.geometry,
            num_frames=request.num_frames,
            policy=options.frame_policy,
            start_ms=options.start_ms,
            end_ms=options.end_ms,
            segment_ms=options.segment_ms if options.aggregate_by == "segments" else None,
        )
        return self._pool.decode(request.path, job, wait_seconds=max(0.0, request.deadline - time.monotonic()))

    def _warnings(self, similarities: LabelSimilarities, vocabulary: Vocabulary) -> list[tuple[str, str]]:
        warnings = []
        if similarities.approximate:
            detail = "Searched approximately, as VIDLEX_INDEX says: a label may be missing; top_k=0 searches exactly"
            warnings.append(("approximate_search", detail))
        if similarities.labels is not None:
            if len(vocabulary.index) == 0:
                detail = "No label is registered yet; POST /labels adds some"
                warnings.append(("vocabulary_empty", detail))
            elif similarities.similarity.shape[1] == 0:
                detail = "No label passes the filters of this request"
                warnings.append(("no_label_selected", detail))
            if not (vocabulary.sync.is_healthy and self._is_store_available()):
                detail = "The label store does not answer; labels are those of the stated vocabulary_revision"
                warnings.append(("store_unavailable", detail))
            if vocabulary.sync.num_missing:
                detail = f"{vocabulary.sync.num_missing} labels are not encoded by this model (yet) and were left out"
                warnings.append(("labels_not_encoded", detail))
        return warnings


def _segment_frames(batch: FrameBatch, options: ClassifyOptions) -> list[_SegmentFrames]:
    duration_ms = batch.video.duration_ms
    if options.aggregate_by == "video":
        return [_SegmentFrames(Segment(options.start_ms or 0, duration_ms), batch.frames)]
    if options.aggregate_by == "timestamps":
        # A short video is padded with its last frame, which must not be scored twice.
        rows = {timestamp_ms: row for row, timestamp_ms in enumerate(batch.timestamps_ms)}
        return [_SegmentFrames(Segment(t, t), batch.frames[row : row + 1]) for t, row in rows.items()]
    end_ms = min(options.end_ms or duration_ms, duration_ms)
    timestamps = np.asarray(batch.timestamps_ms)
    segments = []
    for segment_start in range(options.start_ms or 0, end_ms, options.segment_ms):
        segment_end = min(segment_start + options.segment_ms, end_ms)
        first, stop = np.searchsorted(timestamps, [segment_start, segment_end])
        if first == stop:  # no frame starts in the segment: the one on screen since before
            first = max(0, first - 1)
            stop = first + 1
        segments.append(_SegmentFrames(Segment(segment_start, segment_end), batch.frames[first:stop]))
    return segments


def _feature_key(request: _Request) -> FeatureKey:
    options = request.options
    return FeatureKey(
        namespace=request.vocabulary.namespace,
        fingerprint=request.vocabulary.facts.fingerprint,
        sha256=request.sha256,
        num_frames=request.num_frames,
        aggregate_by=options.aggregate_by,
        segment_ms=options.segment_ms if options.aggregate_by == "segments" else None,
        start_ms=options.start_ms,
        end_ms=options.end_ms,
        frame_policy=options.frame_policy,
    )
