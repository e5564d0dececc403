"""Results of jobs in the formats of other programs."""

from __future__ import annotations

import io
import json
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response

from vidlex.service.errors import JobConflict
from vidlex.service.exports.label_studio import task
from vidlex.service.exports.stretch_rows import write_rows
from vidlex.service.exports.tagged import TaggedVideo, from_json
from vidlex.service.exports.webvtt import webvtt
from vidlex.service.http.context import context_of, namespace_of
from vidlex.service.http.openapi.headers import NAMESPACE_PARAMETER
from vidlex.service.routes.job_views import without_query

router = APIRouter(tags=["jobs"])

ExportName = Literal["webvtt", "csv", "label-studio"]
MEDIA_TYPES: dict[ExportName, str] = {
    "webvtt": "text/vtt; charset=utf-8",
    "csv": "text/csv; charset=utf-8",
    "label-studio": "application/json",
}


@router.get(
    "/jobs/{job_id}/export",
    response_class=Response,
    responses={
        200: {
            "description": "The matched labels.",
            "content": {"*/*": {"schema": {"type": "string"}}},
        }
    },
    summary="Export a result",
    description="The result of a job of kind `classify` for other programs: `webvtt`, subtitles with a cue per stretch "
    "of a matched label; `csv`, a row per stretch; `label-studio`, a list with one task and its predictions. 409 while "
    "the job has no such result.",
    openapi_extra=NAMESPACE_PARAMETER,
)
async def export_job(
    request: Request,
    job_id: Annotated[str, Path(description="Id of the job.", examples=["job_01jq5xk9y2abcdefghjkmnpq"])],
    kind: Annotated[ExportName, Query(alias="format", description="Format of the answer.")],
    uri: Annotated[
        str | None,
        Query(
            max_length=2048,
            description="Name of the video in the answer; null: the job's URL without its query, else its digest.",
        ),
    ] = None,
) -> Response:
    context = context_of(request)
    jobs = context.require_parts().background.jobs
    namespace = namespace_of(request)

    def work() -> str:
        job = jobs.get(namespace, job_id)
        result = jobs.result(namespace, job_id) if job.state == "succeeded" else None
        if job.kind != "classify" or result is None:
            raise JobConflict("Only a job of kind classify that has succeeded can be exported")
        known = without_query(job.input.ref) if job.input is not None and job.input.kind == "url" else None
        return _text(kind, from_json(json.loads(result), uri=uri or known))

    return Response(await context.in_label_thread(request, work), media_type=MEDIA_TYPES[kind])


def _text(kind: ExportName, video: TaggedVideo) -> str:
    if kind == "webvtt":
        return "".join(webvtt(video))
    if kind == "label-studio":
        return json.dumps([task(video)], ensure_ascii=False)
    file = io.StringIO(newline="")
    write_rows(file, [video])
    return file.getvalue()
