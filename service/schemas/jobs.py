from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field

from vidlex.service.bounds import (
    MAX_METADATA_BYTES,
    MAX_METADATA_KEYS,
    MAX_METADATA_LEVELS,
    MAX_URL_CHARS,
)
from vidlex.service.schemas.base import Int64, Strict, View
from vidlex.service.schemas.classify import ClassificationView, ClassifyParams

JobKindName = Literal["classify", "batch", "backfill", "reencode"]
NewJobKindName = Literal["classify", "batch"]
JobStateName = Literal["queued", "running", "succeeded", "failed", "cancelled", "expired"]
PriorityName = Literal["high", "normal", "low"]
JobWebhookEventName = Literal["job.succeeded", "job.failed", "job.cancelled", "job.expired"]
_JOB_ID = "job_01jq5xk9y2abcdefghjkmnpq"  # an example
_TIME_MS = 1796057582384
_METADATA = (
    f"Any JSON object of at most {MAX_METADATA_BYTES} bytes, {MAX_METADATA_KEYS} keys and {MAX_METADATA_LEVELS} levels "
    "of objects and lists; returned as it is."
)


class JobUrlBody(Strict):
    """A file that the service reads when the job runs."""

    url: str = Field(
        min_length=1,
        max_length=MAX_URL_CHARS,
        description="An https:// URL of a host, or s3:// of a bucket, that the service is configured for; may be "
        "presigned.",
        examples=["https://files.example/videos/1.mp4?signature=3f9a"],
    )


class JobWebhookBody(Strict):
    """Where the end of a job is reported, signed as Standard Webhooks."""

    url: str = Field(
        min_length=1,
        max_length=MAX_URL_CHARS,
        description="An https:// URL of a host that the service is configured for.",
        examples=["https://hooks.example/vidlex"],
    )
    events: list[JobWebhookEventName] = Field(
        default=[],
        max_length=4,
        description="Types of events to report; empty: all.",
        examples=[["job.succeeded", "job.failed"]],
    )
    cloud_events: bool = Field(False, description="Whether the body is an envelope of CloudEvents 1.0.")


class JobOptionsBody(Strict):
    """Options of a job."""

    kind: NewJobKindName = Field(
        default="classify",
        description="`classify`: the input is a video. `batch`: it is a JSONL file with a video in each line, see the "
        "documents of jobs.",
    )
    params: ClassifyParams = Field(
        default_factory=lambda: ClassifyParams.model_validate({}),
        description="Options of the classification, of every video of a batch; without `deadline_ms`.",
    )
    priority: PriorityName = Field(
        default="normal", description="Among the jobs of one client; clients are served in turn."
    )
    webhook: JobWebhookBody | None = Field(default=None, description="Null: none.")
    metadata: dict[str, Any] = Field(default={}, description=_METADATA, examples=[{"order": 17}])


class UploadedJobBody(JobOptionsBody):
    """A job whose file is uploaded, as JSON in the multipart field `params`."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"params": {"top_k": 3}, "priority": "high", "metadata": {"order": 17}}]}
    )


class NewJobBody(JobOptionsBody):
    """A job whose file the service reads from a URL."""

    input: JobUrlBody = Field(description="What the job reads.")


class JobInputView(View):
    """What a job reads."""

    kind: Literal["upload", "url"] = Field(description="How the file comes to the service.")
    url: str | None = Field(
        description="Without its query, which may be a secret; null for an upload.",
        examples=["https://files.example/videos/1.mp4"],
    )
    sha256: str | None = Field(description="SHA-256 of an upload, in hexadecimal.")
    bytes: Int64 | None = Field(description="Size of an upload.", examples=[183052])


class JobProgressView(View):
    """How far the current attempt is."""

    stage: str = Field(description="What is being done: `fetch`, `decode`, `encode`, `match`, ...", examples=["decode"])
    unit: str = Field(description="What `done` and `total` count.", examples=["frames"])
    done: Int64 = Field(description="Of this stage.", examples=[8])
    total: Int64 | None = Field(description="Null while it is not known.", examples=[32])
    num_failed: Int64 = Field(description="Of `done`.", examples=[0])


class JobErrorView(View):
    """Why an attempt ended without a result."""

    code: str = Field(description="Stable identifier, as of an error.", examples=["undecodable_video"])
    detail: str = Field(description="What went wrong, for people.", examples=["The video cannot be decoded"])


class JobWebhookView(View):
    """Where the end of the job is reported."""

    url: str = Field(description="Without its query.", examples=["https://hooks.example/vidlex"])
    events: list[str] = Field(description="Types of events; empty: all.", examples=[["job.succeeded"]])
    cloud_events: bool = Field(description="Whether the body is an envelope of CloudEvents 1.0.")


class RequestCountsView(View):
    """The videos of a batch."""

    total: int | None = Field(description="Null while the manifest has not been read.", examples=[100])
    completed: int = Field(description="With a result.", examples=[98])
    failed: int = Field(description="With an error.", examples=[2])


class JobView(View):
    """A job."""

    object: Literal["job"] = Field(default="job", description="Type of this object.")
    id: str = Field(description="Id of the job.", examples=[_JOB_ID])
    kind: JobKindName = Field(description="What the job does.")
    state: JobStateName = Field(
        description="`queued`, `running`, or for good `succeeded`, `failed`, `cancelled` or `expired` (no worker took "
        "it in time)."
    )
    cancelling: bool = Field(description="Cancelled, while its worker has not stopped yet.")
    dead: bool = Field(description="Failed because every attempt ended without an answer: a dead letter.")
    priority: PriorityName = Field(description="Among the jobs of one client.")
    input: JobInputView | None = Field(description="What the job reads; null: nothing but what the service has.")
    metadata: dict[str, Any] = Field(description="Of the client.", examples=[{"order": 17}])
    webhook: JobWebhookView | None = Field(description="Null: none.")
    attempts: int = Field(description="That have begun.", examples=[1])
    max_attempts: int = Field(description="After which the job fails.", examples=[3])
    progress: JobProgressView | None = Field(description="Null before the job runs.")
    request_counts: RequestCountsView | None = Field(
        description="Of a batch; null for other kinds, and until they are known. In lists, as of the last progress."
    )
    error: JobErrorView | None = Field(
        description="Of a job that has failed, or of the last attempt at one that is queued again."
    )
    created_at_ms: Int64 = Field(description="Unix time in milliseconds.", examples=[_TIME_MS])
    started_at_ms: Int64 | None = Field(description="When the last attempt began, in milliseconds.")
    finished_at_ms: Int64 | None = Field(description="When the job reached its last state, in milliseconds.")
    expires_at_ms: Int64 | None = Field(
        description="When a queued job expires, or a finished one is removed with its result, in milliseconds."
    )
    result: ClassificationView | None = Field(
        description="Of a classification that has succeeded, unless it is long; see `result_url`. Null in lists."
    )
    result_url: str | None = Field(description="Path of the result of a job that has succeeded.")
    output_url: str | None = Field(description="Path of the results of a batch that has ended, as JSONL.")
    errors_url: str | None = Field(description="Path of the errors of a batch that has ended, as JSONL.")
    events_url: str = Field(description="Path of the job's events.", examples=[f"/jobs/{_JOB_ID}/events"])


class JobListView(View):
    """A page of jobs, newest first."""

    object: Literal["list"] = Field(default="list", description="Type of this object.")
    data: list[JobView] = Field(description="The jobs.")
    has_more: bool = Field(description="Whether there are further jobs.")
    first_id: str | None = Field(description="Id of the first job; null if there is none.")
    last_id: str | None = Field(description="Id of the last job, for `after`; null if there is none.")
