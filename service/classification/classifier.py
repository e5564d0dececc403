"""One video file to its ranked labels: decode, encode, search, score. Blocks; call it in a thread.

Each label's score comes from its own similarity alone, so it does not depend on which other labels are asked for.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vidlex.model.types import FrameBatch
from vidlex.service.classification.features import FeatureCache, FeatureKey, VideoFeatures
from vidlex.service.classification.matching import Candidates, Part, compare, rank
from vidlex.service.decode.pool import DecodeJob, DecodePool, too_many_frames
from vidlex.service.errors import Overloaded, VidlexError
from vidlex.service.metrics import Metrics
from vidlex.service.models.recent_videos import KeptVideos
from vidlex.service.models.served_model import ModelFacts, Vocabulary
from vidlex.service.schemas.classify import (
    ClassificationView,
    ClassifyParams,
    CoverageView,
    ModelView,
    UsageView,
    VideoView,
    WarningView,
)
from vidlex.service.tracing import past_stage, stage


@dataclass(frozen=True, eq=False)
class _Work:
    """One request and how long it may take."""

    path: Path
    sha256: str
    params: ClassifyParams
    facts: ModelFacts
    deadline: float
    cancelled: threading.Event


@dataclass(frozen=True, eq=False)
class _Stretch:
    """A part with its frames [T, H, W, 3]."""

    part: Part
    frames: NDArray[np.uint8]


@dataclass
class _Times:
    """Zero where nothing had to be done."""

    decode_seconds: float = 0.0
    queue_seconds: float = 0.0
    encode_seconds: float = 0.0


class VideoClassifier:
    """Thread-safe. ``close`` nothing: the parts belong to whoever made them."""

    def __init__(
        self,
        *,
        pool: DecodePool,
        metrics: Metrics,
        max_frames: int,
        store_answers: Callable[[], bool],
        features: FeatureCache,
        kept: KeptVideos,
        revision_wait_seconds: float = 2.0,
    ) -> None:
        self._pool = pool
        self._metrics = metrics
        self._max_frames = max_frames
        self._features = features
        self._store_answers = store_answers
        self._kept = kept
        self._revision_wait_seconds = revision_wait_seconds

    def classify(
        self,
        path: Path,
        params: ClassifyParams,
        vocabulary: Vocabulary,
        *,
        sha256: str,
        timeout_seconds: float,
        cancelled: threading.Event,
    ) -> ClassificationView:
        """The answer of POST /classify, from this vocabulary and its model alone.

        Raises what the decode pool, the engine and the labeler raise, and InvalidParameter for ids and categories
        that do not fit; RevisionNotReached; Overloaded when ``cancelled`` is set on the way.
        """
        facts = vocabulary.facts
        started = time.monotonic()
        work = _Work(path, sha256, params, facts, deadline=started + timeout_seconds, cancelled=cancelled)
        vocabulary.await_revision(params.min_revision, min(timeout_seconds, self._revision_wait_seconds))
        times = _Times()
        features, cached = self._features.get(
            _feature_key(work, vocabulary),
            lambda: self._encode(work, vocabulary, times),
            deadline=work.deadline,
            cancelled=cancelled,
        )
        self._metrics.feature_lookups.labels("hit" if cached else "miss").inc()

        started = time.monotonic()
        with stage("match", cached=cached):
            candidates = compare(features.vectors, params, vocabulary)
            if candidates.revision < (params.min_revision or 0):  # the store was set back meanwhile
                raise vocabulary.is_behind(candidates.revision)
            labels = rank(candidates, features.parts, params, facts)
        match_seconds = time.monotonic() - started
        self._metrics.observe("match", match_seconds)

        video = features.video
        return ClassificationView(
            video=VideoView(
                sha256=sha256,
                duration_ms=video.duration_ms,
                width=video.width,
                height=video.height,
                fps=video.fps,
                codec=video.codec,
                bytes=video.num_bytes,
            ),
            coverage=CoverageView(
                frames_requested=(params.num_frames or facts.num_frames)
                * (len(features.parts) if params.aggregate_by == "segments" else 1),
                frames_decoded=len(set(features.timestamps_ms)),
                timestamps_ms=list(features.timestamps_ms),
            ),
            labels=labels,
            model=ModelView(id=facts.id, fingerprint=facts.fingerprint),
            vocabulary_revision=candidates.revision,
            usage=UsageView(
                decode_ms=_ms(times.decode_seconds),
                encode_ms=_ms(times.encode_seconds),
                match_ms=_ms(match_seconds),
                queue_ms=_ms(times.queue_seconds),
                cached=cached,
            ),
            warnings=self._warnings(candidates, vocabulary),
        )

    # --- frames

    def _encode(self, work: _Work, vocabulary: Vocabulary, times: _Times) -> VideoFeatures:
        """Decode and encode; says in ``times`` what took how long."""
        with vocabulary.engine.expect() as coming:
            started = time.monotonic()
            with stage("decode"):
                batch, stretches = self._decode(work)
            times.decode_seconds = time.monotonic() - started
            self._metrics.observe("decode", times.decode_seconds)
            queued = time.monotonic()
            try:
                encoded = vocabulary.engine.encode_videos(
                    [stretch.frames for stretch in stretches],
                    timeout_seconds=work.deadline - time.monotonic(),
                    cancelled=work.cancelled,
                    coming=coming,
                )
            except VidlexError as error:
                where = "queue" if isinstance(error, Overloaded) else "encode"
                past_stage(where, queued, time.monotonic() - queued, error)
                raise
        times.queue_seconds = max(e.queue_seconds for e in encoded)
        times.encode_seconds = max(e.encode_seconds for e in encoded)
        if len(encoded) > 1:  # parts went through one after another: the time from the first to the last
            times.encode_seconds += times.queue_seconds - min(e.queue_seconds for e in encoded)
            times.queue_seconds = min(e.queue_seconds for e in encoded)
        self._metrics.observe("queue", times.queue_seconds)
        self._metrics.observe("encode", times.encode_seconds)
        past_stage("queue", queued, times.queue_seconds)
        num_frames = sum(len(stretch.frames) for stretch in stretches)
        past_stage("encode", queued + times.queue_seconds, times.encode_seconds, frames=num_frames)
        if work.params.aggregate_by == "video":
            self._kept.add(vocabulary.namespace, work.sha256, batch.frames)
        return VideoFeatures(
            video=batch.video,
            timestamps_ms=batch.timestamps_ms,
            parts=tuple(stretch.part for stretch in stretches),
            vectors=np.stack([e.vector for e in encoded]),
        )

    def _decode(self, work: _Work) -> tuple[FrameBatch, list[_Stretch]]:
        """The sampled frames, and how they fall into parts (at least one)."""
        params = work.params
        num_frames = params.num_frames or work.facts.num_frames
        if num_frames > self._max_frames:
            raise too_many_frames(self._max_frames)
        batch = self._frames(work, num_frames)
        if params.aggregate_by != "segments":
            if params.aggregate_by == "timestamps":
                # A short video repeats its last frame to fill up: once is enough here.
                places = {t: i for i, t in enumerate(batch.timestamps_ms)}
                return batch, [_Stretch(Part(t, t), batch.frames[i : i + 1]) for t, i in places.items()]
            return batch, [_Stretch(Part(params.start_ms or 0, batch.video.duration_ms), batch.frames)]
        duration_ms = batch.video.duration_ms
        end_ms = min(params.end_ms or duration_ms, duration_ms)
        times = np.asarray(batch.timestamps_ms)
        stretches = []
        for segment_start in range(params.start_ms or 0, end_ms, params.segment_ms):
            segment_end = min(segment_start + params.segment_ms, end_ms)
            first_inside, first_after = np.searchsorted(times, [segment_start, segment_end])
            if first_inside == first_after:  # slow video: the picture that was on screen since before
                first_inside = max(0, first_inside - 1)
                first_after = first_inside + 1
            stretches.append(_Stretch(Part(segment_start, segment_end), batch.frames[first_inside:first_after]))
        return batch, stretches

    def _frames(self, work: _Work, num_frames: int) -> FrameBatch:
        if work.cancelled.is_set():
            raise Overloaded("The request was given up")
        job = DecodeJob(
            geometry=work.facts.geometry,
            num_frames=num_frames,
            policy=work.params.frame_policy,
            start_ms=work.params.start_ms,
            end_ms=work.params.end_ms,
            segment_ms=work.params.segment_ms if work.params.aggregate_by == "segments" else None,
        )
        return self._pool.decode(work.path, job, wait_seconds=max(0.0, work.deadline - time.monotonic()))

    # --- labels

    def _warnings(self, found: Candidates, vocabulary: Vocabulary) -> list[WarningView]:
        warnings = []
        if found.approximate:
            detail = "Searched approximately, as VIDLEX_INDEX says: a label may be missing; top_k=0 searches exactly"
            warnings.append(WarningView(code="approximate_search", detail=detail))
        if found.labels is not None:
            if len(vocabulary.index) == 0:
                detail = "No label is registered yet; POST /labels adds some"
                warnings.append(WarningView(code="vocabulary_empty", detail=detail))
            elif found.similarity.shape[1] == 0:
                detail = "No label passes the filters of this request"
                warnings.append(WarningView(code="no_label_selected", detail=detail))
            if not (vocabulary.sync.healthy and self._store_answers()):
                detail = "The label store does not answer; labels are those of the stated vocabulary_revision"
                warnings.append(WarningView(code="store_unavailable", detail=detail))
            if vocabulary.sync.num_missing:
                detail = f"{vocabulary.sync.num_missing} labels are not encoded by this model (yet) and were left out"
                warnings.append(WarningView(code="labels_not_encoded", detail=detail))
        return warnings


def _feature_key(work: _Work, vocabulary: Vocabulary) -> FeatureKey:
    params = work.params
    return FeatureKey(
        namespace=vocabulary.namespace,
        fingerprint=work.facts.fingerprint,
        sha256=work.sha256,
        num_frames=params.num_frames or work.facts.num_frames,
        aggregate_by=params.aggregate_by,
        segment_ms=params.segment_ms if params.aggregate_by == "segments" else None,
        start_ms=params.start_ms,
        end_ms=params.end_ms,
        frame_policy=params.frame_policy,
    )


def _ms(seconds: float) -> int:
    return max(0, round(seconds * 1000))
