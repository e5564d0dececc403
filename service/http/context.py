"""What the routes need of the service. The application fills it in while it starts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated, TypeVar

import anyio
from fastapi import Depends, Request

from vidlex.service.classification.classifier import VideoClassifier
from vidlex.service.errors import Forbidden, InvalidParameter, ModelLoading, Overloaded
from vidlex.service.http.admission import Admission
from vidlex.service.http.uploads import Spool
from vidlex.service.labels.store.redis_keys import is_namespace
from vidlex.service.metrics import Metrics
from vidlex.service.models.recent_videos import KeptVideos
from vidlex.service.models.registry import Models
from vidlex.service.models.served_model import Vocabulary
from vidlex.service.schemas.health import ReadyView

ResultT = TypeVar("ResultT")

NAMESPACE_HEADER = "X-Vidlex-Namespace"
_MAX_LABEL_REQUESTS = 32
_MAX_WAITING_LABEL_REQUESTS = 256


@dataclass(frozen=True)
class Parts:
    """What exists once the model is loaded and the index filled."""

    models: Models
    videos: VideoClassifier
    kept: KeptVideos
    may_load: Callable[[str], bool]
    """Whether clients may have this model loaded."""


@dataclass
class Context:
    """One for each application, at ``app.state.context``."""

    spool: Spool
    metrics: Metrics
    admission: Admission
    request_timeout_seconds: float
    namespace: str
    """Of requests that name none."""
    revision_wait_seconds: float
    readiness: Callable[[], ReadyView]
    parts: Parts | None = None
    """None while the service starts or stops."""
    video_threads: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(1024))
    label_threads: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(_MAX_LABEL_REQUESTS))
    """Threads of their own, so that waiting labels cannot hold up uploads and videos, and the other way round."""

    def require_parts(self) -> Parts:
        if self.parts is None:
            raise ModelLoading("The service is not ready yet; /readyz tells why")
        return self.parts

    async def in_label_thread(self, work: Callable[[], ResultT]) -> ResultT:
        if self.label_threads.statistics().tasks_waiting >= _MAX_WAITING_LABEL_REQUESTS:
            raise Overloaded("Too many label requests are waiting")
        return await anyio.to_thread.run_sync(work, limiter=self.label_threads)


def context_of(request: Request) -> Context:
    context = request.app.state.context
    assert isinstance(context, Context)
    return context


def namespace_of(request: Request) -> str:
    """Whose labels the request is about: those of its API key, else of its header, else of the settings.

    Raises InvalidParameter for a name that none can have, Forbidden when the key belongs to another namespace than the
    header names.
    """
    bound: str | None = getattr(getattr(request.state, "principal", None), "namespace", None)
    asked = request.headers.get(NAMESPACE_HEADER)
    if asked is not None and not is_namespace(asked):
        raise InvalidParameter(
            f"{NAMESPACE_HEADER} is 1 to 64 of a-z 0-9 _ - and starts with a letter or digit",
            errors=[{"pointer": f"/{NAMESPACE_HEADER}", "detail": "is not a namespace"}],
        )
    if bound is not None and asked not in (None, bound):
        raise Forbidden("This API key belongs to another namespace")
    return bound or asked or context_of(request).namespace


def client_of(request: Request) -> str:
    """Who asks, as far as it is known: the id of the API key, or the address."""
    key_id: str = getattr(getattr(request.state, "principal", None), "key_id", "")
    return key_id or (request.client.host if request.client else "")


def quota_of(request: Request) -> int | None:
    """Labels that the API key of the request may bring its namespace to; None: the settings decide."""
    quota: int | None = getattr(getattr(request.state, "principal", None), "max_labels", None)
    return quota


async def vocabulary_of(request: Request) -> AsyncIterator[Vocabulary]:
    """The labels that the request is about, in the served model's vectors, for as long as the request uses them.

    Take it once: a second one may be of another model. Raises ModelLoading and what ``namespace_of`` and
    ``ServedModel.take`` raise.
    """
    context = context_of(request)
    models = context.require_parts().models
    namespace = namespace_of(request)
    vocabulary = models.take_open(namespace)
    if vocabulary is None:
        vocabulary = await context.in_label_thread(lambda: models.take(namespace))
    try:
        yield vocabulary
    finally:
        vocabulary.give_back()


using_vocabulary = asynccontextmanager(vocabulary_of)
VocabularyOfRequest = Annotated[Vocabulary, Depends(vocabulary_of)]
"""A route's parameter: taken before the route runs, given back after its answer."""
