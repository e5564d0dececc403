"""The loop over an engine: files are fetched ahead, tagged concurrently, and every source gets one result."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from queue import SimpleQueue
from typing import Protocol

from vidlex.service.bulk.engine import EngineUnavailable, TagEngine
from vidlex.service.bulk.fetch import Cancelled, Fetched, Fetcher, FetchError, is_unchanged
from vidlex.service.bulk.options import TagOptions
from vidlex.service.bulk.remote import MissingPackage
from vidlex.service.bulk.results import TagFailure, TagResult
from vidlex.service.bulk.source import VideoSource

MAX_AHEAD = 10_000  # results that may be finished before an earlier one
MAX_HELD = 256  # results that wait for an earlier one, if they are given in order
NUM_FETCHERS = 8
log = logging.getLogger("vidlex.bulk")


@dataclass(frozen=True, slots=True)
class Tagged:
    """``order`` is the source's place, from 0. ``is_new``: tagged now, not taken from an earlier result."""

    order: int
    result: TagResult
    file_version: str | None = None
    is_new: bool = True


class KnownResults(Protocol):
    """Results of earlier runs, and of this one."""

    def has_source(self, uri: str, version: str | None) -> bool:
        """Called from several threads."""

    def of_source(self, uri: str, version: str | None) -> TagResult | None: ...

    def of_content(self, result_id: str) -> TagResult | None: ...


def run(
    sources: Iterable[VideoSource],
    engine: TagEngine,
    options: TagOptions,
    *,
    ordered: bool = True,
    fetcher: Fetcher | None = None,
    cancelled: threading.Event | None = None,
) -> Iterator[TagResult]:
    """One result per source, in their order or as completed. Closing the iterator ends the run.

    Raises EngineUnavailable after the results that were finished, and what ``sources`` raises.
    """
    window = MAX_HELD + 2 * engine.concurrency if ordered else MAX_AHEAD
    waiting: dict[int, TagResult] = {}
    following = 0
    for tagged in run_numbered(sources, engine, options, fetcher=fetcher, cancelled=cancelled, max_ahead=window):
        if not ordered:
            yield tagged.result
            continue
        waiting[tagged.order] = tagged.result
        while following in waiting:
            yield waiting.pop(following)
            following += 1


def run_numbered(
    sources: Iterable[VideoSource],
    engine: TagEngine,
    options: TagOptions,
    *,
    known: KnownResults | None = None,
    fetcher: Fetcher | None = None,
    cancelled: threading.Event | None = None,
    max_ahead: int = MAX_AHEAD,
) -> Iterator[Tagged]:
    """As completed. Files of equal content are tagged once. Raises as ``run`` does."""
    own = fetcher or Fetcher()
    loop = _Loop(engine, options, known, own, cancelled=cancelled or threading.Event(), max_ahead=max_ahead)
    try:
        yield from loop.results(iter(sources))
    finally:
        loop.close()
        if fetcher is None:
            own.close()


@dataclass(frozen=True, slots=True)
class _Job:
    order: int
    source: VideoSource


@dataclass(frozen=True, slots=True)
class _Event:
    job: _Job
    fetched: Fetched | None = None
    version: str | None = None
    result: TagResult | None = None
    is_known: bool = False
    error: BaseException | None = None


