"""From a video file to a vector per segment: decoding and encoding at the same time, chunk by chunk.

While complete segments are encoded, the decode process works on the next chunk. In memory are two chunks, the open
segment, and the vectors and times of the segments before: a long video takes no more than a short one. Only a single
segment over the whole video (``uniform`` and ``keyframes``) holds all its frames, at most ``max_frames``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vidlex.model.types import SHORT_MS, FrameBatch, FramePolicy, VideoInfo
from vidlex.service.classification.features import VideoFeatures
from vidlex.service.classification.matching import ClassifyOptions
from vidlex.service.classification.segments import (
    Cells,
    EachTime,
    Grouping,
    OneSegment,
    Segment,
    SegmentLooks,
    Shots,
    looks_of,
)
from vidlex.service.decode.pool import DecodeJob, DecodePool
from vidlex.service.decode.replies import too_many_frames
from vidlex.service.errors import Overloaded, VidlexError
from vidlex.service.models.recent_statistics import RecentStatistics
from vidlex.service.models.recent_videos import RecentVideos
from vidlex.service.models.scoring_vocabulary import ScoringVocabulary
from vidlex.service.models.served_model import ModelFacts
from vidlex.service.sharing.requester import Requester
from vidlex.service.telemetry.metrics import Metrics
from vidlex.service.telemetry.tracing import record_stage

_GROUP_FRAMES = 64  # encoded per call: more would make other requests wait, and hold more memory
_NUM_KEPT_FRAMES = 16  # of a video with several segments, to compare models on


@dataclass
class StageTimes:
    """Zero for a stage that was skipped. Decoding is the time that was spent waiting for frames."""

    decode_seconds: float = 0.0
    queue_seconds: float = 0.0
    encode_seconds: float = 0.0
    match_seconds: float = 0.0


@dataclass(frozen=True)
class SamplingPlan:
    """What the options and the model's default say together."""

    policy: FramePolicy
    num_frames: int  # of a segment
    segment_ms: int | None  # of segments of equal length, else None

    @classmethod
    def of(cls, options: ClassifyOptions, facts: ModelFacts) -> SamplingPlan:
        is_default = options.aggregate_by == "video" and options.num_frames is None
        policy = options.frame_policy or ("shots" if is_default else "uniform")
        has_cells = options.aggregate_by == "segments" and policy != "shots"
        return cls(policy, options.num_frames or facts.num_frames, options.segment_ms if has_cells else None)


@dataclass(frozen=True, eq=False)
class EncodedPart:
    """What is encoded of a video so far, at least one segment."""

    num_frames: int
    times_ms: Sequence[int]  # of the frames that were sampled until now
    until_ms: int  # where the last segment ends
    end_ms: int  # where the video or the window ends
    # The S segments that decide, and their vectors [S, D]; copies all of them, so that only who needs them pays.
    features: Callable[[], tuple[tuple[Segment, ...], NDArray[np.float32]]]


@dataclass(frozen=True, eq=False)
class VideoRequest:
    path: Path
    sha256: str
    options: ClassifyOptions
    vocabulary: ScoringVocabulary
    plan: SamplingPlan
    requester: Requester
    on_part: Callable[[EncodedPart], None] | None = None  # called after each chunk whose segments are encoded


