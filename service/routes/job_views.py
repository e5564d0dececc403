from __future__ import annotations

import hashlib
import json

from pydantic import BaseModel, ValidationError

from vidlex.service.jobs.records import FINAL_STATES, Job, JobInput
from vidlex.service.schemas.classify import ClassificationView
from vidlex.service.schemas.jobs import (
    JobErrorView,
    JobInputView,
    JobProgressView,
    JobView,
    JobWebhookView,
    RequestCountsView,
)

MAX_INLINE_RESULT_BYTES = 256 << 10


def job_view(job: Job, result: bytes | None = None) -> JobView:
    """``result``: what is stored of a job that has succeeded."""
    path = f"/jobs/{job.id}"
    is_final = job.state in FINAL_STATES
    has_files = job.kind == "batch" and is_final
    return JobView(
        id=job.id,
        kind=job.kind,
        state=job.state,
        cancelling=job.is_cancelling,
        dead=job.is_dead,
        priority=job.priority,
        input=None if job.input is None else _input_view(job.input),
        metadata=dict(job.metadata),
        webhook=None
        if job.webhook is None
        else JobWebhookView(
            url=without_query(job.webhook.url),
            events=list(job.webhook.events),
            cloud_events=job.webhook.cloud_events,
        ),
        attempts=job.attempts,
        max_attempts=job.max_attempts,
        progress=None if job.progress is None else JobProgressView(**vars(job.progress)),
        request_counts=_request_counts(job, result),
        error=None if job.error is None else JobErrorView(code=job.error.code, detail=job.error.detail),
        created_at_ms=job.created_at_ms,
        started_at_ms=job.started_at_ms,
        finished_at_ms=job.finished_at_ms,
        expires_at_ms=job.kept_until_ms if is_final else job.queue_until_ms if job.state == "queued" else None,
        result=_inline(job, result),
        result_url=f"{path}/result" if job.state == "succeeded" else None,
        output_url=f"{path}/output" if has_files else None,
        errors_url=f"{path}/errors" if has_files else None,
        events_url=f"{path}/events",
    )


def etag_of(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()[:24]


def wants_result(job: Job) -> bool:
    """Whether the view has something of the result."""
    return job.kind in ("classify", "batch") and job.state == "succeeded"


def _inline(job: Job, result: bytes | None) -> ClassificationView | None:
    if result is None or len(result) > MAX_INLINE_RESULT_BYTES or job.kind != "classify":
        return None
    try:
        return ClassificationView.model_validate_json(result)
    except ValidationError:  # stored by another version; it is at its path
        return None


def _input_view(source: JobInput) -> JobInputView:
    url = without_query(source.ref) if source.kind == "url" else None
    return JobInputView(kind=source.kind, url=url, sha256=source.sha256, bytes=source.num_bytes)


def _request_counts(job: Job, result: bytes | None) -> RequestCountsView | None:
    if job.kind != "batch":
        return None
    if result is not None:
        return RequestCountsView.model_validate(json.loads(result)["request_counts"])
    progress = job.progress
    if progress is None or progress.unit != "videos":
        return None
    return RequestCountsView(
        total=progress.total, completed=progress.done - progress.num_failed, failed=progress.num_failed
    )


def without_query(url: str) -> str:
    """Queries of URLs may be secrets, such as the signature of a presigned URL."""
    return url.partition("?")[0]


def dump(view: BaseModel) -> str:
    return view.model_dump_json()
