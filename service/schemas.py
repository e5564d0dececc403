"""The JSON of the HTTP interface: what a request may hold and what an answer holds. Imports service.errors alone.

Values are in the units that their names say, scores are 0..1. Unknown members are refused: a misspelt option that is
silently ignored is worse than an error.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from service.errors import InvalidParameter

MAX_BATCH_LABELS = 1000
MAX_CANDIDATES = 1000
MAX_LABEL_IDS = 30_000

BodyT = TypeVar("BodyT", bound=BaseModel)

Name = Annotated[str, Field(description="1 to 128 characters after NFKC; no control or bidirectional characters")]
Probability = Annotated[float, Field(ge=0, le=1)]
Milliseconds = Annotated[int, Field(ge=0, le=10**12)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


# --- labels


class NewLabelBody(_Strict):
    """A label to register."""

    name: Name
    aliases: list[Name] = Field(default=[], max_length=16)
    categories: list[str] = Field(default=[], max_length=32)
    threshold: Probability | None = Field(None, description="score from which it counts as matched; null: the model's")
    metadata: dict[str, Any] = Field(default={}, description="any JSON of yours, at most 16384 bytes")


class LabelChangesBody(_Strict):
    """Members to replace; the others stay. A new name is encoded anew."""

    name: Name | None = None
    aliases: list[Name] | None = Field(None, max_length=16)
    categories: list[str] | None = Field(None, max_length=32)
    threshold: Probability | None = None
    metadata: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _only_threshold_may_be_null(self) -> LabelChangesBody:
        for name in self.model_fields_set - {"threshold"}:
            if getattr(self, name) is None:
                raise ValueError(f"{name} cannot be null")
        if not self.model_fields_set:
            raise ValueError("nothing to change is given")
        return self


class LabelBatchBody(_Strict):
    """Several labels. Each is validated and answered by itself, so one bad one spoils nothing."""

    labels: list[Any] = Field(min_length=1, max_length=MAX_BATCH_LABELS)


class LabelView(BaseModel):
    object: Literal["label"] = "label"
    id: str
    name: str
    aliases: list[str]
    categories: list[str]
    threshold: float | None
    metadata: dict[str, Any]
    created_at_ms: int
    updated_at_ms: int
    revision: int


class LabelListView(BaseModel):
    object: Literal["list"] = "list"
    data: list[LabelView]
    has_more: bool
    first_id: str | None
    last_id: str | None


class BatchItemView(BaseModel):
    index: int
    status: int = Field(description="201 stored, 200 existed (with if_exists=return), else the error's status")
    label: LabelView | None = None
    error: dict[str, Any] | None = None


class BatchView(BaseModel):
    object: Literal["list"] = "list"
    data: list[BatchItemView]


# --- classify


class ClassifyParams(_Strict):
    """Options of a classification: the JSON of the multipart field ``params``."""

    label_ids: list[str] | None = Field(None, min_length=1, max_length=MAX_LABEL_IDS)
    candidate_labels: list[Name] | None = Field(
        None, min_length=1, max_length=MAX_CANDIDATES, description="names to score that are not stored"
    )
    include_categories: list[str] | None = Field(None, min_length=1, max_length=100)
    exclude_categories: list[str] | None = Field(None, min_length=1, max_length=100)
    min_score: Probability = 0.0
    top_k: int = Field(20, ge=0, le=1_000_000, description="0: all")
    num_frames: int | None = Field(None, ge=1, le=2048, description="per video, or per segment; null: the model's")
    aggregate_by: Literal["video", "segments", "timestamps"] = Field(
        "video",
        description="video: one score for the whole window. segments, timestamps: each part (each frame) is scored by "
        "itself and `score` is the highest of them",
    )
    segment_ms: int = Field(4000, ge=100, le=3_600_000)
    start_ms: Milliseconds | None = None
    end_ms: Milliseconds | None = None

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


# --- health


class CheckView(BaseModel):
    ok: bool
    detail: str


class ReadyView(BaseModel):
    status: Literal["ready", "starting", "not_ready", "stopping"]
    checks: dict[str, CheckView]


class ProblemView(BaseModel):
    """RFC 9457, as application/problem+json."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str
    errors: list[dict[str, str]] | None = None


# --- reading


def problems_of(error: ValidationError) -> list[dict[str, str]]:
    """``[{pointer, detail}]`` with JSON pointers (RFC 6901). Never repeats what was sent."""
    return problem_items(list(error.errors(include_url=False, include_input=False, include_context=False)))


def problem_items(items: list[Any]) -> list[dict[str, str]]:
    """The same from pydantic's error dictionaries."""
    found = []
    for item in items[:100]:
        place = "".join(f"/{_escape(part)}" for part in item["loc"])
        found.append({"pointer": place, "detail": str(item["msg"]).removeprefix("Value error, ")})
    return found


def validate(model: type[BodyT], value: Any) -> BodyT:
    """``value`` (parsed JSON) as ``model``. Raises InvalidParameter with ``errors``."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        problems = problems_of(error)
        detail = "; ".join(f"{p['pointer'] or '/'}: {p['detail']}" for p in problems[:3])
        raise InvalidParameter(detail, errors=problems) from None


def _escape(part: object) -> str:
    text = "".join(c if c.isprintable() else "?" for c in str(part))[:64]
    return text.replace("~", "~0").replace("/", "~1")
