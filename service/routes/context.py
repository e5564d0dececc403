"""What the routes need of the service. The application fills it in while it starts."""

from __future__ import annotations

import math
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import Annotated, TypeVar

import anyio
from fastapi import Depends, Request

from service.errors import DeadlineExceeded, Forbidden, InvalidParameter, ModelLoading, Overloaded
from service.inference.classifier import VideoClassifier
from service.inference.kept import KeptVideos
from service.inference.models import Models
from service.inference.served import Vocabulary
from service.labels.keys import is_namespace
from service.metrics import Metrics
from service.routes.uploads import Spool
from service.schemas.health import ReadyView

ResultT = TypeVar("ResultT")

NAMESPACE_HEADER = "X-Vidlex-Namespace"
_MAX_RETRY_SECONDS = 60.0
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


class Admission:
    """A bound on requests at work, with a Retry-After from how fast they have been leaving."""

    def __init__(self, max_requests: int, num_workers: int) -> None:
        self._max_requests = max_requests
        self._num_workers = num_workers
        self._lock = threading.Lock()
        self._count = 0
        self._mean_seconds = 0.5
        self._promised_at = 0.0

    @property
    def count(self) -> int:
        return self._count

    def check(self) -> None:
        """Raises Overloaded when ``admit`` would: asked before an upload, it saves the bytes."""
        if self._count >= self._max_requests:
            error = Overloaded("Too many videos are waiting")
            # One place becomes free at a time, so each refused client is told a later moment than the one before it.
            now = monotonic()
            self._promised_at = min(now + _MAX_RETRY_SECONDS, max(now, self._promised_at) + self.seconds_until_done(1))
            error.retry_after_seconds = max(1, math.ceil(self._promised_at - now))
            raise error

    def seconds_until_done(self, num_requests: int) -> float:
        """How long so many requests take at the rate at which they have been leaving."""
        return num_requests * self._mean_seconds / self._num_workers

    def check_deadline(self, seconds: float) -> None:
        """Raises DeadlineExceeded when what is at work already leaves no time for one more."""
        if self._count and seconds < self.seconds_until_done(self._count + 1):
            raise DeadlineExceeded("With what is waiting now, the answer would come after deadline_ms")

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Raises Overloaded at once when too many are at work."""
        with self._lock:
            self.check()
            self._count += 1
        started = monotonic()
        try:
            yield
        finally:
            seconds = monotonic() - started
            with self._lock:
                waited = max(1, self._count / self._num_workers)
                self._count -= 1
                self._mean_seconds += 0.1 * (seconds / waited - self._mean_seconds)


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
