"""Tags files in this process with the parts of the service: decode processes, an encoder, the label index."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from vidlex.model.types import DecoderName
from vidlex.service.bulk.engine import BusyShares, EngineIdentity, EngineUnavailable, LocalFile
from vidlex.service.bulk.local.encoder import LocalEncoder
from vidlex.service.bulk.local.snapshot import Snapshot
from vidlex.service.bulk.options import TagOptions
from vidlex.service.bulk.results import (
    Receipt,
    Stretch,
    TagFailure,
    TaggedLabel,
    TaggedSegment,
    TagResult,
    VideoFacts,
    segment_labels,
)
from vidlex.service.classification.extraction import FeatureExtractor, SamplingPlan, StageTimes, VideoRequest
from vidlex.service.classification.features import VideoFeatures
from vidlex.service.classification.matching import ClassifyOptions, ScoredLabel, Similarities, match
from vidlex.service.classification.stretches import Timeline
from vidlex.service.decode.pool import DecodePool, PoolLimits
from vidlex.service.engine.scheduler import EngineLimits
from vidlex.service.errors import EncodeFailed, Overloaded, VidlexError
from vidlex.service.labels.index.label_index import LabelIndex
from vidlex.service.machine.cpus import num_cpus
from vidlex.service.models.applied_calibration import fingerprint_of
from vidlex.service.models.recent_statistics import RecentStatistics
from vidlex.service.models.recent_videos import RecentVideos
from vidlex.service.models.scoring_vocabulary import VideoEncoder
from vidlex.service.models.served_model import ModelFacts
from vidlex.service.sharing.requester import Requester
from vidlex.service.telemetry.metrics import Metrics

_CLIENT = "bulk"
_CANCELLED = TagFailure("cancelled", "The run ends")
_MAX_ATTEMPTS = 3  # of a file that was dropped because all files together took too much memory
_RETRY_SECONDS = 2.0
# A device whose forward pass failed is probed at once. A video that it failed on is not the cause if the probe fails.
_PROBE_SECONDS = 10.0
_POLL_SECONDS = 0.05


@dataclass(frozen=True, eq=False)
class LocalVocabulary:
    """A ``ScoringVocabulary`` outside a service."""

    namespace: str
    facts: ModelFacts
    engine: VideoEncoder
    index: LabelIndex
    labeler: None = None


class LocalEngine:
    """A ``TagEngine``. Starts the decode processes at once. Thread-safe.

    ``encoder`` is one of the snapshot's model, such as a ``LocalEncoder`` or one on another machine; ``encoder_name``
    says how it computes, for the receipts (by default as the snapshot's did). ``num_encoding`` videos at a time keep it
    busy. ``on_close`` is called at the end of ``close``.

    Raises StartFailed.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        encoder: VideoEncoder,
        *,
        decode_workers: int | None = None,
        limits: PoolLimits = PoolLimits(),
        decoder: DecoderName = "auto",
        encoder_name: str | None = None,
        num_encoding: int | None = None,
        on_close: Callable[[], object] = lambda: None,
    ) -> None:
        self.snapshot = snapshot
        self.identity: EngineIdentity = snapshot.identity
        facts = snapshot.facts if encoder_name is None else replace(snapshot.facts, encoder=encoder_name)
        self._vocabulary = LocalVocabulary(snapshot.namespace or "", facts, encoder, snapshot.index())
        self._local_encoder = encoder if isinstance(encoder, LocalEncoder) else None
        self._num_decoders = decode_workers or num_cpus()
        self.concurrency = self._num_decoders + (num_encoding or _num_encoding(encoder, facts))
        self._places = threading.Semaphore(self.concurrency)
        self.pool = DecodePool(
            self._num_decoders, replace(limits, max_waiting=max(limits.max_waiting, self.concurrency)), decoder=decoder
        )
        self._extractor = FeatureExtractor(
            pool=self.pool,
            metrics=Metrics(),
            max_frames=limits.decode.max_frames,
            recent_videos=RecentVideos(0, 0),
            recent_statistics=RecentStatistics(is_enabled=False, max_namespaces=1),
        )
        self._on_close = on_close
        self._is_closed = False
        self.pool.start()

    def close(self) -> None:
        self._is_closed = True
        self.pool.close()
        self._on_close()

    def busy(self) -> BusyShares:
        """Of devices only if they are of this process."""
        encoder = self._local_encoder
        return BusyShares(
            decode_seconds=self.pool.busy_seconds,
            num_decoders=self._num_decoders,
            device_seconds=0.0 if encoder is None else encoder.busy_seconds,
            num_devices=0 if encoder is None else encoder.num_devices,
        )

    def tag(self, file: LocalFile, options: TagOptions, cancelled: threading.Event) -> TagResult:
        """See ``TagEngine``. More than ``concurrency`` calls wait for one another. Once ``cancelled`` is set, the
        result is a failure that means nothing.
        """
        result_id = self.identity.result_id(file.sha256, options)
        named = TagResult(file.uri, result_id, sha256=file.sha256, num_bytes=file.num_bytes)
        if options.keep:
            return replace(named, failure=TagFailure("invalid_parameter", "Only a service keeps videos"))
        while not self._places.acquire(timeout=_POLL_SECONDS):
            if cancelled.is_set():
                return replace(named, failure=_CANCELLED)
        try:
            with file.path.open("rb"):
                pass
            return self._tag_or_retry(named, file, options, cancelled)
        except OSError as error:
            detail = f"The file cannot be read: {error.strerror or type(error).__name__}"
            return replace(named, failure=TagFailure("file_not_readable", detail))
        finally:
            self._places.release()

    def _tag_or_retry(
        self, named: TagResult, file: LocalFile, options: TagOptions, cancelled: threading.Event
    ) -> TagResult:
        times, num_attempts = StageTimes(), 0
        while True:
            try:
                return self._tag(named, file, options, Requester(_CLIENT, cancelled=cancelled), times)
            except VidlexError as error:
                if cancelled.is_set():
                    return replace(named, failure=_CANCELLED)
                self._require_usable(error)
                num_attempts += 1
                if num_attempts == _MAX_ATTEMPTS or not isinstance(error, Overloaded):
                    return replace(named, failure=TagFailure(error.code, str(error)), timings_ms=_timings(times))
            cancelled.wait(num_attempts * _RETRY_SECONDS)

    def _require_usable(self, error: VidlexError) -> None:
        """Raises EngineUnavailable if no file can be tagged any more."""
        if self._is_closed:
            raise EngineUnavailable("The engine was closed") from error
        if isinstance(error, EncodeFailed) and self._local_encoder is not None:
            until = time.monotonic() + _PROBE_SECONDS
            while not self._local_encoder.is_healthy:
                if time.monotonic() > until:
                    raise EngineUnavailable("The encoder fails on every video") from error
                time.sleep(_POLL_SECONDS)

    def _tag(
        self, named: TagResult, file: LocalFile, options: TagOptions, requester: Requester, times: StageTimes
    ) -> TagResult:
        asked, vocabulary = classify_options(options), self._vocabulary
        plan = SamplingPlan.of(asked, vocabulary.facts)
        request = VideoRequest(file.path, file.sha256, asked, vocabulary, plan, requester)
        features = self._extractor.extract(request, times)
        started = time.monotonic()
        timeline = Timeline.of(features.segments, features.timestamps_ms)
        similarities, labels = match(features.vectors, asked, vocabulary, timeline, requester)
        times.match_seconds = time.monotonic() - started
        tagged = [self._tagged(label) for label in labels]
        has_segments = options.segments or options.features
        return replace(
            named,
            video=_video_facts(features),
            labels=tagged,
            segments=_segments(features, labels, tagged, options) if has_segments else (),
            receipt=self._receipt(features, similarities),
            warnings=(*features.warnings, *self.snapshot.warnings),
            timings_ms=_timings(times),
        )

    def _tagged(self, scored: ScoredLabel) -> TaggedLabel:
        label = scored.label
        return TaggedLabel(
            label.id if label is not None and self.snapshot.is_stored else None,
            scored.name,
            scored.score,
            scored.threshold,
            scored.matched,
            tuple(Stretch(s.start_ms, s.end_ms, s.peak_ms, s.score) for s in scored.stretches),
        )

    def _receipt(self, features: VideoFeatures, similarities: Similarities) -> Receipt:
        facts = self._vocabulary.facts
        return Receipt(
            decoder=features.decoder,
            encoder=facts.encoder,
            model_id=facts.id,
            fingerprint=facts.fingerprint,
            calibration=fingerprint_of(similarities.calibration),
            vocabulary=self.identity.vocabulary,
            vocabulary_revision=self.identity.vocabulary_revision,
            frame_policy=features.frame_policy,
            frames_decoded=len(set(features.timestamps_ms)),
            frames_failed=features.num_failed,
        )


