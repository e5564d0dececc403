"""POST /classify: a video file to its ranked labels."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, Header, Request
from starlette.responses import Response

from vidlex.service.classification.classifier import VideoClassifier
from vidlex.service.errors import DeadlineExceeded, Overloaded
from vidlex.service.http.context import Context, client_of, context_of, namespace_of, using_vocabulary
from vidlex.service.http.uploads import Upload
from vidlex.service.models.served_model import Vocabulary
from vidlex.service.schemas.base import ProblemView, validate
from vidlex.service.schemas.classify import ClassificationView, ClassifyParams
from vidlex.service.tracing import past_stage

router = APIRouter(tags=["classify"], responses={"default": {"model": ProblemView, "description": "problem+json"}})

_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {"type": "string", "format": "binary", "description": "the video"},
                        "params": ClassifyParams.model_json_schema(),
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
        description="as deadline_ms; known before the video is sent, it saves sending one that would be too late",
    ),
]


@router.post("/classify", response_model=ClassificationView, summary="What is in this video?", openapi_extra=_BODY)
async def classify(request: Request, deadline_ms: Deadline = None) -> Response:
    context = context_of(request)
    # Before the upload: a service that is not ready, or full, asks for no bytes.
    videos = context.require_parts().videos
    namespace_of(request)
    if deadline_ms is not None:
        context.admission.check_deadline(deadline_ms / 1000)
    started = monotonic()
    with context.admission.enter(client_of(request)) as entry:
        async with context.spool.receive(request) as upload:
            params = validate(ClassifyParams, {} if upload.params is None else upload.params)
            context.metrics.upload_bytes.inc(upload.num_bytes)
            seconds = monotonic() - started
            context.metrics.observe("upload", seconds)
            past_stage("upload", started, seconds, bytes=upload.num_bytes)
            deadlines = [ms for ms in (deadline_ms, params.deadline_ms) if ms is not None]
            wait_seconds = context.request_timeout_seconds
            if deadlines:
                wait_seconds = min(wait_seconds, min(deadlines) / 1000 - (monotonic() - started))
                context.admission.check_deadline(wait_seconds)
            ends_at = monotonic() + wait_seconds
            with entry.admit():
                async with using_vocabulary(request) as vocabulary, _until_client_leaves(request) as gone:
                    try:
                        answer = await anyio.to_thread.run_sync(
                            lambda: _answer(
                                context, videos, vocabulary, upload, params=params, gone=gone, ends_at=ends_at
                            ),
                            limiter=context.video_threads,
                        )
                    except Overloaded:
                        if not gone.is_set():
                            if deadlines and monotonic() - started >= min(deadlines) / 1000:
                                raise DeadlineExceeded("The deadline was over before the answer was there") from None
                            raise
                        return Response(status_code=499)  # nobody reads it; the log and the count tell it
    return Response(answer, media_type="application/json")


def _answer(
    context: Context,
    videos: VideoClassifier,
    vocabulary: Vocabulary,
    upload: Upload,
    *,
    params: ClassifyParams,
    gone: threading.Event,
    ends_at: float,
) -> str:
    """In a thread: the work and also the writing of what may be a long answer. Loading labels has taken of its time."""
    view = videos.classify(
        upload.path,
        params,
        vocabulary,
        sha256=upload.sha256,
        timeout_seconds=ends_at - monotonic(),
        cancelled=gone,
    )
    return view.model_dump_json()


@asynccontextmanager
async def _until_client_leaves(request: Request) -> AsyncIterator[threading.Event]:
    """An event that is set when the client hangs up, so that nobody works on for nobody."""
    gone = threading.Event()

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        gone.set()

    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            yield gone
            tasks.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise (group.exceptions[0] if len(group.exceptions) == 1 else group) from None
