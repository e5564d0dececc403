"""POST /classify."""

from __future__ import annotations

from functools import partial
from time import monotonic
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request
from starlette.responses import Response

from vidlex.service.errors import DeadlineExceeded, Overloaded
from vidlex.service.http.caller import client_of, require_write
from vidlex.service.http.context import context_of, namespace_of, using_vocabulary
from vidlex.service.http.disconnect import ClientLeft, watch_connection
from vidlex.service.http.job_submission import Submission, submit, submitted_response
from vidlex.service.http.openapi.document import schema_ref
from vidlex.service.http.openapi.headers import NAMESPACE_PARAMETER, header_refs
from vidlex.service.http.preferences import preferences_of
from vidlex.service.http.threads import run_in_thread
from vidlex.service.routes.job_views import job_view
from vidlex.service.schemas.base import validate
from vidlex.service.schemas.classify import ClassificationView, ClassifyParams
from vidlex.service.schemas.jobs import JobOptionsBody, JobView
from vidlex.service.sharing.requester import Requester
from vidlex.service.telemetry.tracing import record_stage
from vidlex.service.videos.keeping import Keeper, keep_classification
from vidlex.service.views.classification import classification_view, classify_options
from vidlex.service.views.keeping import keep_options

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
    responses={
        202: {
            "model": JobView,
            "description": "With `respond-async`: the job that classifies the video.",
            **header_refs("Location", "Preference-Applied"),
        }
    },
    summary="Classify a video",
    description="Scores the labels of the vocabulary, or `candidate_labels`, on a video. With `Prefer: respond-async` "
    "and without a deadline, the answer is a job.",
    openapi_extra=_BODY | NAMESPACE_PARAMETER,
)
async def classify_video(
    request: Request,
    deadline_ms: Deadline = None,
    prefer: Annotated[
        str | None,
        Header(
            alias="Prefer",
            description="`respond-async`: answer as soon as the video is stored, with a job.",
            examples=["respond-async"],
        ),
    ] = None,
) -> Response:
    context = context_of(request)
    if prefer is not None and deadline_ms is None and "respond-async" in preferences_of(request):
        return await _as_job(request)
    # Checked before the upload, so that a request that cannot succeed is refused without reading the video.
    videos = context.require_parts().videos
    kept_videos = context.require_parts().background.kept_videos
    namespace_of(request)
    client = client_of(request)
    if deadline_ms is not None:
        context.admission.check_deadline(client, deadline_ms / 1000)
    started = monotonic()
    with context.admission.enter(client) as entry:
        async with context.spool.receive(request) as upload:
            params = validate(ClassifyParams, {} if upload.params is None else upload.params)
            keep = keep_options(params)
            if keep is not None:
                require_write(request, "Keeping a video")
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
                        video_id = None
                        if keep is not None:
                            keeper = Keeper(
                                namespace=vocabulary.namespace,
                                client=client,
                                service=service,
                                frames_at=partial(videos.frames_at, upload.path, requester=requester),
                            )
                            options = classify_options(params)
                            video_id = keep_classification(kept_videos, result, options, keep, keeper).id
                        view = classification_view(result, params, vocabulary, service=service, video_id=video_id)
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


async def _as_job(request: Request) -> Response:
    context = context_of(request)
    context.require_parts()
    namespace = namespace_of(request)
    async with context.spool.receive(request) as upload:
        sent = {} if upload.params is None else upload.params
        options = JobOptionsBody(params=validate(ClassifyParams, sent))
        context.metrics.upload_bytes.inc(upload.num_bytes)
        job, is_new = await submit(request, context, Submission(namespace, options, sent, upload=upload))
    response = submitted_response(request, job_view(job), is_new=is_new)
    response.headers["Preference-Applied"] = "respond-async"
    return response
