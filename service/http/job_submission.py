"""A request that becomes a job: checked, durable, and only then answered."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace

from fastapi import Request
from starlette.responses import Response

from vidlex.service.errors import InvalidParameter, StoreUnavailable, VidlexError
from vidlex.service.http.caller import client_of, require_write
from vidlex.service.http.context import Context
from vidlex.service.http.multipart_video import Upload
from vidlex.service.http.responses import json_response
from vidlex.service.jobs.records import FINAL_STATES, Job, JobInput, NewJob
from vidlex.service.jobs.store import IdempotencyOf
from vidlex.service.schemas.jobs import JobOptionsBody, JobView, JobWebhookBody
from vidlex.service.schemas.video_search import BackfillWebhookBody
from vidlex.service.webhooks.events import WebhookTarget


@dataclass(frozen=True)
class Submission:
    """``sent``: the parsed JSON of the request, which its repetitions have too. ``url`` or ``upload`` is its input."""

    namespace: str
    options: JobOptionsBody
    sent: object
    url: str | None = None
    upload: Upload | None = None
    idempotency_key: str | None = None


async def submit(request: Request, context: Context, submission: Submission) -> tuple[Job, bool]:
    """The job, which is durable, and whether it is new and not that of an earlier request.

    Raises Forbidden, InvalidParameter, UrlRefused, WebhookSecretMissing, Overloaded, ShareExceeded, ByteQuotaExceeded,
    StorageFull and IdempotencyKeyReused.
    """
    client = client_of(request)
    if submission.options.params.keep:
        require_write(request, "Keeping a video")
    return await context.in_label_thread(request, lambda: _submit(context, submission, client))


def submitted_response(request: Request, view: JobView, *, is_new: bool) -> Response:
    """202, or 200 for a repetition whose job is finished."""
    prefix = "/v1" if request.url.path.startswith("/v1/") else ""
    headers = {"Location": f"{prefix}/jobs/{view.id}"} | ({} if is_new else {"Idempotency-Replayed": "true"})
    return json_response(view, 200 if view.state in FINAL_STATES else 202, headers)


def store_job(context: Context, new: NewJob, idempotency: IdempotencyOf | None) -> tuple[Job, bool]:
    """As ``submit``, of a job whose request is checked; its limits are those of the service."""
    background = context.require_parts().background
    limits = background.job_limits
    new = replace(
        new,
        max_attempts=limits.max_attempts,
        timeout_seconds=limits.timeout_of(new.kind),
        queue_seconds=limits.queue_seconds,
        keep_seconds=limits.keep_seconds,
    )
    job, is_new = background.jobs.submit(new, idempotency=idempotency)
    if is_new:
        background.job_runner.wake()
    return job, is_new


def idempotency_of(key: str | None, sent: object) -> IdempotencyOf | None:
    """``sent``: JSON that only repetitions of the request have too."""
    if key is None:
        return None
    return IdempotencyOf(key, hashlib.sha256(json.dumps(sent, sort_keys=True).encode()).hexdigest())


def webhook_of(
    context: Context, namespace: str, body: JobWebhookBody | BackfillWebhookBody | None
) -> WebhookTarget | None:
    """Raises UrlRefused, WebhookSecretMissing."""
    if body is None:
        return None
    background = context.require_parts().background
    background.webhook_policy.check(body.url)
    background.webhooks.require_secret(namespace)
    return WebhookTarget(body.url, tuple(body.events), body.cloud_events)


def _submit(context: Context, submission: Submission, client: str) -> tuple[Job, bool]:
    background = context.require_parts().background
    options = submission.options
    if options.params.deadline_ms is not None:
        problem = {"pointer": "/params/deadline_ms", "detail": "a job has no deadline; cancel it instead"}
        raise InvalidParameter("A job has no deadline_ms; cancel it instead", errors=[problem])
    upload_sha256 = None if submission.upload is None else submission.upload.sha256
    idempotency = idempotency_of(submission.idempotency_key, {"body": submission.sent, "file": upload_sha256})
    source: JobInput | None = None
    if submission.url is not None:
        source = background.job_sources.check(submission.url, is_batch=options.kind == "batch")
    webhook = webhook_of(context, submission.namespace, options.webhook)
    if submission.upload is not None:
        upload = submission.upload
        source = background.job_files.adopt(
            upload.path, client=client, sha256=upload.sha256, num_bytes=upload.num_bytes
        )
    new = NewJob(
        kind=options.kind,
        namespace=submission.namespace,
        client=client,
        params=options.params.model_dump(mode="json", exclude_unset=True),
        input=source,
        priority=options.priority,
        metadata=options.metadata,
        webhook=webhook,
    )
    try:
        job, is_new = store_job(context, new, idempotency)
    except StoreUnavailable:  # the job may be stored nevertheless; a sweep removes the file of one that is not
        raise
    except VidlexError:
        _drop(context, source)
        raise
    if not is_new:
        _drop(context, source)
    return job, is_new


def _drop(context: Context, source: JobInput | None) -> None:
    if source is not None:
        context.require_parts().background.job_files.remove(source)
