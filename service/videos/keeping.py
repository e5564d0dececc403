"""Keeps what a classification has computed of a video."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vidlex.service.classification.classifier import Classification
from vidlex.service.classification.extraction import SamplingPlan
from vidlex.service.classification.matching import ClassifyOptions
from vidlex.service.errors import InvalidParameter
from vidlex.service.labels.store.metadata_limits import clean_metadata
from vidlex.service.videos.parts.thumbnails import FramesAt, thumbnails_of
from vidlex.service.videos.records import KeptSegment, KeptVideo, NewKeptVideo
from vidlex.service.videos.store import KeptVideoStore


@dataclass(frozen=True, kw_only=True)
class KeepOptions:
    """Of the client; None: see ``KeptVideoStore.keep``."""

    keep_seconds: float | None = None
    client_id: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    uri: str | None = None
    thumbnails: bool = False

    def checked(self) -> KeepOptions:
        """Raises InvalidParameter."""
        clean_metadata(self.metadata)
        for name, text in (("client_id", self.client_id), ("uri", self.uri)):
            if text is not None and not text.isprintable():
                raise InvalidParameter(f"{name} must be printable characters")
        return self


@dataclass(frozen=True, kw_only=True)
class Keeper:
    """Which client a video is kept for, and which service kept it."""

    namespace: str
    client: str
    service: str  # name and version
    frames_at: FramesAt  # of the video


def keep_classification(
    store: KeptVideoStore, result: Classification, options: ClassifyOptions, keep: KeepOptions, keeper: Keeper
) -> KeptVideo:
    """The vectors of the segments that the scores are of.

    Raises what ``KeptVideoStore.keep`` raises and, with thumbnails, what ``Keeper.frames_at`` raises.
    """
    features = result.features
    return store.keep(
        NewKeptVideo(
            namespace=keeper.namespace,
            client=keeper.client,
            sha256=result.sha256,
            sampling=sampling_of(result, options),
            facts=_facts(result),
            receipt=_receipt(result, keeper.service),
            uri=keep.uri,
            client_id=keep.client_id,
            metadata=keep.metadata,
            keep_seconds=keep.keep_seconds,
        ),
        result.facts.fingerprint,
        [KeptSegment(segment.start_ms, segment.end_ms) for segment in features.segments],
        features.vectors,
        thumbnails=thumbnails_of(result.labels, keeper.frames_at) if keep.thumbnails else None,
    )


def sampling_of(result: Classification, options: ClassifyOptions) -> dict[str, Any]:
    """Of requests that mean the same frames and segments it is the same."""
    plan = SamplingPlan.of(options, result.facts)
    duration_ms = result.features.video.duration_ms
    return {
        "aggregate_by": options.aggregate_by,
        "frame_policy": plan.policy,
        "num_frames": plan.num_frames,
        "segment_ms": plan.segment_ms,
        "start_ms": options.start_ms or None,
        "end_ms": None if options.end_ms is None or options.end_ms >= duration_ms else options.end_ms,
    }


def _facts(result: Classification) -> dict[str, Any]:
    video = result.features.video
    return {
        "duration_ms": video.duration_ms,
        "start_ms": video.start_ms,
        "width": video.width,
        "height": video.height,
        "fps": video.fps,
        "codec": video.codec,
        "bytes": video.num_bytes,
    }


def _receipt(result: Classification, service: str) -> dict[str, Any]:
    features, facts = result.features, result.facts
    return {
        "service": service,
        "decoder": features.decoder,
        "model": facts.id,
        "fingerprint": facts.fingerprint,
        "encoder": facts.encoder,
        "frame_policy": features.frame_policy,
        "frames_requested": len(features.timestamps_ms),
        "frames_decoded": len(set(features.timestamps_ms)),
        "frames_failed": features.num_failed,
        "frames_blank": features.num_blank,
    }
