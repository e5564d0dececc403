"""What the routes need of the service. The application fills it in while it starts."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import TypeVar

import anyio
from fastapi import Request

from service.errors import ModelLoading, Overloaded
from service.inference.classifier import VideoClassifier
from service.inference.labeler import Labeler
from service.labels.store import LabelStore
from service.metrics import Metrics
from service.routes.uploads import Spool
from service.schemas.health import ReadyView

ResultT = TypeVar("ResultT")

_MAX_LABEL_REQUESTS = 32
_MAX_WAITING_LABEL_REQUESTS = 256


@dataclass(frozen=True)
class Parts:
    """What exists once the model is loaded and the index filled."""

    store: LabelStore
    labeler: Labeler
    videos: VideoClassifier


class Admission:
    """A bound on requests at work, with a Retry-After from how fast they have been leaving."""

    def __init__(self, max_requests: int, num_workers: int) -> None:
        self._max_requests = max_requests
        self._num_workers = num_workers
        self._lock = threading.Lock()
        self._count = 0
        self._mean_seconds = 0.5

    @property
    def count(self) -> int:
        return self._count

    def check(self) -> None:
        """Raises Overloaded when ``admit`` would: asked before an upload, it saves the bytes."""
        if self._count >= self._max_requests:
            error = Overloaded("Too many videos are waiting")
            drain_seconds = self._count * self._mean_seconds / self._num_workers
            error.retry_after_seconds = min(60, max(1, math.ceil(drain_seconds / 2)))
            raise error

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