class FeatureExtractor:
    """Thread-safe."""

    def __init__(
        self,
        *,
        pool: DecodePool,
        metrics: Metrics,
        max_frames: int,
        recent_videos: RecentVideos,
        recent_statistics: RecentStatistics,
    ) -> None:
        self._pool = pool
        self._metrics = metrics
        self._max_frames = max_frames
        self._recent_videos = recent_videos
        self._recent_statistics = recent_statistics

    def extract(self, request: VideoRequest, times: StageTimes) -> VideoFeatures:
        """Adds to ``times``. Raises what the decode pool and the engine raise, and InvalidParameter."""
        if request.plan.num_frames > self._max_frames:
            raise too_many_frames(self._max_frames)
        request.requester.check()
        run = _Run(request, times)
        try:
            run.encode(self._chunks(request, times))
        except VidlexError as error:
            run.record(self._metrics, error)
            raise
        run.record(self._metrics)
        features = run.features(self._pool.decoder)
        if request.options.aggregate_by == "video":
            vocabulary = request.vocabulary
            self._recent_videos.add(vocabulary.namespace, request.sha256, run.kept_frames())
            self._recent_statistics.add(vocabulary.namespace, vocabulary.facts.fingerprint, _mean(features.vectors))
        return features

    def _chunks(self, request: VideoRequest, times: StageTimes) -> Generator[FrameBatch]:
        options, plan = request.options, request.plan
        job = DecodeJob(
            geometry=request.vocabulary.facts.geometry,
            num_frames=plan.num_frames,
            policy=plan.policy,
            start_ms=options.start_ms,
            end_ms=options.end_ms,
            segment_ms=plan.segment_ms,
        )
        resumed, is_waiting = time.monotonic(), True
        try:
            with self._pool.decode_chunks(
                request.path,
                job,
                requester=request.requester,
            ) as stream:
                for chunk in stream:
                    times.decode_seconds += time.monotonic() - resumed
                    is_waiting = False
                    yield chunk
                    resumed, is_waiting = time.monotonic(), True
        finally:
            if is_waiting:
                times.decode_seconds += time.monotonic() - resumed


