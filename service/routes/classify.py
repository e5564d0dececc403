"""POST /classify."""

from __future__ import annotations

from time import monotonic
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request
from starlette.responses import Response

from vidlex.service.errors import DeadlineExceeded, Overloaded
from vidlex.service.http.caller import client_of
from vidlex.service.http.context import context_of, namespace_of, using_vocabulary
from vidlex.service.http.disconnect import ClientLeft, watch_connection
from vidlex.service.http.openapi.document import schema_ref
from vidlex.service.http.openapi.headers import NAMESPACE_PARAMETER
from vidlex.service.http.threads import run_in_thread
from vidlex.service.routes.classification_views import classification_view, classify_options
from vidlex.service.schemas.base import validate
from vidlex.service.schemas.classify import ClassificationView, ClassifyParams
from vidlex.service.sharing.requester import Requester
from vidlex.service.telemetry.tracing import record_stage

router = APIRouter(tags=["classify"])

_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {
                            "type": "string",
                            "format": "binary",
                            "description": "The video. Its format is detected from the content; the service's "
                            "documents list what is read.",
                        },
                        "params": {**schema_ref(ClassifyParams), "description": "Options."},
                    },
                },
                "encoding": {"params": {"contentType": "application/json"}},
            }
        },
    }
}

Deadline = Annotated[
    int | None,
    Header(
        alias="X-Vidlex-Deadline-Ms",
        ge=1,
        description="As `deadline_ms`, but checked before the video is received.",
        examples=[5000],
    ),
]


@router.post(
    "/classify",
    response_model=ClassificationView,
    response_description="The labels of the video.",
    summary="Classify a video",
    description="Scores the labels of the vocabulary, or `candidate_labels`, on a video.",
    openapi_extra=_BODY | NAMESPACE_PARAMETER,
)
async def classify_video(request: Request, deadline_ms: Deadline = None) -> Response:
    context = context_of(request)
    # Checked before the upload, so that a request that cannot succeed is refused without reading the video.
    videos = context.require_parts().videos
    namespace_of(request)
    client = client_of(request)
    if deadline_ms is not None:
        context.admission.check_deadline(client, deadline_ms / 1000)
    started = monotonic()
    with context.admission.enter(client) as entry:
        async with context.spool.receive(request) as upload:
            params = validate(ClassifyParams, {} if upload.params is None else upload.params)
            context.metrics.upload_bytes.inc(upload.num_bytes)
            seconds = monotonic() - started
            context.metrics.observe("upload", seconds)
            record_stage("upload", started, seconds, bytes=upload.num_bytes)
            deadlines = [ms for ms in (deadline_ms, params.deadline_ms) if ms is not None]
            wait_seconds = context.request_timeout_seconds
            if deadlines:
                wait_seconds = min(wait_seconds, min(deadlines) / 1000 - (monotonic() - started))
                context.admission.check_deadline(client, wait_seconds)
            ends_at = monotonic() + wait_seconds
            with entry.admit():
                async with using_vocabulary(request) as vocabulary, watch_connection(request) as connection:
                    requester = Requester(client, ends_at, connection.has_left)

                    def work() -> str:
                        result = videos.classify(
                            upload.path,
                            classify_options(params),
                            vocabulary,
                            sha256=upload.sha256,
                            requester=requester,
                        )
                        service = f"vidlex {request.app.version}"
                        view = classification_view(result, params, vocabulary, service=service)
                        return view.model_dump_json()

                    try:
                        body = await run_in_thread(work, context.video_threads)
                    except Overloaded:
                        if connection.has_left.is_set():
                            raise ClientLeft from None
                        if deadlines and monotonic() - started >= min(deadlines) / 1000:
                            raise DeadlineExceeded("The deadline passed before the result was complete") from None
                        raise
    return Response(body, media_type="application/json")
