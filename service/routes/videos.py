"""/videos: what was kept of videos by classifications with `keep`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response

from vidlex.service.bounds import DEFAULT_PAGE_SIZE, FINGERPRINT_PATTERN, MAX_CLIENT_ID_CHARS, MAX_PAGE_SIZE
from vidlex.service.errors import FeatureGenerationMissing, KeptVideoDamaged
from vidlex.service.http.context import context_of, namespace_of
from vidlex.service.http.openapi.headers import NAMESPACE_PARAMETER
from vidlex.service.http.responses import json_response
from vidlex.service.schemas.videos import (
    KeptVideoDetailView,
    KeptVideoListView,
    SegmentFeaturesView,
    VideoFeaturesView,
)
from vidlex.service.sharing.requester import Requester
from vidlex.service.videos.pages import VideoFilter
from vidlex.service.views.videos import kept_video_detail_view, kept_video_view

router = APIRouter(tags=["videos"])

_MAX_SHOWN_VECTORS = 256
_EXAMPLE_ID = "vid_01m8sa92dpz006bms3r0pj6t"

VideoId = Annotated[str, Path(description="Id of the kept video.", examples=[_EXAMPLE_ID])]
Fingerprint = Annotated[
    str | None,
    Query(pattern=f"^{FINGERPRINT_PATTERN}$", description="Of a model; default: the one that encoded it last."),
]
Time = Annotated[int | None, Query(ge=0, lt=2**50, json_schema_extra={"format": "int64"})]


@router.get(
    "/videos",
    response_model=KeptVideoListView,
    response_description="A page of kept videos.",
    summary="List kept videos",
    description="Lists the kept videos of the namespace, newest first. Filters can be combined. A page of videos with "
    "much metadata ends before `limit`, with `has_more`; so does one with `missing_fingerprint`, which may be empty, "
    "after 100,000 videos that have the features.",
    openapi_extra=NAMESPACE_PARAMETER,
)
async def list_videos(
    request: Request,
    *,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE_SIZE, description="Videos per page.")] = DEFAULT_PAGE_SIZE,
    after: Annotated[
        str | None,
        Query(max_length=100, description="The `last_id` of the previous page.", examples=[_EXAMPLE_ID]),
    ] = None,
    client_id: Annotated[
        str | None, Query(max_length=MAX_CLIENT_ID_CHARS, description="Only videos with your own id.")
    ] = None,
    sha256: Annotated[str | None, Query(pattern="^[0-9a-f]{64}$", description="Only videos with this content.")] = None,
    created_from_ms: Annotated[
        Time, Query(description="Only videos that were first kept at this time or later.")
    ] = None,
    created_to_ms: Annotated[
        Time, Query(description="Only videos that were first kept at this time or earlier.")
    ] = None,
    missing_fingerprint: Annotated[
        str | None,
        Query(
            pattern=f"^{FINGERPRINT_PATTERN}$",
            description="Only videos without readable features of this model, which need re-encoding.",
        ),
    ] = None,
) -> Response:
    context = context_of(request)
    kept = context.require_parts().background.kept_videos
    namespace = namespace_of(request)
    wanted = VideoFilter(client_id, sha256, created_from_ms, created_to_ms, missing_fingerprint)

    def work(requester: Requester) -> KeptVideoListView:
        page = kept.page(namespace, wanted, limit=limit, after_id=after, check=requester.check)
        return KeptVideoListView(
            data=[kept_video_view(video) for video in page.data],
            has_more=page.has_more,
            first_id=page.data[0].id if page.data else None,
            last_id=page.last_id,
        )

    threads = None if missing_fingerprint is None else context.search_threads
    return json_response(await context.while_connected(request, work, threads))


@router.get(
    "/videos/{video_id}",
    response_model=KeptVideoDetailView,
    response_description="The kept video.",
    summary="Get a kept video",
    description="Returns what is kept of a video, with the times of its segments.",
    openapi_extra=NAMESPACE_PARAMETER,
)
async def get_video(request: Request, video_id: VideoId) -> Response:
    context = context_of(request)
    kept = context.require_parts().background.kept_videos
    namespace = namespace_of(request)

    def work() -> KeptVideoDetailView:
        video = kept.get(namespace, video_id)
        try:
            features = kept.features(namespace, video_id, str(video.receipt.get("fingerprint")))
        except KeptVideoDamaged:
            features = None
        return kept_video_detail_view(video, features)

    return json_response(await context.in_label_thread(request, work))


@router.delete(
    "/videos/{video_id}",
    status_code=204,
    response_description="It is removed.",
    summary="Remove a kept video",
    description="Removes what is kept of a video. It is found by no later search or backfill.",
    openapi_extra=NAMESPACE_PARAMETER,
)
async def delete_video(request: Request, video_id: VideoId) -> Response:
    context = context_of(request)
    kept = context.require_parts().background.kept_videos
    namespace = namespace_of(request)
    await context.in_label_thread(request, lambda: kept.remove(namespace, video_id))
    return Response(status_code=204)


@router.get(
    "/videos/{video_id}/features",
    response_model=VideoFeaturesView,
    response_description="The vectors of its segments.",
    summary="Get a kept video's features",
    description="Returns the vectors of a kept video's segments, as they are kept.",
    openapi_extra=NAMESPACE_PARAMETER,
)
async def get_video_features(
    request: Request,
    video_id: VideoId,
    *,
    fingerprint: Fingerprint = None,
    offset: Annotated[int, Query(ge=0, le=2**31, description="Segments to skip.")] = 0,
    limit: Annotated[int, Query(ge=1, le=_MAX_SHOWN_VECTORS, description="Segments to return.")] = 32,
) -> Response:
    context = context_of(request)
    kept = context.require_parts().background.kept_videos
    namespace = namespace_of(request)

    def work() -> VideoFeaturesView:
        wanted = fingerprint or str(kept.get(namespace, video_id).receipt.get("fingerprint"))
        features = kept.features(namespace, video_id, wanted)
        if features is None:
            raise FeatureGenerationMissing("The video has no features of this model; re-encode it")
        shown = slice(offset, offset + limit)
        return VideoFeaturesView(
            id=video_id,
            fingerprint=wanted,
            num_segments=len(features.segments),
            offset=offset,
            data=[
                SegmentFeaturesView(start_ms=segment.start_ms, end_ms=segment.end_ms, vector=vector)
                for segment, vector in zip(features.segments[shown], features.vectors[shown].tolist(), strict=True)
            ],
        )

    return json_response(await context.in_label_thread(request, work))


@router.get(
    "/videos/{video_id}/thumbnails/{number}",
    response_class=Response,
    responses={
        200: {
            "content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}},
            "description": "The picture.",
        }
    },
    summary="Get a thumbnail",
    description="Returns a small picture of a stretch of a kept video, if it was kept with `thumbnails`.",
    openapi_extra=NAMESPACE_PARAMETER,
)
async def get_video_thumbnail(
    request: Request,
    video_id: VideoId,
    number: Annotated[int, Path(ge=0, le=1000, description="Which one, from 0 on.", examples=[0])],
) -> Response:
    context = context_of(request)
    kept = context.require_parts().background.kept_videos
    namespace = namespace_of(request)
    jpeg = await context.in_label_thread(request, lambda: kept.thumbnail(namespace, video_id, number))
    headers = {"X-Content-Type-Options": "nosniff", "Cache-Control": "private, no-store"}
    return Response(jpeg, media_type="image/jpeg", headers=headers)
