"""The parts of the service that routes use, and the namespace of a request."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated, TypeVar

import anyio
from fastapi import Depends, Request

from vidlex.service.bounds import NAMESPACE_RULE
from vidlex.service.classification.classifier import VideoClassifier
from vidlex.service.errors import Forbidden, InvalidParameter, ModelLoading, Overloaded
from vidlex.service.http.admission import Admission
from vidlex.service.http.background import Background
from vidlex.service.http.caller import bound_namespace_of, client_of
from vidlex.service.http.disconnect import ClientLeft, watch_connection
from vidlex.service.http.fair_threads import FairThreads
from vidlex.service.http.job_events import MAX_STREAMS
from vidlex.service.http.openapi.headers import NAMESPACE_HEADER
from vidlex.service.http.uploads import Spool
from vidlex.service.labels.store.redis_keys import is_namespace
from vidlex.service.models.recent_statistics import RecentStatistics
from vidlex.service.models.recent_videos import RecentVideos
from vidlex.service.models.registry import ModelRegistry
from vidlex.service.models.served_model import Vocabulary
from vidlex.service.schemas.health import ReadyView
from vidlex.service.sharing.requester import Requester
from vidlex.service.sharing.shares import Shares
from vidlex.service.telemetry.metrics import Metrics

ResultT = TypeVar("ResultT")

# One client can use half of each.
_MAX_LABEL_REQUESTS = 64
_MAX_QUEUED_LABEL_REQUESTS = 512
# Each compares on several cores.
_MAX_SEARCHES = 4
_MAX_QUEUED_SEARCHES = 256


def _label_threads() -> FairThreads:
    return FairThreads(_MAX_LABEL_REQUESTS, _MAX_QUEUED_LABEL_REQUESTS, "label_requests", "label requests are queued")


def _search_threads() -> FairThreads:
    return FairThreads(_MAX_SEARCHES, _MAX_QUEUED_SEARCHES, "searches", "searches of kept videos are queued")


def _event_streams() -> Shares:
    return Shares(MAX_STREAMS, "event_streams", "streams of events")


@dataclass(frozen=True)
class Parts:
    models: ModelRegistry
    videos: VideoClassifier
    recent_videos: RecentVideos
    recent_statistics: RecentStatistics
    may_load: Callable[[str], bool]  # by name, whether clients may load a model
    background: Background


@dataclass
class Context:
    spool: Spool
    metrics: Metrics
    admission: Admission
    request_timeout_seconds: float
    namespace: str  # default of requests that name none
    revision_wait_seconds: float
    readiness: Callable[[], ReadyView]
    is_stopping: Callable[[], bool] = lambda: False  # then streams without an end are ended
    parts: Parts | None = None  # None while the service is starting or stopping
    # Separate limiters: label requests cannot block videos, nor the reverse.
    video_threads: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(1024))
    label_threads: FairThreads = field(default_factory=_label_threads)
    search_threads: FairThreads = field(default_factory=_search_threads)
    event_streams: Shares = field(default_factory=_event_streams)

    def require_parts(self) -> Parts:
        if self.parts is None:
            raise ModelLoading("The service is not ready; see /readyz")
        return self.parts

    async def in_label_thread(self, request: Request, work: Callable[[], ResultT]) -> ResultT:
        """Raises Overloaded or ShareExceeded."""
        return await self.label_threads.run(client_of(request), work)

    async def while_connected(
        self, request: Request, work: Callable[[Requester], ResultT], threads: FairThreads | None = None
    ) -> ResultT:
        """As ``in_label_thread``, for work that should end if the client leaves; raises ClientLeft then.

        The body must have been read.
        """
        async with watch_connection(request) as connection:
            requester = Requester(client_of(request), cancelled=connection.has_left)
            try:
                threads = threads or self.label_threads
                return await threads.run(requester.client, lambda: work(requester), connection.waiting)
            except Overloaded:
                if connection.has_left.is_set():
                    raise ClientLeft from None
                raise


def context_of(request: Request) -> Context:
    context = request.app.state.context
    assert isinstance(context, Context)
    return context


def namespace_of(request: Request) -> str:
    """The namespace of the request's API key, else of its header, else of the settings.

    Raises InvalidParameter for an invalid or repeated header, and Forbidden if it contradicts the key.
    """
    bound = bound_namespace_of(request)
    values = request.headers.getlist(NAMESPACE_HEADER)
    requested = ", ".join(values) if values else None  # several values are not a namespace
    if requested is not None and not is_namespace(requested):
        raise InvalidParameter(
            f"{NAMESPACE_HEADER} must be {NAMESPACE_RULE}",
            errors=[{"pointer": f"/{NAMESPACE_HEADER}", "detail": "is not a valid namespace"}],
        )
    if bound is not None and requested not in (None, bound):
        raise Forbidden(f"This API key is bound to the namespace {bound}")
    request.state.namespace = bound or requested or context_of(request).namespace  # for the logs
    return str(request.state.namespace)


async def vocabulary_of(request: Request) -> AsyncIterator[Vocabulary]:
    """Held until the request ends. Call once per request: the served model may change between two calls.

    Raises ModelLoading and the errors of ``namespace_of`` and ``ServedModel.acquire``.
    """
    context = context_of(request)
    models = context.require_parts().models
    namespace = namespace_of(request)
    client = client_of(request)
    vocabulary = models.served.try_acquire(namespace, client)
    if vocabulary is None:
        vocabulary = await context.in_label_thread(request, lambda: models.acquire(namespace, client))
    try:
        yield vocabulary
    finally:
        vocabulary.release()


using_vocabulary = asynccontextmanager(vocabulary_of)
VocabularyOfRequest = Annotated[Vocabulary, Depends(vocabulary_of)]
