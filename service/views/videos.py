from __future__ import annotations

from typing import Any

from vidlex.service.schemas.videos import (
    MAX_SHOWN_SEGMENTS,
    EncodingView,
    KeptSegmentView,
    KeptVideoDetailView,
    KeptVideoFactsView,
    KeptVideoView,
    SamplingView,
    ThumbnailView,
    VideoGenerationView,
)
from vidlex.service.videos.records import KeptFeatures, KeptVideo


def kept_video_view(video: KeptVideo) -> KeptVideoView:
    return KeptVideoView(**_members(video))


def kept_video_detail_view(video: KeptVideo, features: KeptFeatures | None) -> KeptVideoDetailView:
    segments = None if features is None else features.segments[:MAX_SHOWN_SEGMENTS]
    shown = None if segments is None else [KeptSegmentView(start_ms=s.start_ms, end_ms=s.end_ms) for s in segments]
    thumbnails = [
        ThumbnailView(
            start_ms=thumbnail.start_ms,
            end_ms=thumbnail.end_ms,
            at_ms=thumbnail.at_ms,
            url=f"/videos/{video.id}/thumbnails/{number}",
        )
        for number, thumbnail in enumerate(video.thumbnails)
    ]
    return KeptVideoDetailView(**_members(video), segments=shown, thumbnails=thumbnails)


def _members(video: KeptVideo) -> dict[str, Any]:
    return {
        "id": video.id,
        "client_id": video.client_id,
        "sha256": video.sha256,
        "uri": video.uri,
        "metadata": dict(video.metadata),
        "sampling": SamplingView(**video.sampling),
        "facts": KeptVideoFactsView(**video.facts),
        "encoding": EncodingView(**video.receipt),
        "generations": [
            VideoGenerationView(fingerprint=fingerprint, num_segments=number)
            for fingerprint, number in sorted(video.generations.items())
        ],
        "bytes": video.num_bytes,
        "created_at_ms": video.created_at_ms,
        "updated_at_ms": video.updated_at_ms,
        "expires_at_ms": video.expires_at_ms,
    }
