from __future__ import annotations

from vidlex.service.models.served_model import Vocabulary
from vidlex.service.retagging.match_files import MatchedVideos
from vidlex.service.retagging.matches import MatchRecord
from vidlex.service.retagging.search import Hit, SearchResult
from vidlex.service.schemas.classify import ModelView
from vidlex.service.schemas.video_search import (
    GenerationOfVideosView,
    LabelVideosView,
    MatchedVideoView,
    SearchedSegmentView,
    VideoGenerationsView,
    VideoHitView,
    VideoSearchView,
)
from vidlex.service.sharing.requester import Requester
from vidlex.service.videos.pages import VideoFilter
from vidlex.service.videos.store import KeptVideoStore

_NUM_SAMPLES = 20  # of videos that need to be re-encoded


def search_view(result: SearchResult, vocabulary: Vocabulary, with_segments: bool) -> VideoSearchView:
    return VideoSearchView(
        data=[_hit_view(hit, with_segments) for hit in result.hits],
        scores=result.scores,
        model=ModelView(id=vocabulary.facts.id, fingerprint=result.model),
        calibration=result.calibration,
        vocabulary_revision=result.revision,
        num_videos=result.num_videos,
        num_segments=result.num_segments,
        num_missing=result.num_missing,
        approximate=result.is_approximate,
        complete=result.is_complete,
    )


def _hit_view(hit: Hit, with_segments: bool) -> VideoHitView:
    video = hit.video
    return VideoHitView(
        video_id=video.id,
        client_id=video.client_id,
        uri=video.uri,
        metadata=dict(video.metadata),
        duration_ms=video.facts.get("duration_ms"),
        created_at_ms=video.created_at_ms,
        score=hit.score,
        similarity=hit.similarity,
        num_segments=hit.num_segments,
        segments=[
            SearchedSegmentView(start_ms=found.segment.start_ms, end_ms=found.segment.end_ms, score=found.score)
            for found in (hit.segments if with_segments else ())
        ],
    )


def generations_view(videos: KeptVideoStore, namespace: str, served: str, requester: Requester) -> VideoGenerationsView:
    generations = videos.generations(namespace)
    num_videos, _ = videos.usage(namespace)
    wanted = VideoFilter(missing_fingerprint=served)
    missing = videos.page(namespace, wanted, limit=_NUM_SAMPLES, check=requester.check)
    data = [
        GenerationOfVideosView(model=model, num_videos=number, served=model == served)
        for model, number in sorted(generations.items(), key=lambda item: (item[0] != served, item[0]))
    ]
    num_missing = max(len(missing.data), num_videos - videos.table(namespace, served).num_videos)
    return VideoGenerationsView(
        data=data,
        num_videos=num_videos,
        num_missing=num_missing,
        sample_missing_ids=[video.id for video in missing.data],
    )


def label_videos_view(
    videos: KeptVideoStore,
    namespace: str,
    found: tuple[MatchRecord, MatchedVideos],
    *,
    limit: int,
    after_id: str | None,
    change: str | None,
) -> LabelVideosView:
    record, matched = found
    page, has_more = matched.page(change, after_id=after_id, limit=limit)
    kept = {video.id for video in videos.get_many(namespace, [video.video_id for video in page])}
    data = [MatchedVideoView(**vars(video)) for video in page if video.video_id in kept]
    return LabelVideosView(
        data=data,
        has_more=has_more,
        first_id=data[0].video_id if data else None,
        last_id=page[-1].video_id if page else None,
        job_id=record.job_id,
        model=record.model,
        calibration=record.calibration,
        vocabulary_revision=record.vocabulary_revision,
        threshold=record.threshold,
        num_videos=record.num_videos,
        num_matched=record.num_matched,
        num_gained=record.num_gained,
        num_lost=record.num_lost,
        created_at_ms=record.created_at_ms,
    )
