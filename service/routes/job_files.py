"""What a job leaves behind: its result, the files of a batch, and its events while they happen."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from starlette.responses import FileResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from vidlex.service.errors import JobConflict, Stopping
from vidlex.service.http.caller import client_of
from vidlex.service.http.context import context_of, namespace_of
from vidlex.service.http.job_events import MEDIA_TYPE, parse_event_id, stream
from vidlex.service.http.methods import IS_HEAD_KEY
from vidlex.service.http.openapi.document import schema_ref
from vidlex.service.http.openapi.headers import NAMESPACE_PARAMETER
from vidlex.service.http.path_ids import with_ids
from vidlex.service.http.problems import AT_END_KEY
from vidlex.service.jobs.batch.outputs import BatchFileKind, published_file
from vidlex.service.jobs.records import FINAL_STATES, Job
from vidlex.service.routes.jobs import JobId
from vidlex.service.schemas.classify import ClassificationView

router = APIRouter(tags=["jobs"])

JSON_LINES = "application/jsonl"
_RESULT: dict[str, Any] = {
    "description": "Of a classification, that of `classify_video`; of other kinds, an object with counts.",
    "content": {"application/json": {"schema": {"anyOf": [schema_ref(ClassificationView), {"type": "object"}]}}},
}


class _WholeFile(FileResponse):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(name, value) for name, value in scope["headers"] if name not in (b"range", b"if-range")]
        await super().__call__({**scope, "headers": headers}, receive, send)


def _file(description: str) -> dict[int | str, dict[str, Any]]:
    return {200: {"description": description, "content": {JSON_LINES: {"schema": {"type": "string"}}}}}


@router.get(
    with_ids("/jobs/{job_id}/result"),
    response_class=Response,
    responses={200: _RESULT},
    summary="Get the result of a job",
    description="Returns the result of a job that has succeeded; 409 before.",
    openapi_extra=NAMESPACE_PARAMETER,
)
async def get_job_result(request: Request, job_id: JobId) -> Response:
    context = context_of(request)
    jobs = context.require_parts().background.jobs
    namespace = namespace_of(request)

    def work() -> bytes:
        job = jobs.get(namespace, job_id)
        result = jobs.result(namespace, job_id) if job.state == "succeeded" else None
        if result is None:
            raise JobConflict(f"The job has no result; its state is {job.state}")
        return result

    return Response(await context.in_label_thread(request, work), media_type="application/json")


@router.get(
    with_ids("/jobs/{job_id}/output"),
    response_class=FileResponse,
    responses=_file("A line of JSON per video with a result."),
    summary="Get the results of a batch",
    description="Returns the results of a batch that has ended, as JSONL; 409 before, and for jobs of other kinds.",
    openapi_extra=NAMESPACE_PARAMETER,
)
async def get_job_output(request: Request, job_id: JobId) -> Response:
    return await _batch_file(request, job_id, "output")


@router.get(
    with_ids("/jobs/{job_id}/errors"),
    response_class=FileResponse,
    responses=_file("A line of JSON per video without a result."),
    summary="Get the errors of a batch",
    description="Returns the errors of a batch that has ended, as JSONL; 409 before, and for jobs of other kinds.",
    openapi_extra=NAMESPACE_PARAMETER,
)
async def get_job_errors(request: Request, job_id: JobId) -> Response:
    return await _batch_file(request, job_id, "errors")


async def _batch_file(request: Request, job_id: str, kind: BatchFileKind) -> Response:
    context = context_of(request)
    background = context.require_parts().background
    namespace = namespace_of(request)

    def work() -> FileResponse:
        job = background.jobs.get(namespace, job_id)
        if job.kind != "batch" or job.state not in FINAL_STATES:
            raise JobConflict(f"A {job.kind} job has no such file while its state is {job.state}")
        result = background.jobs.result(namespace, job_id)
        path = published_file(background.job_files.find_output_folder(job), kind, result)
        headers = {"Accept-Ranges": "none"}
        return _WholeFile(path, headers=headers, media_type=JSON_LINES, filename=f"{job.id}.{kind}.jsonl")

    return await context.in_label_thread(request, work)


@router.get(
    with_ids("/jobs/{job_id}/events"),
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "Server-Sent Events: each has an `id`, an `event` (`state`, `progress` or `labels`) and, as "
            "`data`, an object of JSON in one line.",
            "content": {MEDIA_TYPE: {"schema": {"type": "string"}}},
        },
        204: {"description": "The job is finished and all its events are known: there is no reason to connect again."},
    },
    summary="Follow a job",
    description="Sends the events of a job as they happen and those that were before, and ends behind the last one. A "
    "comment is sent every 15 seconds. After 15 minutes and when the service stops, the stream ends; with "
    "`Last-Event-ID` it goes on where it ended, as browsers do.",
    openapi_extra=NAMESPACE_PARAMETER,
)
async def stream_job_events(
    request: Request,
    job_id: JobId,
    after: Annotated[
        str | None,
        Query(max_length=40, description="Id of the last known event.", examples=["1796057582384-0"]),
    ] = None,
    last_event_id: Annotated[
        str | None,
        Header(alias="Last-Event-ID", description="As `after`, before which it goes.", examples=["1796057582384-0"]),
    ] = None,
) -> Response:
    context = context_of(request)
    background = context.require_parts().background
    namespace, client = namespace_of(request), client_of(request)
    known = parse_event_id(last_event_id or after, "Last-Event-ID" if last_event_id else "after")

    async def get() -> Job:
        return await context.in_label_thread(request, lambda: background.jobs.get(namespace, job_id))

    if (await get()).state in FINAL_STATES:
        new = await context.in_label_thread(request, lambda: background.jobs.events(namespace, job_id, known))
        if not new:
            return Response(status_code=204)
    if context.is_stopping():
        raise Stopping("The service is stopping; continue on another replica")
    headers = {"X-Accel-Buffering": "no"}  # of nginx, which would hold events back
    if request.scope.get(IS_HEAD_KEY):
        response = Response(headers=headers, media_type=MEDIA_TYPE)
        del response.headers["content-length"]
        return response
    request.scope[AT_END_KEY].enter_context(context.event_streams.hold(client))
    events = stream(background.job_events, job_id, known, get, context.is_stopping)
    return StreamingResponse(events, headers=headers, media_type=MEDIA_TYPE)
