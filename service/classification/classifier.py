"""Classifies a video file: decode, encode, compare, rank. Blocking: call it in a thread.

A label's score depends only on its own similarity, not on which other labels are requested.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vidlex.model.types import FrameGeometry, VideoInfo
from vidlex.service.classification.extraction import (
    EncodedPart,
    FeatureExtractor,
    SamplingPlan,
    StageTimes,
    VideoRequest,
)
from vidlex.service.classification.features import FeatureCache, FeatureKey, VideoFeatures
from vidlex.service.classification.matching import ClassifyOptions, ScoredLabel, Similarities, match
from vidlex.service.classification.stretches import Timeline
from vidlex.service.decode.pool import DecodeJob, DecodePool
from vidlex.service.errors import InvalidParameter, VideoError
from vidlex.service.models.applied_calibration import fingerprint_of
from vidlex.service.models.recent_statistics import RecentStatistics
from vidlex.service.models.recent_videos import RecentVideos
from vidlex.service.models.served_model import ModelFacts, Vocabulary
from vidlex.service.sharing.requester import Requester
from vidlex.service.telemetry.metrics import Metrics
from vidlex.service.telemetry.tracing import stage

_HALF_WINDOW_MS = 20  # around the time of a picture


@dataclass(frozen=True, eq=False)
class Classification:
    sha256: str
    features: VideoFeatures
    labels: Sequence[ScoredLabel]  # best first
    facts: ModelFacts
    calibration: str | None  # fingerprint
    revision: int  # of the vocabulary
    times: StageTimes
    cached: bool  # neither decoded nor encoded for this request
    warnings: Sequence[tuple[str, str]]  # (code, detail)


@dataclass(frozen=True, eq=False)
class PartialClassification:
    """Of the part of a video that is encoded until now."""

    num_frames: int
    until_ms: int
    end_ms: int  # of the video or the window
    rank: Callable[[int], Sequence[ScoredLabel]]  # of this number, best first; compares when called, raises as `match`


OnPart = Callable[[PartialClassification], None]


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
        self._extractor = FeatureExtractor(
            pool=pool,
            metrics=metrics,
            max_frames=max_frames,
            recent_videos=recent_videos,
            recent_statistics=recent_statistics,
        )
        self._pool = pool
        self._metrics = metrics
        self._is_store_available = is_store_available
        self._features = features
        self._revision_wait_seconds = revision_wait_seconds

    def frames_at(
        self, path: Path, times_ms: Sequence[int], pixels: int, *, requester: Requester
    ) -> list[NDArray[np.uint8] | None]:
        """RGB pictures [H, W, 3] whose long side has ``pixels``; None where the video cannot be decoded.

        Raises Overloaded.
        """
        pictures: list[NDArray[np.uint8] | None] = []
        for time_ms in times_ms:
            start_ms, end_ms = max(0, time_ms - _HALF_WINDOW_MS), time_ms + _HALF_WINDOW_MS
            job = DecodeJob(FrameGeometry(pixels, "longest"), num_frames=1, start_ms=start_ms, end_ms=end_ms)
            try:
                with self._pool.decode_chunks(path, job, requester=requester) as stream:
                    chunk = next(iter(stream))
                    pictures.append(_without_bars(chunk.frames[0], chunk.video))
            except (VideoError, InvalidParameter):
                pictures.append(None)
        return pictures

    def classify(
        self,
        path: Path,
        options: ClassifyOptions,
        vocabulary: Vocabulary,
        *,
        sha256: str,
        requester: Requester,
        on_part: OnPart | None = None,
    ) -> Classification:
        """Raises what the decode pool, the engine and the labeler raise, InvalidParameter for unknown label ids or a
        response that would be too long, RevisionNotReached, and Overloaded once the requester has given up.
        ``on_part`` is called now and then while a long video is encoded, in this thread; not for cached features.
        """
        facts = vocabulary.facts

        def report(part: EncodedPart) -> None:
            if on_part is not None:
                on_part(_partial(part, options, vocabulary, requester))

        request = VideoRequest(
            path,
            sha256,
            options,
            vocabulary,
            SamplingPlan.of(options, facts),
            requester,
            None if on_part is None else report,
        )
        wait_seconds = min(requester.deadline - time.monotonic(), self._revision_wait_seconds)
        vocabulary.await_revision(options.min_revision, wait_seconds)
        times = StageTimes()
        features, cached = self._features.get(
            _feature_key(request),
            lambda: self._extractor.extract(request, times),
            deadline=requester.deadline,
            cancelled=requester.cancelled,
        )
        self._metrics.feature_lookups.labels("hit" if cached else "miss").inc()

        started = time.monotonic()
        with stage("match", cached=cached):
            timeline = Timeline.of(features.segments, features.timestamps_ms)
            similarities, labels = match(features.vectors, options, vocabulary, timeline, requester)
            if similarities.revision < (options.min_revision or 0):  # the store was restored in the meantime
                raise vocabulary.revision_not_reached(similarities.revision)
        times.match_seconds = time.monotonic() - started
        self._metrics.observe("match", times.match_seconds)

        return Classification(
            sha256,
            features,
            labels=labels,
            facts=facts,
            calibration=fingerprint_of(similarities.calibration),
            revision=similarities.revision,
            times=times,
            cached=cached,
            warnings=[*features.warnings, *self._warnings(similarities, vocabulary)],
        )

    def _warnings(self, similarities: Similarities, vocabulary: Vocabulary) -> list[tuple[str, str]]:
        warnings = []
        if similarities.approximate:
            detail = "Searched approximately, as VIDLEX_INDEX says: a label may be missing; top_k=0 searches exactly"
            warnings.append(("approximate_search", detail))
        if similarities.labels is not None:
            if len(vocabulary.index) == 0:
                detail = "No label is registered yet; POST /labels adds some"
                warnings.append(("vocabulary_empty", detail))
            elif not similarities.names:
                detail = "No label passes the filters of this request"
                warnings.append(("no_label_selected", detail))
            if not (vocabulary.sync.is_healthy and self._is_store_available()):
                detail = "The label store does not answer; labels are those of the stated vocabulary_revision"
                warnings.append(("store_unavailable", detail))
            if vocabulary.sync.num_missing:
                detail = f"{vocabulary.sync.num_missing} labels are not encoded by this model (yet) and were left out"
                warnings.append(("labels_not_encoded", detail))
        return warnings


def _partial(
    part: EncodedPart, options: ClassifyOptions, vocabulary: Vocabulary, requester: Requester
) -> PartialClassification:
    def rank(top_k: int) -> Sequence[ScoredLabel]:
        segments, vectors = part.features()
        timeline = Timeline.of(segments, part.times_ms)
        return match(vectors, replace(options, top_k=top_k), vocabulary, timeline, requester)[1]

    return PartialClassification(part.num_frames, part.until_ms, part.end_ms, rank)


def _without_bars(square: NDArray[np.uint8], video: VideoInfo) -> NDArray[np.uint8]:
    """A copy without the black bars that make a picture square."""
    size, long_side = len(square), max(video.width, video.height)
    height, width = (max(1, round(side * size / long_side)) for side in (video.height, video.width))
    top, left = (size - height) // 2, (size - width) // 2
    return square[top : top + height, left : left + width].copy()


def _feature_key(request: VideoRequest) -> FeatureKey:
    options, plan = request.options, request.plan
    return FeatureKey(
        namespace=request.vocabulary.namespace,
        fingerprint=request.vocabulary.facts.fingerprint,
        sha256=request.sha256,
        num_frames=plan.num_frames,
        aggregate_by=options.aggregate_by,
        segment_ms=plan.segment_ms,
        start_ms=options.start_ms,
        end_ms=options.end_ms,
        frame_policy=plan.policy,
    )
