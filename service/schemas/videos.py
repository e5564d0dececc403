from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from vidlex.service.schemas.base import Int64, View
from vidlex.service.schemas.classify import AggregateByName, FramePolicyName

MAX_SHOWN_SEGMENTS = 10_000
_ID = "vid_01m8sa92dpz006bms3r0pj6t"
_TIME_MS = 1796145973690
_SHA256 = "14f852d77aab139e8492e3fd5c5859468ae1616e68fff77442efe90759f59fc4"  # an example


class SamplingView(View):
    """Which frames were used, and which segments they form: with the content, what makes a kept video one."""

    aggregate_by: AggregateByName = Field(description="As requested.")
    frame_policy: FramePolicyName = Field(description="As requested, or the default.")
    num_frames: int = Field(description="Frames per video, or per segment.", examples=[8])
    segment_ms: int | None = Field(description="Length of a segment; null for those of other kinds.", examples=[4000])
    start_ms: Int64 | None = Field(description="Start of the window in milliseconds; null: that of the video.")
    end_ms: Int64 | None = Field(description="End of the window in milliseconds; null: that of the video.")


class KeptVideoFactsView(View):
    """Properties of the video, as in the answer of the classification."""

    duration_ms: Int64 = Field(description="In milliseconds.", examples=[10_000])
    start_ms: Int64 = Field(description="When the first frame is shown by the file's own clock.", examples=[0])
    width: int = Field(description="Of the picture as shown, in pixels.", examples=[1280])
    height: int = Field(description="Of the picture as shown, in pixels.", examples=[720])
    fps: float = Field(description="Frames per second as decoded, on average.", examples=[24.0])
    codec: str = Field(description="Name of the video codec.", examples=["h264"])
    bytes: Int64 = Field(description="Size of the file.", examples=[183_052])


class EncodingView(View):
    """How the features came about that were kept last."""

    service: str = Field(description="The service and its version.", examples=["vidlex 0.1.0"])
    decoder: str = Field(description="Libraries that decoded the video.", examples=["PyAV 18.1.0, FFmpeg 8.1.2"])
    model: str = Field(description="Name of the model.", examples=["photo-small"])
    fingerprint: str = Field(description="Fingerprint of the model.", examples=["photo-small-4f6c1a"])
    encoder: str = Field(description="How the model computes on this machine.", examples=["fast bfloat16"])
    frame_policy: FramePolicyName = Field(description="How the frames were chosen in effect.")
    frames_requested: int = Field(description="Frames to sample.", examples=[24])
    frames_decoded: int = Field(description="Distinct sampled frames.", examples=[24])
    frames_failed: int = Field(description="Sampled frames that cannot be decoded.", examples=[0])
    frames_blank: int = Field(description="Sampled frames of one colour.", examples=[0])


class VideoGenerationView(View):
    """Features of one model."""

    fingerprint: str = Field(description="Fingerprint of the model.", examples=["photo-small-4f6c1a"])
    num_segments: int = Field(description="Vectors, one per segment.", examples=[3])


class KeptVideoView(View):
    """What is kept of a video: features, facts and your own data, never the video itself."""

    object: Literal["video"] = Field(default="video", description="Type of this object.")
    id: str = Field(description="Id of the kept video.", examples=[_ID])
    client_id: str | None = Field(description="Your own id; null: none.", examples=["upload-17"])
    sha256: str = Field(description="SHA-256 of the file, in hexadecimal.", examples=[_SHA256])
    uri: str | None = Field(description="Where it can be read again; null: unknown.", examples=["s3://bucket/1.mp4"])
    metadata: dict[str, Any] = Field(description="Yours, as it was sent.", examples=[{"channel": 4}])
    sampling: SamplingView = Field(description="Which frames were used.")
    facts: KeptVideoFactsView = Field(description="Properties of the video.")
    encoding: EncodingView = Field(description="Of the features that were kept last.")
    generations: list[VideoGenerationView] = Field(description="Its features by model.")
    bytes: Int64 = Field(description="What it takes of the quota.", examples=[3890])
    created_at_ms: Int64 = Field(description="Unix time in milliseconds.", examples=[_TIME_MS])
    updated_at_ms: Int64 = Field(description="When it was kept last, Unix time in milliseconds.", examples=[_TIME_MS])
    expires_at_ms: Int64 | None = Field(
        description="After which it is removed, Unix time in milliseconds; null: never."
    )


class KeptSegmentView(View):
    """A part of a kept video."""

    start_ms: Int64 = Field(description="Start in milliseconds.", examples=[0])
    end_ms: Int64 = Field(description="End in milliseconds; the start of a single frame.", examples=[4000])


class ThumbnailView(View):
    """A small picture of a stretch in which a label applied when the video was kept."""

    start_ms: Int64 = Field(description="Start of the stretch in milliseconds.", examples=[0])
    end_ms: Int64 = Field(description="End of the stretch in milliseconds.", examples=[4000])
    at_ms: Int64 = Field(description="When the picture is shown, in milliseconds.", examples=[2000])
    url: str = Field(description="Path of the JPEG.", examples=["/videos/vid_01m8sa92dpz006bms3r0pj6t/thumbnails/0"])


class KeptVideoDetailView(KeptVideoView):
    """A kept video with its segments."""

    segments: list[KeptSegmentView] | None = Field(
        description=f"Of the model that encoded it last, at most the first {MAX_SHOWN_SEGMENTS}; null if their file is "
        "missing or damaged."
    )
    thumbnails: list[ThumbnailView] = Field(description="Empty unless they were asked for, in the order of time.")


class KeptVideoListView(View):
    """A page of kept videos."""

    object: Literal["list"] = Field(default="list", description="Type of this object.")
    data: list[KeptVideoView] = Field(description="The videos, newest first.")
    has_more: bool = Field(description="Whether there are more videos after `last_id`.")
    first_id: str | None = Field(description="Id of the first video on the page; null if it is empty.", examples=[_ID])
    last_id: str | None = Field(description="Where the page ends: pass it as `after`.", examples=[_ID])


class SegmentFeaturesView(View):
    """The vector of a segment."""

    start_ms: Int64 = Field(description="Start in milliseconds.", examples=[0])
    end_ms: Int64 = Field(description="End in milliseconds.", examples=[4000])
    vector: list[float] = Field(
        description="Of unit length but for rounding to float16; its product with a label's vector is the similarity.",
        examples=[[0.6, 0.8]],
    )


class VideoFeaturesView(View):
    """Features of a kept video."""

    object: Literal["video.features"] = Field(default="video.features", description="Type of this object.")
    id: str = Field(description="Id of the kept video.", examples=[_ID])
    fingerprint: str = Field(description="Fingerprint of the model.", examples=["photo-small-4f6c1a"])
    num_segments: int = Field(description="Of the video, of this model.", examples=[3])
    offset: int = Field(description="As requested.", examples=[0])
    data: list[SegmentFeaturesView] = Field(description="In the order of time.")