class _Run:
    """One request's way from chunks to features."""

    def __init__(self, request: VideoRequest, times: StageTimes) -> None:
        self._request = request
        self._times = times
        self._grouping = _grouping(request.options, request.plan)
        self._started = time.monotonic()
        self._queued: float | None = None  # when the first segment was
        self._is_encoding = False
        self._num_encoded = 0  # frames
        self._segments: list[Segment] = []
        self._is_blank: list[bool] = []
        self._vectors: list[NDArray[np.float32]] = []
        self._kept: list[NDArray[np.uint8]] = []
        self._has_picture = False  # a segment that is not blank
        self._video: VideoInfo | None = None
        self._times_ms: list[int] = []
        self._warnings: dict[str, str] = {}
        self._num_failed = 0
        self._num_blank = 0

    def encode(self, chunks: Generator[FrameBatch]) -> None:
        with closing(chunks):
            for chunk in chunks:
                self._video = chunk.video
                self._times_ms += chunk.timestamps_ms
                self._warnings |= chunk.warnings  # a later one knows more
                self._num_failed += chunk.num_failed
                done = []
                for look in looks_of(chunk):
                    self._num_blank += look.is_blank
                    done += self._grouping.add(look, self._end_ms)
                self._encode_segments(done)
                if done and self._request.on_part is not None:
                    self._request.on_part(self._part())
                self._grouping.hold()
        self._encode_segments(self._grouping.finish(self._end_ms))

    def _part(self) -> EncodedPart:
        return EncodedPart(
            num_frames=self._num_encoded,
            times_ms=self._times_ms,
            until_ms=self._segments[-1].end_ms,
            end_ms=self._end_ms,
            features=self._deciding,
        )

    def _deciding(self) -> tuple[tuple[Segment, ...], NDArray[np.float32]]:
        chosen = self._chosen()
        return tuple(self._segments[i] for i in chosen), np.stack([self._vectors[i] for i in chosen])

    def _chosen(self) -> Sequence[int]:
        """Blank segments do not decide, unless there is nothing else."""
        return [i for i, is_blank in enumerate(self._is_blank) if not is_blank] or range(len(self._segments))

    @property
    def _end_ms(self) -> int:
        assert self._video is not None
        end_ms, duration_ms = self._request.options.end_ms, self._video.duration_ms
        return duration_ms if end_ms is None else min(end_ms, duration_ms)

    @property
    def _is_long(self) -> bool:
        """Whether the video is sampled by its shots: then most frames of a still picture are left out."""
        window_ms = self._end_ms - (self._request.options.start_ms or 0)
        return self._request.plan.policy == "shots" and window_ms > SHORT_MS

    def _encode_segments(self, segments: Sequence[SegmentLooks]) -> None:
        group: list[NDArray[np.uint8]] = []
        for segment in segments:
            frames = segment.frames(drop_repeated=self._is_long)
            if group and sum(map(len, group)) + len(frames) > _GROUP_FRAMES:
                self._encode_group(group)
                group = []
            group.append(frames)
            self._segments.append(segment.segment)
            self._is_blank.append(segment.is_blank)
            self._keep(frames, segment.is_blank)
        if group:
            self._encode_group(group)

    def _keep(self, frames: NDArray[np.uint8], is_blank: bool) -> None:
        if not is_blank and not self._has_picture:
            self._kept = []  # blank ones, in case there are no others
            self._has_picture = True
        if is_blank != self._has_picture and sum(map(len, self._kept)) < _NUM_KEPT_FRAMES:
            self._kept.append(frames)

    def _encode_group(self, videos: Sequence[NDArray[np.uint8]]) -> None:
        queued, request, times = time.monotonic(), self._request, self._times
        is_first = self._queued is None
        self._queued = queued if self._queued is None else self._queued
        self._is_encoding = True
        encoded = request.vocabulary.engine.encode_videos(
            videos,
            requester=request.requester,
            timeout_seconds=request.requester.deadline - queued,
            wait_for_room=not is_first,
        )
        self._is_encoding = False
        queue_seconds = min(e.queue_seconds for e in encoded)
        # Segments may be in several batches: from the start of the first one to the end of the last one.
        spread_seconds = max(e.queue_seconds for e in encoded) - queue_seconds
        times.queue_seconds += queue_seconds
        times.encode_seconds += max(e.encode_seconds for e in encoded) + spread_seconds
        self._vectors += [e.vector for e in encoded]
        self._num_encoded += sum(map(len, videos))

    def record(self, metrics: Metrics, error: VidlexError | None = None) -> None:
        """Spans and metrics of the stages, of which ``error`` ended the last."""
        times = self._times
        is_decode_error = error is not None and not self._is_encoding
        record_stage("decode", self._started, times.decode_seconds, error if is_decode_error else None)
        if is_decode_error:
            return
        metrics.observe("decode", times.decode_seconds)
        queued = self._started if self._queued is None else self._queued
        if error is not None:
            stage = "queue" if isinstance(error, Overloaded) else "encode"
            record_stage(stage, queued, time.monotonic() - queued, error)
            return
        metrics.observe("queue", times.queue_seconds)
        metrics.observe("encode", times.encode_seconds)
        record_stage("queue", queued, times.queue_seconds)
        record_stage("encode", queued + times.queue_seconds, times.encode_seconds, frames=self._num_encoded)

    def features(self, decoder: str) -> VideoFeatures:
        assert self._video is not None
        policy = self._request.plan.policy
        if policy == "shots" and not self._is_long:
            policy = "uniform"
        segments, vectors = self._deciding()
        num, num_blank = len(self._times_ms), self._num_blank
        if 0 < num_blank < num:
            detail = f"{num_blank} of {num} sampled frames show a single colour and were left out"
            self._warnings["blank_frames"] = detail
        return VideoFeatures(
            video=self._video,
            timestamps_ms=tuple(self._times_ms),
            segments=segments,
            vectors=vectors,
            frame_policy=policy,
            num_failed=self._num_failed,
            num_blank=num_blank,
            decoder=decoder,
            warnings=tuple(self._warnings.items()),
        )

    def kept_frames(self) -> NDArray[np.uint8]:
        """Of a single segment all that decide, else the first ones."""
        return self._kept[0] if len(self._kept) == 1 else np.concatenate(self._kept)[:_NUM_KEPT_FRAMES]


def _grouping(options: ClassifyOptions, plan: SamplingPlan) -> Grouping:
    start_ms = options.start_ms or 0
    if options.aggregate_by == "timestamps":
        return EachTime()
    if plan.policy == "shots":
        return Shots(start_ms, plan.num_frames)
    if plan.segment_ms is not None:
        return Cells(start_ms, plan.segment_ms, plan.num_frames)
    return OneSegment(start_ms)


def _mean(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of unit vectors [S, D] the direction, of unit length: as one segment over all would have."""
    if len(vectors) == 1:
        return np.asarray(vectors[0])
    mean = vectors.mean(axis=0, dtype=np.float64)
    length = float(np.linalg.norm(mean))
    direction: NDArray[np.float32] = (mean / length if length > 0 else mean).astype(np.float32)
    return direction
