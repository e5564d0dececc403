"""/jobs: work that is acknowledged first and done later."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Request
from starlette.responses import Response

from vidlex.service.bounds import DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE
from vidlex.service.errors import JobConflict
from vidlex.service.http.caller import client_of, require_write
from vidlex.service.http.conditional import is_not_modified
from vidlex.service.http.context import Context, context_of, namespace_of
from vidlex.service.http.disconnect import ClientLeft, watch_connection
from vidlex.service.http.job_events import wait_until_final
from vidlex.service.http.job_submission import Submission, submit, submitted_response
from vidlex.service.http.openapi.document import schema_ref
from vidlex.service.http.openapi.headers import NAMESPACE_PARAMETER, header_refs
from vidlex.service.http.path_ids import with_ids
from vidlex.service.http.preferences import wait_seconds_of
from vidlex.service.jobs.records import FINAL_STATES, Job
from vidlex.service.labels.store.idempotency import MAX_KEY_CHARS
from vidlex.service.routes.job_views import dump, etag_of, job_view, wants_result
from vidlex.service.schemas.base import validate
from vidlex.service.schemas.jobs import (
    JobKindName,
    JobListView,
    JobStateName,
    JobView,
    NewJobBody,
    UploadedJobBody,
)

router = APIRouter(tags=["jobs"])

MAX_WAIT_SECONDS = 60
_RETRIED_STATES = FINAL_STATES - {"succeeded"}
_EXAMPLE_ID = "job_01jq5xk9y2abcdefghjkmnpq"
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": schema_ref(NewJobBody)},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {
                            "type": "string",
                            "format": "binary",
                            "description": "The video, or the JSONL file of a batch.",
                        },
                        "params": {**schema_ref(UploadedJobBody), "description": "The job."},
                    },
                },
                "encoding": {"params": {"contentType": "application/json"}},
            },
        },
    }
}

JobId = Annotated[str, Path(description="Id of the job.", examples=[_EXAMPLE_ID])]
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        description="Makes one job, however often the request is sent with this key, as long as the job is kept. "
        "Printable ASCII.",
        examples=["order-17"],
        json_schema_extra={"minLength": 1, "maxLength": MAX_KEY_CHARS},
    ),
]


@router.post(
    "/jobs",
    status_code=202,
    response_model=JobView,
    response_description="The job, which is stored.",
    responses={
        200: {
            "model": JobView,
            "description": "The finished job of an earlier request with this `Idempotency-Key`.",
            **header_refs("Location", "Idempotency-Replayed"),
        },
        202: header_refs("Location", "Idempotency-Replayed"),
    },
    summary="Submit a job",
    description="Accepts a video, or a file that lists videos, and answers before they are classified. The file is "
    "uploaded, or read from a URL when the job runs. What is answered with 202 is not lost.",
    openapi_extra=_BODY | NAMESPACE_PARAMETER,
)
async def create_job(request: Request, idempotency_key: IdempotencyKey = None) -> Response:
    context = context_of(request)
    context.require_parts()
    namespace = namespace_of(request)
    if request.headers.get("content-type", "").lower().startswith("multipart/"):
        # No video waits for a decoder during the upload: it takes no place of those that do.
        async with context.spool.receive(request) as upload:
            sent = {} if upload.params is None else upload.params
            options = validate(UploadedJobBody, sent)
            context.metrics.upload_bytes.inc(upload.num_bytes)
            submission = Submission(namespace, options, sent, upload=upload, idempotency_key=idempotency_key)
            job, is_new = await submit(request, context, submission)
        return submitted_response(request, job_view(job), is_new=is_new)
    sent, body = await context.spool.read_json(request, lambda value: (value, validate(NewJobBody, value)))
    submission = Submission(namespace, body, sent, url=body.input.url, idempotency_key=idempotency_key)
    job, is_new = await submit(request, context, submission)
    return submitted_response(request, job_view(job), is_new=is_new)


@router.get(
    "/jobs",
    response_model=JobListView,
    response_description="A page of jobs.",
    summary="List jobs",
    description="Lists the jobs of the namespace, newest first. Filters can be combined.",
    openapi_extra=NAMESPACE_PARAMETER,
)
async def list_jobs(
    request: Request,
    *,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE_SIZE, description="Jobs per page.")] = DEFAULT_PAGE_SIZE,
    after: Annotated[
        str | None,
        Query(max_length=100, description="The `last_id` of the previous page.", examples=[_EXAMPLE_ID]),
    ] = None,
    state: Annotated[JobStateName | None, Query(description="Only jobs in this state.")] = None,
    kind: Annotated[JobKindName | None, Query(description="Only jobs of this kind.")] = None,
    dead: Annotated[
        bool | None, Query(description="Only jobs that are dead letters, or only those that are not.")
    ] = None,
) -> Response:
    context = context_of(request)
    jobs = context.require_parts().background.jobs
    namespace = namespace_of(request)

    def work() -> str:
        page = jobs.page(
            namespace,
            limit=limit,
            after_id=after,
            states=[] if state is None else [state],
            kinds=[] if kind is None else [kind],
            is_dead=dead,
        )
        return dump(
            JobListView(
                data=[job_view(job) for job in page.data],
                has_more=page.has_more,
                first_id=page.data[0].id if page.data else None,
                last_id=page.data[-1].id if page.data else None,
            )
        )

    return _json(await context.in_label_thread(request, work))


@router.get(
    with_ids("/jobs/{job_id}"),
    response_model=JobView,
    response_description="The job.",
    responses={
        200: header_refs("ETag", "Preference-Applied"),
        304: {"description": "The job has one of the tags in `If-None-Match`.", **header_refs("ETag")},
    },
    summary="Get a job",
    description="Returns a job, with its result if that is short. With `Prefer: wait=N` the answer comes when the job "
    f"is finished, or after N seconds, at most {MAX_WAIT_SECONDS}.",
    openapi_extra=NAMESPACE_PARAMETER,
)
async def get_job(
    request: Request,
    job_id: JobId,
    if_none_match: Annotated[
        str | None,
        Header(
            alias="If-None-Match",
            description="Entity tags, or `*`. 304 without a body if the job has one of them.",
            examples=['"5f2b7c0a9d1e4f6b8c3a7e21"'],
        ),
    ] = None,
    prefer: Annotated[
        str | None,
        Header(alias="Prefer", description="`wait=N`: seconds to wait for the end of the job.", examples=["wait=30"]),
    ] = None,
) -> Response:
    context = context_of(request)
    jobs = context.require_parts().background.jobs
    namespace = namespace_of(request)
    job = await context.in_label_thread(request, lambda: jobs.get(namespace, job_id))
    headers = {}
    if prefer is not None and (seconds := wait_seconds_of(request, MAX_WAIT_SECONDS)):
        headers["Preference-Applied"] = f"wait={seconds}"
        job = await _wait(request, context, job, seconds)

    def work() -> tuple[str, str]:
        view = job_view(job, jobs.result(namespace, job_id) if wants_result(job) else None)
        body = dump(view)
        return body, etag_of(body)

    body, etag = await context.in_label_thread(request, work)
    headers["ETag"] = f'"{etag}"'
    if is_not_modified(etag, if_none_match):
        return Response(status_code=304, headers=headers)
    return _json(body, headers=headers)


async def _wait(request: Request, context: Context, job: Job, seconds: int) -> Job:
    background = context.require_parts().background

    async def get() -> Job:
        return await context.in_label_thread(request, lambda: background.jobs.get(job.namespace, job.id))

    if job.state in FINAL_STATES:
        return job
    async with watch_connection(request) as connection:
        with context.event_streams.hold(client_of(request)), connection.waiting:
            return await wait_until_final(background.job_events, job, seconds, get, context.is_stopping)
        raise ClientLeft


@router.delete(
    with_ids("/jobs/{job_id}"),
    response_model=JobView,
    response_description="The job is finished: cancelled now, or it was finished before.",
    responses={202: {"model": JobView, "description": "The job runs, and its worker has been asked to stop."}},
    summary="Cancel a job",
    description="Cancels a job that is not finished. Repeating the request has no effect.",
    openapi_extra=NAMESPACE_PARAMETER,
)
async def cancel_job(request: Request, job_id: JobId) -> Response:
    context = context_of(request)
    background = context.require_parts().background
    jobs = background.jobs
    namespace = namespace_of(request)

    def work() -> Job:
        _require_scope_for(request, jobs.get(namespace, job_id))
        job = jobs.cancel(namespace, job_id)
        background.job_runner.wake()
        return job

    job = await context.in_label_thread(request, work)
    background.job_runner.wake()
    return _json(dump(job_view(job)), status=200 if job.state in FINAL_STATES else 202)


@router.post(
    with_ids("/jobs/{job_id}:retry"),
    status_code=202,
    response_model=JobView,
    response_description="The job is queued again.",
    summary="Retry a job",
    description="Queues a job again that has failed, was cancelled or has expired. 409 for other states, and if its "
    "upload is gone.",
    openapi_extra=NAMESPACE_PARAMETER,
)
async def retry_job(request: Request, job_id: JobId) -> Response:
    context = context_of(request)
    background = context.require_parts().background
    jobs = background.jobs
    namespace = namespace_of(request)

    def work() -> Job:
        job = jobs.get(namespace, job_id)
        _require_scope_for(request, job)
        if job.state in _RETRIED_STATES and job.input is not None and background.job_files.is_gone(job.input):
            raise JobConflict("The upload of this job is gone; submit it again")
        job = jobs.retry(namespace, job_id)
        background.job_runner.wake()
        return job

    return _json(dump(job_view(await context.in_label_thread(request, work))), status=202)


def _require_scope_for(request: Request, job: Job) -> None:
    """A key that may only classify does not touch jobs that change what is kept. Raises Forbidden."""
    if job.kind not in ("classify", "batch"):
        require_write(request, f"Changing a job of the kind {job.kind}")
    if job.params.get("keep"):
        require_write(request, "Changing a job that keeps videos")


def _json(body: str, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(body, status_code=status, headers=headers, media_type="application/json")
