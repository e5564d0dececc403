"""Options and answer of a classification."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from vidlex.service.schemas.base import Milliseconds, Name, Probability, Revision, Strict

MAX_CANDIDATES = 1000
MAX_LABEL_IDS = 30_000


class ClassifyParams(Strict):
    """Options of a classification: the JSON of the multipart field ``params``."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"top_k": 3, "aggregate_by": "segments", "segment_ms": 1000}]}
    )

    label_ids: list[str] | None = Field(None, min_length=1, max_length=MAX_LABEL_IDS)
    candidate_labels: list[Name] | None = Field(
        None, min_length=1, max_length=MAX_CANDIDATES, description="names to score that are not stored"
    )
    include_categories: list[str] | None = Field(None, min_length=1, max_length=100)
    exclude_categories: list[str] | None = Field(None, min_length=1, max_length=100)
    min_score: Probability = 0.0
    top_k: int = Field(20, ge=0, le=1_000_000, description="0: all")
    num_frames: int | None = Field(None, ge=1, le=2048, description="per video, or per segment; null: the model's")
    frame_policy: Literal["uniform", "keyframes"] = Field(
        "uniform", description="keyframes: only frames that decode without any other; faster, away from the exact times"
    )
    aggregate_by: Literal["video", "segments", "timestamps"] = Field(
        "video",
        description="video: one score for the whole window. segments, timestamps: each part (each frame) is scored by "
        "itself and `score` is the highest of them",
    )
    segment_ms: int = Field(4000, ge=100, le=3_600_000)
    start_ms: Milliseconds | None = None
    end_ms: Milliseconds | None = None
    deadline_ms: int | None = Field(
        None,
        ge=1,
        le=3_600_000,
        description="from the request's head; 504 at once when it cannot be met, else when over",
    )
    min_revision: Revision | None = Field(
        None, description="of the vocabulary; a replica that is behind waits a moment, then answers 409"
    )

    @model_validator(mode="after")
    def _consistent(self) -> ClassifyParams:
        if self.label_ids is not None and self.candidate_labels is not None:
            raise ValueError("label_ids and candidate_labels exclude each other")
        if self.candidate_labels is not None and (self.include_categories or self.exclude_categories):
            raise ValueError("candidate_labels have no categories to include or exclude")
        if self.end_ms is not None and self.end_ms <= (self.start_ms or 0):
            raise ValueError("end_ms must be greater than start_ms")
        return self


class SegmentView(BaseModel):
    start_ms: int
    end_ms: int
    score: float


class ScoredLabelView(BaseModel):
    id: str | None = Field(description="null for a candidate label")
    name: str
    score: float
    similarity: float
    threshold: float
    matched: bool
    categories: list[str]
    segments: list[SegmentView]


class VideoView(BaseModel):
    sha256: str
    duration_ms: int
    width: int
    height: int
    fps: float
    codec: str
    bytes: int


class CoverageView(BaseModel):
    frames_requested: int
    frames_decoded: int = Field(description="different frames; fewer than requested when the video has no more")
    timestamps_ms: list[int]


class ModelView(BaseModel):
    id: str
    fingerprint: str


class UsageView(BaseModel):
    decode_ms: int
    encode_ms: int
    match_ms: int
    queue_ms: int
    cached: bool = Field(description="the video's features were there already: nothing was decoded or encoded")


class WarningView(BaseModel):
    code: str
    detail: str


class ClassificationView(BaseModel):
    object: Literal["video.classification"] = "video.classification"
    video: VideoView
    coverage: CoverageView
    labels: list[ScoredLabelView]
    model: ModelView
    vocabulary_revision: int
    usage: UsageView
    warnings: list[WarningView]