class _Loop:
    """All state belongs to the thread that iterates; the pools' threads only put events into a queue."""

    def __init__(
        self,
        engine: TagEngine,
        options: TagOptions,
        known: KnownResults | None,
        fetcher: Fetcher,
        *,
        cancelled: threading.Event,
        max_ahead: int,
    ) -> None:
        self.engine, self.options, self.known, self.fetcher = engine, options, known, fetcher
        self.cancelled, self.max_ahead = cancelled, max_ahead
        self.identity = engine.identity
        concurrency = max(1, engine.concurrency)
        self.fetch_pool = ThreadPoolExecutor(NUM_FETCHERS, "fetch")
        self.tag_pool = ThreadPoolExecutor(concurrency, "tag")
        self.max_active = 2 * concurrency + NUM_FETCHERS
        self.events: SimpleQueue[_Event] = SimpleQueue()
        self.active: dict[int, _Job] = {}  # in their order
        self.same_content: dict[str, list[tuple[_Job, str | None]]] = {}  # result id -> jobs that wait for it
        self.ready: deque[Tagged] = deque()

    def results(self, sources: Iterator[VideoSource]) -> Iterator[Tagged]:
        order, exhausted = 0, False
        failure: BaseException | None = None
        while True:
            while not exhausted and not self.cancelled.is_set() and self._has_room(order):
                try:
                    source = next(sources, None)
                except Exception as error:  # what was found before is still tagged
                    source, failure = None, error
                if source is None:
                    exhausted = True
                    break
                job = _Job(order, source)
                self.active[order] = job
                order += 1
                self.fetch_pool.submit(self._fetch, job)
            if not self.active:
                break
            ends_all = self._handle(self.events.get())
            if ends_all is not None:
                failure = ends_all
                self.cancelled.set()
            while self.ready:
                yield self.ready.popleft()
        if failure is not None:
            raise failure

    def close(self) -> None:
        if self.active:  # else the run has come to its end
            self.cancelled.set()
        self.fetch_pool.shutdown(wait=True, cancel_futures=True)
        self.tag_pool.shutdown(wait=True, cancel_futures=True)
        while not self.events.empty():
            event = self.events.get()
            if event.fetched is not None:
                event.fetched.release()

    def _has_room(self, order: int) -> bool:
        oldest = next(iter(self.active), order)
        return len(self.active) < self.max_active and order - oldest < self.max_ahead

    def _fetch(self, job: _Job) -> None:
        version, problem = None, None
        try:
            if self.known is not None:
                try:
                    version = self.fetcher.version(job.source)
                except FetchError as error:
                    problem = error
                if self.known.has_source(job.source.uri, version):
                    self.events.put(_Event(job, version=version, is_known=True))
                    return
            if problem is not None:
                raise problem
            if self.cancelled.is_set():
                raise Cancelled
            fetched = self.fetcher.fetch(job.source, self.cancelled)
        except BaseException as error:
            self.events.put(_Event(job, version=version, error=error))
        else:
            self.events.put(_Event(job, fetched=fetched, version=fetched.version))

    def _tag(self, job: _Job, fetched: Fetched) -> None:
        try:
            if self.cancelled.is_set():
                raise Cancelled
            result = self.engine.tag(fetched.file, self.options, self.cancelled)
            if self.cancelled.is_set() and result.failure is not None:
                raise Cancelled  # it may have failed because the run ends
            if not is_unchanged(fetched):
                failure = TagFailure("file_changed", "The file changed while it was read")
                result = TagResult(fetched.file.uri, failure=failure)
        except BaseException as error:
            self.events.put(_Event(job, fetched, fetched.version, error=error))
        else:
            self.events.put(_Event(job, fetched, fetched.version, result))

    def _handle(self, event: _Event) -> BaseException | None:
        """What ends the run, if anything does."""
        if event.is_known:
            assert self.known is not None
            result = self.known.of_source(event.job.source.uri, event.version)
            assert result is not None
            self._finish(event.job, result, event.version, is_new=False)
        elif event.fetched is None:
            return self._failed(event, None)
        elif event.result is None and event.error is None:
            self._fetched(event.job, event.fetched)
        else:
            event.fetched.release()
            if event.error is not None:
                return self._failed(event, self._result_id(event.fetched))
            assert event.result is not None
            self._tagged(event.job, event.fetched, event.result)
        return None

    def _fetched(self, job: _Job, fetched: Fetched) -> None:
        result_id = self._result_id(fetched)
        found = self.known.of_content(result_id) if self.known is not None else None
        if found is not None:
            fetched.release()
            self._finish(job, found, fetched.version, is_new=False)
        elif result_id in self.same_content:
            fetched.release()
            self.same_content[result_id].append((job, fetched.version))
        else:
            self.same_content[result_id] = []
            self.tag_pool.submit(self._tag, job, fetched)

    def _tagged(self, job: _Job, fetched: Fetched, result: TagResult) -> None:
        file, result_id = fetched.file, self._result_id(fetched)
        result = replace(
            result,
            result_id=result.result_id or result_id,  # the labels of a service may change during the run
            sha256=file.sha256,
            num_bytes=file.num_bytes,
            timings_ms={"fetch": fetched.fetch_ms, **result.timings_ms},
        )
        self._finish(job, result, fetched.version)
        for other, version in self.same_content.pop(result_id, ()):
            self._finish(other, result, version, is_new=False)

    def _failed(self, event: _Event, result_id: str | None) -> BaseException | None:
        error = event.error
        assert error is not None
        jobs = [(event.job, event.version)]
        jobs += self.same_content.pop(result_id, ()) if result_id is not None else ()
        if isinstance(error, Cancelled | EngineUnavailable | MissingPackage):
            for job, _ in jobs:
                del self.active[job.order]
            return None if isinstance(error, Cancelled) else error
        if isinstance(error, FetchError):
            failure = error.failure
        else:
            log.error("tagging failed", exc_info=error)
            failure = TagFailure("internal_error", f"An unexpected error: {type(error).__name__}")
        file = event.fetched.file if event.fetched else None
        for job, version in jobs:
            result = TagResult(
                job.source.uri,
                result_id,
                sha256=file.sha256 if file else None,
                num_bytes=file.num_bytes if file else None,
                failure=failure,
            )
            self._finish(job, result, version)
        return None

    def _finish(self, job: _Job, result: TagResult, version: str | None, *, is_new: bool = True) -> None:
        del self.active[job.order]
        source = job.source
        named = replace(result, uri=source.uri, client_id=source.client_id, metadata=source.metadata)
        self.ready.append(Tagged(job.order, named, version, is_new))

    def _result_id(self, fetched: Fetched) -> str:
        return self.identity.result_id(fetched.file.sha256, self.options)
