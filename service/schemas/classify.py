from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from vidlex.service.bounds import (
    MAX_CANDIDATES,
    MAX_CLIENT_ID_CHARS,
    MAX_KEEP_SECONDS,
    MAX_LABEL_IDS,
    MAX_METADATA_BYTES,
    MAX_METADATA_KEYS,
    MAX_METADATA_LEVELS,
    MAX_URL_CHARS,
)
from vidlex.service.schemas.base import (
    WHOLE,
    Int64,
    Milliseconds,
    Names,
    Probability,
    Revision,
    Strict,
    Texts,
    View,
    WarningView,
)
from vidlex.service.schemas.result_warnings import describe_warnings

FramePolicyName = Literal["uniform", "keyframes", "shots"]
AggregateByName = Literal["video", "segments", "timestamps"]
_SHA256 = "14f852d77aab139e8492e3fd5c5859468ae1616e68fff77442efe90759f59fc4"  # an example


class ClassifyParams(Strict):
    """Options of a classification, as JSON in the multipart field `params`."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"top_k": 3, "aggregate_by": "segments", "segment_ms": 1000}]}
    )

    label_ids: Texts | None = Field(
        None, min_length=1, max_length=MAX_LABEL_IDS, description="Ids of the labels to score; null: all labels."
    )
    candidate_labels: Names | None = Field(
        None,
        min_length=1,
        max_length=MAX_CANDIDATES,
        description="Names to score instead of stored labels. Excludes `label_ids` and the categories.",
    )
    include_categories: Texts | None = Field(
        None, min_length=1, max_length=100, description="Score only labels with one of these categories."
    )
    exclude_categories: Texts | None = Field(
        None, min_length=1, max_length=100, description="Skip labels with one of these categories."
    )
    min_score: Probability = Field(0.0, description="Lowest score of a returned label.")
    top_k: Annotated[int, Field(ge=0, le=1_000_000), WHOLE] = Field(
        20, description="Number of labels to return, highest scores first; 0: all."
    )
    num_frames: Annotated[int, Field(ge=1, le=2048), WHOLE] | None = Field(
        None,
        description="Frames to sample per video, or per segment; with `shots` at most that many per segment. Null: the "
        "model's default.",
    )
    frame_policy: FramePolicyName | None = Field(
        None,
        description="`uniform`: frames at even distances. `keyframes`: only frames that decode independently; faster, "
        "at inexact times. `shots`: for long videos, at most 24 frames per minute, so that scenes of 3 s and shorter "
        "shots are seen; a segment is a shot or a part of it. Videos of up to 20 s are then sampled as by `uniform`. "
        "Null: `shots` with `aggregate_by=video` and without `num_frames`, else `uniform`.",
    )
    aggregate_by: AggregateByName = Field(
        "video",
        description="`video`: one score for the whole window; with `shots`, that of the most confident segment. "
        "`segments`, `timestamps`: one score per segment or frame in `segments`; `score` is then their maximum.",
    )
    segment_ms: Annotated[int, Field(ge=100, le=3_600_000), WHOLE] = Field(
        4000, description="Length of a segment in milliseconds, with `aggregate_by=segments`."
    )
    start_ms: Milliseconds | None = Field(
        None, description="Start of the window in milliseconds from the first frame; null: the first frame."
    )
    end_ms: Milliseconds | None = Field(
        None, description="End of the window in milliseconds, after `start_ms`; null: the end of the video."
    )
    deadline_ms: Annotated[int, Field(ge=1, le=3_600_000), WHOLE] | None = Field(
        None,
        description="Milliseconds from the start of the request; 504 as soon as they do not suffice.",
    )
    min_revision: Revision | None = Field(
        None,
        description="Lowest revision of the vocabulary to use. A replica that lags behind waits for it, then answers "
        "409.",
    )
    keep: bool = Field(
        False,
        description="Keep the video's features, facts and the four members below, so that new labels are applied to it "
        "and it can be searched; never the video itself. Needs a key of scope `write`. The same video with the same "
        "sampling is kept once.",
    )
    keep_seconds: Annotated[float, Field(gt=0, le=MAX_KEEP_SECONDS)] | None = Field(
        None, description="With `keep`: after how many seconds it is removed. Null: as the service is configured."
    )
    client_id: str | None = Field(
        None,
        min_length=1,
        max_length=MAX_CLIENT_ID_CHARS,
        description="With `keep`: your own id of the video, to find it by.",
    )
    metadata: dict[str, Any] = Field(
        default={},
        description=f"With `keep`: any JSON object of at most {MAX_METADATA_BYTES} bytes, {MAX_METADATA_KEYS} keys and "
        f"{MAX_METADATA_LEVELS} levels of objects and lists; returned as it is.",
    )
    uri: str | None = Field(
        None,
        min_length=1,
        max_length=MAX_URL_CHARS,
        description="With `keep`: where the video can be read again, for a later model. A job without it keeps the URL "
        "of its input, unless that has a query.",
    )
    thumbnails: bool = Field(
        False,
        description="With `keep`: keep a small picture of each stretch of the answer's labels too, at most 16; none is "
        "kept otherwise.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> ClassifyParams:
        if self.label_ids is not None and self.candidate_labels is not None:
            raise ValueError("label_ids and candidate_labels are mutually exclusive")
        if self.candidate_labels is not None and (self.include_categories or self.exclude_categories):
            raise ValueError("categories cannot be used with candidate_labels")
        if self.end_ms is not None and self.end_ms <= (self.start_ms or 0):
            raise ValueError("end_ms must be greater than start_ms")
        texts = (self.keep_seconds, self.client_id, self.uri)
        if not self.keep and (self.metadata or self.thumbnails or texts != (None, None, None)):
            raise ValueError("keep_seconds, client_id, metadata, uri and thumbnails need keep")
        return self


class SegmentView(View):
    """A score of a stretch of the video."""

    start_ms: Int64 = Field(description="Start in milliseconds.", examples=[0])
    end_ms: Int64 = Field(description="End in milliseconds; the start with `aggregate_by=timestamps`.", examples=[1000])
    score: float = Field(description="Score of the label in this segment, 0 to 1.", examples=[0.12])


class StretchView(View):
    """A part of the video in which a label applies."""

    start_ms: Int64 = Field(description="Start in milliseconds.", examples=[1000])
    end_ms: Int64 = Field(description="End in milliseconds; the start for a single frame.", examples=[2000])
    score: float = Field(description="Highest score of the label in it, 0 to 1.", examples=[0.93])
    peak_ms: Int64 = Field(description="Where the score is highest, in milliseconds.", examples=[1500])


class ScoredLabelView(View):
    """A label with its score on the video."""

    id: str | None = Field(description="Id of the label; null for a candidate label.")
    name: str = Field(description="Name of the label.", examples=["golden retriever"])
    score: float = Field(
        description="Probability that the label applies, 0 to 1: that of the most confident segment.", examples=[0.93]
    )
    similarity: float = Field(description="Cosine of the video's and the label's vector.", examples=[0.31])
    threshold: float = Field(description="Score from which the label matches.", examples=[0.5])
    matched: bool = Field(description="Whether the score reaches the threshold.")
    categories: list[str] = Field(description="Categories of the label.", examples=[["animal"]])
    segments: list[SegmentView] = Field(description="Scores over time; empty with `aggregate_by=video`.")
    stretches: list[StretchView] = Field(
        description="When the label applies, in order of time: adjacent segments, of which one reaches the threshold "
        "and the others at least half of its odds. Empty if the label does not match."
    )


class VideoView(View):
    """Properties of the received video."""

    sha256: str = Field(description="SHA-256 of the file, in hexadecimal.", examples=[_SHA256])
    duration_ms: Int64 = Field(
        description="Time from the first frame until the end of the last one, in milliseconds.", examples=[2000]
    )
    start_ms: Int64 = Field(
        description="When the first frame is shown by the file's own clock, in milliseconds; sound may begin earlier. "
        "All other times count from the first frame: a player that follows the file's clock shows time `t` at "
        "`start_ms + t`.",
        examples=[0],
    )
    width: int = Field(
        description="Width of the picture in pixels as a player shows it: upright, and with square pixels.",
        examples=[320],
    )
    height: int = Field(description="Height of the picture in pixels, as a player shows it.", examples=[240])
    fps: float = Field(description="Frames per second as decoded, on average.", examples=[24.0])
    codec: str = Field(description="Name of the video codec.", examples=["h264"])
    bytes: Int64 = Field(description="Size of the file.", examples=[183052])


class CoverageView(View):
    """Which frames were used."""

    frame_policy: FramePolicyName = Field(description="How the frames were chosen.")
    frames_requested: int = Field(description="Frames to sample.", examples=[8])
    frames_decoded: int = Field(
        description="Distinct sampled frames; fewer than requested if the video is too short.", examples=[8]
    )
    frames_failed: int = Field(
        description="Sampled frames that cannot be decoded, in whose place the nearest good ones were used.",
        examples=[0],
    )
    frames_blank: int = Field(
        description="Sampled frames of one colour, such as black ones; they count only where there are no others.",
        examples=[0],
    )
    timestamps_ms: list[Int64] = Field(
        description="Times of the sampled frames in milliseconds.", examples=[[125, 375, 625, 875]]
    )


class ModelView(View):
    """A model."""

    id: str = Field(description="Name of the model.", examples=["photo-small"])
    fingerprint: str = Field(description="Identifies the model and its label vectors.", examples=["dummy-1"])


class ReceiptView(View):
    """All that the scores depend on. Two answers with the same receipt have the same score for each label of both."""

    id: str = Field(description="SHA-256 of the other members as canonical JSON (RFC 8785).", examples=[_SHA256])
    service: str = Field(description="The service and its version.", examples=["vidlex 0.1.0"])
    sha256: str = Field(description="SHA-256 of the file, in hexadecimal.", examples=[_SHA256])
    decoder: str = Field(
        description="Libraries that decoded it, with their versions.", examples=["PyAV 18.1.0, FFmpeg 8.1.2"]
    )
    model: str = Field(description="Fingerprint of the model.", examples=["photo-small-4f6c1a"])
    encoder: str = Field(
        description="How the model computes on this machine; empty where there is no choice.",
        examples=["fast bfloat16"],
    )
    calibration: str | None = Field(description="Fingerprint of the calibration; null: none.")
    namespace: str = Field(description="Namespace of the vocabulary.", examples=["default"])
    vocabulary_revision: Int64 = Field(description="Revision of the vocabulary.", examples=[2])
    label_vectors: Literal["float32", "float16"] = Field(description="How precisely the labels' vectors are kept.")
    aggregate_by: AggregateByName = Field(description="As requested.")
    frame_policy: FramePolicyName = Field(description="How the frames were chosen.")
    num_frames: int = Field(description="Frames per video, or per segment.", examples=[4])
    segment_ms: int | None = Field(description="Length of a segment; null without `aggregate_by=segments`.")
    start_ms: Int64 = Field(description="Start of the window in milliseconds.", examples=[0])
    end_ms: Int64 = Field(description="End of the window in milliseconds.", examples=[2000])
    timestamps_sha256: str = Field(
        description="SHA-256 of `coverage.timestamps_ms` as JSON without spaces.", examples=[_SHA256]
    )
    frames_failed: int = Field(description="As in `coverage`.", examples=[0])


class UsageView(View):
    """Where the time went."""

    decode_ms: int = Field(description="Decoding and the wait for a decode process, in milliseconds.", examples=[21])
    encode_ms: int = Field(description="Forward passes of the video encoder, in milliseconds.", examples=[64])
    match_ms: int = Field(description="Comparison with the labels, in milliseconds.", examples=[1])
    queue_ms: int = Field(description="Waiting for the video encoder, in milliseconds.", examples=[0])
    cached: bool = Field(description="The video's features were cached: nothing was decoded or encoded.")


class ClassificationView(View):
    """Labels of a video."""

    object: Literal["video.classification"] = Field(default="video.classification", description="Type of this object.")
    video: VideoView = Field(description="The received video.")
    coverage: CoverageView = Field(description="The frames that were used.")
    labels: list[ScoredLabelView] = Field(description="The labels, highest score first.")
    model: ModelView = Field(description="The model that scored the labels.")
    calibration: str | None = Field(
        description="Fingerprint of the namespace's calibration that the scores are of; null: the model's own scores.",
        examples=["5b0c7ad91e3f2468"],
    )
    vocabulary_revision: Int64 = Field(description="Revision of the vocabulary that was used.", examples=[2])
    video_id: str | None = Field(
        None, description="Id of the kept video; null without `keep`.", examples=["vid_01jq5xk9y2abcdefghjkmnpq"]
    )
    usage: UsageView = Field(description="Time spent on the request.")
    warnings: list[WarningView] = Field(description=describe_warnings())
    receipt: ReceiptView = Field(description="All that the scores depend on.")
