"""Searches among kept videos, backfills of labels, and re-encoding after a change of model."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response

from vidlex.service.bounds import DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE
from vidlex.service.errors import FeatureGenerationMissing, InvalidParameter, NotFound
from vidlex.service.http.caller import client_of
from vidlex.service.http.context import Context, VocabularyOfRequest, context_of
from vidlex.service.http.job_submission import idempotency_of, store_job, submitted_response, webhook_of
from vidlex.service.http.openapi.document import json_body
from vidlex.service.http.openapi.headers import NAMESPACE_PARAMETER, header_refs
from vidlex.service.http.responses import json_response
from vidlex.service.jobs.records import Job, NewJob
from vidlex.service.models.served_model import Vocabulary
from vidlex.service.retagging.backfill import BackfillParams, labels_since, unknown_labels
from vidlex.service.retagging.reencode import ReencodeParams
from vidlex.service.retagging.search import SearchQuery, VideoFilters
from vidlex.service.routes.job_views import job_view
from vidlex.service.routes.jobs import IdempotencyKey
from vidlex.service.routes.video_search_views import generations_view, label_videos_view, search_view
from vidlex.service.schemas.base import validator_of
from vidlex.service.schemas.jobs import JobView
from vidlex.service.schemas.video_search import (
    BackfillBody,
    LabelVideosView,
    ReencodeBody,
    VideoGenerationsView,
    VideoSearchBody,
    VideoSearchView,
)

router = APIRouter(tags=["videos"])

_JOB_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "model": JobView,
        "description": "The finished job of an earlier request with this `Idempotency-Key`.",
        **header_refs("Location", "Idempotency-Replayed"),
    },
    202: header_refs("Location", "Idempotency-Replayed"),
}


@router.post(
    "/videos:search",
    response_model=VideoSearchView,
    response_description="The videos that were found.",
    summary="Search kept videos",
    description="Finds kept videos by any text, which is encoded as a label, by a stored label, by an example video "
    "or by a vector. What is kept, changed or removed counts at once.",
    openapi_extra=json_body(VideoSearchBody) | NAMESPACE_PARAMETER,
)
async def search_videos(request: Request, vocabulary: VocabularyOfRequest) -> Response:
    context = context_of(request)
    searching = context.require_parts().background.video_search
    body = await context.spool.read_json(request, validator_of(VideoSearchBody))
    filters = VideoFilters(
        body.filters.client_id, body.filters.metadata, body.filters.created_from_ms, body.filters.created_to_ms
    )
    query = SearchQuery(
        body.text,
        body.label_id,
        body.video_id,
        body.start_ms,
        body.end_ms,
        body.vector,
        limit=body.limit,
        min_score=body.min_score,
        filters=filters,
    )
    view = await context.while_connected(
        request,
        lambda requester: search_view(searching.search(vocabulary, query, requester), vocabulary, body.segments),
        context.search_threads,
    )
    return json_response(view)


@router.post(
    "/videos:backfill",
    status_code=202,
    response_model=JobView,
    response_description="The job, which is stored.",
    responses=_JOB_RESPONSES,
    summary="Apply labels to kept videos",
    description="Scores labels on all kept videos of the served model, as a job, without decoding a video. Its result "
    "says which videos each label gained and lost since its last backfill; `list_label_videos` has all of them.",
    openapi_extra=json_body(BackfillBody) | NAMESPACE_PARAMETER,
)
async def backfill_videos(
    request: Request, vocabulary: VocabularyOfRequest, idempotency_key: IdempotencyKey = None
) -> Response:
    context = context_of(request)
    sent, body = await context.spool.read_json(request, lambda value: (value, validator_of(BackfillBody)(value)))

    def work() -> tuple[Job, bool]:
        _require_features(context, vocabulary)
        revision = vocabulary.store.revision()
        if body.label_ids is not None:
            vocabulary.await_revision(revision, context.revision_wait_seconds)
            _require_labels(vocabulary, body.label_ids)
        params = BackfillParams(body.label_ids, body.since_revision, body.min_score, revision)
        new = NewJob(
            kind="backfill",
            namespace=vocabulary.namespace,
            client=client_of(request),
            params=params.as_json(),
            metadata=body.metadata,
            webhook=webhook_of(context, vocabulary.namespace, body.webhook),
        )
        return store_job(context, new, idempotency_of(idempotency_key, ["backfill", sent]))

    if body.since_revision is not None:
        await _require_few_labels(request, vocabulary, body.since_revision)
    job, is_new = await context.in_label_thread(request, work)
    return submitted_response(request, job_view(job), is_new=is_new)


@router.post(
    "/videos:reencode",
    status_code=202,
    response_model=JobView,
    response_description="The job, which is stored.",
    responses=_JOB_RESPONSES,
    summary="Re-encode kept videos",
    description="Reads kept videos without features of the served model again from their URIs and encodes them, as a "
    "job. Its result counts those whose URI is not known or cannot be read.",
    openapi_extra=json_body(ReencodeBody) | NAMESPACE_PARAMETER,
)
async def reencode_videos(
    request: Request, vocabulary: VocabularyOfRequest, idempotency_key: IdempotencyKey = None
) -> Response:
    context = context_of(request)
    sent, body = await context.spool.read_json(request, lambda value: (value, validator_of(ReencodeBody)(value)))

    def work() -> tuple[Job, bool]:
        if body.video_ids is not None:
            _require_videos(context, vocabulary.namespace, body.video_ids)
        params = ReencodeParams(vocabulary.facts.fingerprint, body.video_ids)
        new = NewJob(
            kind="reencode",
            namespace=vocabulary.namespace,
            client=client_of(request),
            params=params.as_json(),
            metadata=body.metadata,
            webhook=webhook_of(context, vocabulary.namespace, body.webhook),
        )
        return store_job(context, new, idempotency_of(idempotency_key, ["reencode", sent]))

    job, is_new = await context.in_label_thread(request, work)
    return submitted_response(request, job_view(job), is_new=is_new)


@router.get(
    "/videos:generations",
    response_model=VideoGenerationsView,
    response_description="The models.",
    summary="Get the models of kept videos",
    description="Counts the kept videos that have features of each model, and those that need to be re-encoded.",
    openapi_extra=NAMESPACE_PARAMETER,
)
async def get_video_generations(request: Request, vocabulary: VocabularyOfRequest) -> Response:
    context = context_of(request)
    videos = context.require_parts().background.kept_videos
    served = vocabulary.facts.fingerprint
    view = await context.while_connected(
        request,
        lambda requester: generations_view(videos, vocabulary.namespace, served, requester),
        context.search_threads,
    )
    return json_response(view)


@router.get(
    "/labels/{label_id}/videos",
    response_model=LabelVideosView,
    response_description="A page of videos.",
    summary="List a label's videos",
    description="Lists the kept videos that a label matches, as of its last backfill, with the stretch of the highest "
    "score. 404 if there was none.",
    openapi_extra=NAMESPACE_PARAMETER,
)
async def list_label_videos(
    request: Request,
    vocabulary: VocabularyOfRequest,
    label_id: Annotated[str, Path(description="Id of the label.", examples=["lbl_000000020000wn88xex5bvdb"])],
    *,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE_SIZE, description="Videos per page.")] = DEFAULT_PAGE_SIZE,
    after: Annotated[
        str | None,
        Query(
            max_length=100, description="The `last_id` of the previous page.", examples=["vid_01jq5xk9y2abcdefghjkmnpq"]
        ),
    ] = None,
    change: Annotated[
        str | None,
        Query(pattern="^(gained|lost)$", description="Only videos that were gained, or those that were lost."),
    ] = None,
) -> Response:
    context = context_of(request)
    background = context.require_parts().background

    def work() -> LabelVideosView:
        vocabulary.store.get(label_id)  # raises NotFound
        found = background.label_matches.read(vocabulary.namespace, label_id)
        if found is None:
            raise NotFound("The label has not been applied to the kept videos; POST /videos:backfill does that")
        return label_videos_view(
            background.kept_videos, vocabulary.namespace, found, limit=limit, after_id=after, change=change
        )

    return json_response(await context.in_label_thread(request, work))


# --- checks before a job


def _require_features(context: Context, vocabulary: Vocabulary) -> None:
    """Raises FeatureGenerationMissing if there are kept videos, but none of the served model."""
    generations = context.require_parts().background.kept_videos.generations(vocabulary.namespace)
    if generations and not generations.get(vocabulary.facts.fingerprint):
        raise FeatureGenerationMissing


async def _require_few_labels(request: Request, vocabulary: Vocabulary, since_revision: int) -> None:
    """Raises InvalidParameter if more labels are newer than a job takes."""
    context = context_of(request)
    await context.while_connected(
        request,
        lambda requester: labels_since(vocabulary, since_revision, check=requester.check),
        context.search_threads,
    )


def _require_labels(vocabulary: Vocabulary, label_ids: list[str]) -> None:
    """Raises InvalidParameter for labels that do not exist."""
    unknown = unknown_labels(vocabulary, label_ids)
    if unknown:
        problems = [
            {"pointer": f"/label_ids/{i}", "detail": "there is no such label"}
            for i, label_id in enumerate(label_ids)
            if label_id in unknown
        ]
        raise InvalidParameter("Some label_ids do not exist", errors=problems[:100])


def _require_videos(context: Context, namespace: str, video_ids: list[str]) -> None:
    """Raises InvalidParameter for videos that are not kept."""
    found = {video.id for video in context.require_parts().background.kept_videos.get_many(namespace, video_ids)}
    problems = [
        {"pointer": f"/video_ids/{i}", "detail": "there is no such video"}
        for i, video_id in enumerate(video_ids)
        if video_id not in found
    ]
    if problems:
        raise InvalidParameter("Some video_ids do not exist", errors=problems[:100])