def _num_encoding(encoder: VideoEncoder, facts: ModelFacts) -> int:
    """Videos of a batch, and as many that wait for the next one."""
    max_frames, num_devices = EngineLimits().max_batch_frames, 1
    if isinstance(encoder, LocalEncoder):
        max_frames, num_devices = encoder.max_batch_frames, encoder.num_devices
    return 2 * num_devices * max(1, max_frames // facts.num_frames)


def classify_options(options: TagOptions) -> ClassifyOptions:
    return ClassifyOptions(
        min_score=options.min_score,
        top_k=options.top_k,
        num_frames=options.num_frames,
        frame_policy=options.frame_policy,
        aggregate_by="segments" if options.segments else "video",
        segment_ms=options.segment_ms,
        start_ms=options.start_ms,
        end_ms=options.end_ms,
    )


def _segments(
    features: VideoFeatures, scored: Sequence[ScoredLabel], tagged: Sequence[TaggedLabel], options: TagOptions
) -> list[TaggedSegment]:
    segments = []
    for i, (segment, vector) in enumerate(zip(features.segments, features.vectors, strict=True)):
        labels = segment_labels(tagged, [label.segment_scores[i] for label in scored]) if options.segments else []
        vectors = vector.tolist() if options.features else None
        segments.append(TaggedSegment(segment.start_ms, segment.end_ms, labels, vectors))
    return segments


def _video_facts(features: VideoFeatures) -> VideoFacts:
    video = features.video
    return VideoFacts(video.duration_ms, video.start_ms, video.width, video.height, video.fps, video.codec)


def _timings(times: StageTimes) -> dict[str, float]:
    return {
        "decode": 1000 * times.decode_seconds,
        "queue": 1000 * times.queue_seconds,
        "encode": 1000 * times.encode_seconds,
        "match": 1000 * times.match_seconds,
    }
