"""Kept videos of a running service: `Client.videos` and `AsyncClient.videos`."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any, Literal, TypedDict, Unpack
from urllib.parse import quote

from vidlex.service.bounds import MAX_PAGE_SIZE
from vidlex.service.client import async_jobs, jobs
from vidlex.service.client.calls import view_of
from vidlex.service.client.exchange import Call
from vidlex.service.schemas.jobs import JobView
from vidlex.service.schemas.video_search import (
    BackfillResultView,
    LabelVideosView,
    MatchedVideoView,
    ReencodeResultView,
    VideoGenerationsView,
    VideoSearchView,
)
from vidlex.service.schemas.videos import KeptVideoDetailView, KeptVideoListView, KeptVideoView

Change = Literal["gained", "lost"]
Webhook = str | Mapping[str, Any]
"""A URL, or the members of the body."""


class VideoFilters(TypedDict, total=False):
    """None: no matter which."""

    client_id: str | None
    sha256: str | None
    created_from_ms: int | None
    created_to_ms: int | None
    missing_fingerprint: str | None


class SearchOptions(TypedDict, total=False):
    """Exactly one of the first four."""

    text: str
    label_id: str
    video_id: str
    vector: Sequence[float]
    start_ms: int | None
    end_ms: int | None
    limit: int
    min_score: float
    segments: bool
    filters: Mapping[str, Any]


class BackfillOptions(TypedDict, total=False):
    """Either ``label_ids`` or ``since_revision``."""

    label_ids: Sequence[str]
    since_revision: int
    min_score: float | None
    webhook: Webhook | None
    metadata: Mapping[str, Any] | None
    idempotency_key: str | None


class ReencodeOptions(TypedDict, total=False):
    video_ids: Sequence[str] | None
    webhook: Webhook | None
    metadata: Mapping[str, Any] | None
    idempotency_key: str | None


class Videos:
    """Thread-safe, as its client."""

    def __init__(self, client: jobs.StreamsCalls) -> None:
        self._client = client

    def list(self, *, page_size: int = MAX_PAGE_SIZE, **filters: Unpack[VideoFilters]) -> Iterator[KeptVideoView]:
        """Newest first, read page by page."""
        page = self._client.run(_list(filters, None, page_size))
        yield from page.data
        while page.has_more:
            page = self._client.run(_list(filters, page.last_id, page_size))
            yield from page.data

    def get(self, video_id: str) -> KeptVideoDetailView:
        """Raises NotFound."""
        return self._client.run(_get(video_id))

    def remove(self, video_id: str) -> None:
        """Raises NotFound."""
        self._client.run(_remove(video_id))

    def search(self, **options: Unpack[SearchOptions]) -> VideoSearchView:
        """Raises Conflict if the kept videos have no features of the served model."""
        return self._client.run(_search(options))

    def backfill(self, **options: Unpack[BackfillOptions]) -> jobs.Job:
        """See `backfill_result`."""
        return jobs.Job(self._client, self._client.run(_backfill(options)))

    def backfill_result(self, job_id: str) -> BackfillResultView:
        """Raises Conflict if the job has not succeeded (yet)."""
        return self._client.run(_backfill_result(job_id))

    def reencode(self, **options: Unpack[ReencodeOptions]) -> jobs.Job:
        """See `reencode_result`."""
        return jobs.Job(self._client, self._client.run(_reencode(options)))

    def reencode_result(self, job_id: str) -> ReencodeResultView:
        """Raises Conflict if the job has not succeeded (yet)."""
        return self._client.run(_reencode_result(job_id))

    def generations(self) -> VideoGenerationsView:
        return self._client.run(_generations())

    def of_label(
        self, label_id: str, *, change: Change | None = None, page_size: int = MAX_PAGE_SIZE
    ) -> Iterator[MatchedVideoView]:
        """That a label matches as of its last backfill, read page by page. Raises NotFound if there was none."""
        page = self._client.run(_of_label(label_id, change, None, page_size))
        yield from page.data
        while page.has_more:
            page = self._client.run(_of_label(label_id, change, page.last_id, page_size))
            yield from page.data


class AsyncVideos:
    """As `Videos`, for asyncio."""

    def __init__(self, client: async_jobs.StreamsCalls) -> None:
        self._client = client

    async def list(
        self, *, page_size: int = MAX_PAGE_SIZE, **filters: Unpack[VideoFilters]
    ) -> AsyncIterator[KeptVideoView]:
        after: str | None = None
        while True:
            page = await self._client.run(_list(filters, after, page_size))
            for video in page.data:
                yield video
            if not page.has_more:
                return
            after = page.last_id

    async def get(self, video_id: str) -> KeptVideoDetailView:
        return await self._client.run(_get(video_id))

    async def remove(self, video_id: str) -> None:
        await self._client.run(_remove(video_id))

    async def search(self, **options: Unpack[SearchOptions]) -> VideoSearchView:
        return await self._client.run(_search(options))

    async def backfill(self, **options: Unpack[BackfillOptions]) -> async_jobs.AsyncJob:
        return async_jobs.AsyncJob(self._client, await self._client.run(_backfill(options)))

    async def backfill_result(self, job_id: str) -> BackfillResultView:
        return await self._client.run(_backfill_result(job_id))

    async def reencode(self, **options: Unpack[ReencodeOptions]) -> async_jobs.AsyncJob:
        return async_jobs.AsyncJob(self._client, await self._client.run(_reencode(options)))

    async def reencode_result(self, job_id: str) -> ReencodeResultView:
        return await self._client.run(_reencode_result(job_id))

    async def generations(self) -> VideoGenerationsView:
        return await self._client.run(_generations())

    async def of_label(
        self, label_id: str, *, change: Change | None = None, page_size: int = MAX_PAGE_SIZE
    ) -> AsyncIterator[MatchedVideoView]:
        after: str | None = None
        while True:
            page = await self._client.run(_of_label(label_id, change, after, page_size))
            for video in page.data:
                yield video
            if not page.has_more:
                return
            after = page.last_id


def _list(filters: VideoFilters, after: str | None, page_size: int) -> Call[KeptVideoListView]:
    params: dict[str, str | int] = {"limit": min(page_size, MAX_PAGE_SIZE)}
    params |= {key: value for key, value in filters.items() if value is not None}  # type: ignore[misc]
    if after is not None:
        params["after"] = after
    return Call("GET", "/videos", view_of(KeptVideoListView), params=params, is_repeatable=True)


def _get(video_id: str) -> Call[KeptVideoDetailView]:
    return Call("GET", f"/videos/{quote(video_id, safe='')}", view_of(KeptVideoDetailView), is_repeatable=True)


def _remove(video_id: str) -> Call[None]:
    return Call("DELETE", f"/videos/{quote(video_id, safe='')}", lambda _: None)


def _search(options: SearchOptions) -> Call[VideoSearchView]:
    return Call("POST", "/videos:search", view_of(VideoSearchView), body=_members(options), is_repeatable=True)


def _backfill(options: BackfillOptions) -> Call[JobView]:
    return _job("/videos:backfill", options)


def _reencode(options: ReencodeOptions) -> Call[JobView]:
    return _job("/videos:reencode", options)


def _job(path: str, options: Mapping[str, Any]) -> Call[JobView]:
    body = _members(options)
    key = body.pop("idempotency_key", None) or secrets.token_hex(16)
    if isinstance(body.get("webhook"), str):
        body["webhook"] = {"url": body["webhook"]}
    headers = {"Idempotency-Key": key}
    return Call("POST", path, view_of(JobView), headers=headers, body=body, is_repeatable=True)


def _backfill_result(job_id: str) -> Call[BackfillResultView]:
    return Call("GET", _result_path(job_id), view_of(BackfillResultView), is_repeatable=True)


def _reencode_result(job_id: str) -> Call[ReencodeResultView]:
    return Call("GET", _result_path(job_id), view_of(ReencodeResultView), is_repeatable=True)


def _result_path(job_id: str) -> str:
    return f"/jobs/{quote(job_id, safe='')}/result"


def _generations() -> Call[VideoGenerationsView]:
    return Call("GET", "/videos:generations", view_of(VideoGenerationsView), is_repeatable=True)


def _of_label(label_id: str, change: Change | None, after: str | None, page_size: int) -> Call[LabelVideosView]:
    params: dict[str, str | int] = {"limit": min(page_size, MAX_PAGE_SIZE)}
    params |= {} if change is None else {"change": change}
    params |= {} if after is None else {"after": after}
    path = f"/labels/{quote(label_id, safe='')}/videos"
    return Call("GET", path, view_of(LabelVideosView), params=params, is_repeatable=True)


def _members(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if value is not None}
