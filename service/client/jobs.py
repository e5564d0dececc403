"""Jobs of a running service for threads: `Client.jobs`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, Self, TypeVar, Unpack

from vidlex.service.bounds import MAX_PAGE_SIZE
from vidlex.service.client import job_calls
from vidlex.service.client.calls import ClassifyOptions
from vidlex.service.client.config import RetryPolicy
from vidlex.service.client.errors import JobNotFinished, VidlexClientError
from vidlex.service.client.exchange import Call
from vidlex.service.client.job_calls import Following, JobEvent, JobFacts, JobFilters, JobOptions, Lines, Webhook
from vidlex.service.client.uploads import OnProgress, VideoInput
from vidlex.service.schemas.classify import ClassificationView
from vidlex.service.schemas.jobs import JobListView, JobView, NewJobKindName, PriorityName

T = TypeVar("T")


@dataclass(frozen=True)
class Streamed:
    status: int
    chunks: Iterator[bytes]


class StreamsCalls(Protocol):
    """A `Client`."""

    @property
    def timeout_seconds(self) -> float: ...

    @property
    def retries(self) -> RetryPolicy: ...

    def run(
        self, call: Call[T], *, retries: RetryPolicy | None = None, pause: Callable[[float], object] = ...
    ) -> T: ...

    def stream(self, call: Call[Any], *, silence_seconds: float | None = None) -> AbstractContextManager[Streamed]: ...


class Jobs:
    """Thread-safe, as its client."""

    def __init__(self, client: StreamsCalls) -> None:
        self._client = client

    def submit(
        self,
        file: VideoInput | None = None,
        *,
        url: str | None = None,
        kind: NewJobKindName = "classify",
        priority: PriorityName = "normal",
        webhook: Webhook | None = None,
        metadata: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
        on_progress: OnProgress | None = None,
        **options: Unpack[ClassifyOptions],
    ) -> Job:
        """Of a file, which is read while it is sent, or of a URL that the service reads; of a batch, its JSONL file.

        The job is stored when this returns. Without ``idempotency_key`` the client makes one, so that an upload whose
        connection breaks is sent again and makes one job.
        """
        job = JobOptions(
            kind=kind, priority=priority, webhook=webhook, metadata=metadata, idempotency_key=idempotency_key
        )
        return self._job(job_calls.submit(file, url, job, options, on_progress=on_progress))

    def get(self, job_id: str) -> Job:
        """Raises NotFound."""
        return self._job(job_calls.get(job_id))

    def list(self, *, page_size: int = MAX_PAGE_SIZE, **filters: Unpack[JobFilters]) -> Iterator[Job]:
        """Newest first, read page by page; without their results."""
        after: str | None = None
        while True:
            page: JobListView = self._client.run(job_calls.page(filters, after=after, page_size=page_size))
            for view in page.data:
                yield Job(self._client, view)
            if not page.has_more or page.last_id is None:
                return
            after = page.last_id

    def cancel(self, job_id: str) -> Job:
        return self._job(job_calls.cancel(job_id))

    def retry(self, job_id: str) -> Job:
        """A job that has failed, was cancelled or has expired. Raises Conflict."""
        return self._job(job_calls.retry(job_id))

    def _job(self, call: Call[JobView]) -> Job:
        return Job(self._client, self._client.run(call))


class Job(JobFacts):
    """``view`` is the job as it was when it was last read."""

    def __init__(self, client: StreamsCalls, view: JobView) -> None:
        super().__init__(view)
        self._client = client

    def refresh(self) -> Self:
        self.view = self._client.run(job_calls.get(self.id))
        return self

    def wait(self, timeout_seconds: float | None = None) -> Self:
        """Until the job is finished, also without success. Raises JobNotFinished."""
        ends_at = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while not self.is_finished:
            left = None if ends_at is None else ends_at - time.monotonic()
            if left is not None and left <= 0:
                raise JobNotFinished(f"the job {self.id} is {self.state} after {timeout_seconds} s")
            started = time.monotonic()
            seconds = job_calls.wait_seconds(left, self._client.timeout_seconds)
            self.view = self._client.run(job_calls.get(self.id, seconds))
            pause = job_calls.pause_between(time.monotonic() - started, left)
            if not self.is_finished and pause:
                time.sleep(pause)
        return self

    def events(self, *, after: str | None = None) -> Iterator[JobEvent]:
        """From the beginning, or behind the event with the id ``after``, until the job is finished.

        Each comes once, also if the connection breaks or the service is replaced meanwhile.
        """
        following = Following(self.id, after, self._client.retries)
        while True:
            failure = None
            try:
                call = following.next_call()
                with self._client.stream(call, silence_seconds=job_calls.SILENCE_SECONDS) as answer:
                    if answer.status == 204:  # there is nothing more
                        return
                    for chunk in answer.chunks:
                        for event in following.feed(chunk):
                            yield event
                            if event.is_final:
                                return
            except VidlexClientError as error:
                failure = error
            time.sleep(following.pause_after(failure))

    def result(self, timeout_seconds: float | None = None) -> ClassificationView:
        """Of a classification, once it is finished.

        Raises JobNotFinished; JobFailed; if the job failed, the class of its error, such as VideoInvalid; and Conflict
        for a batch, whose results are `output`.
        """
        self.wait(timeout_seconds)
        job_calls.check_succeeded(self.view)
        if self.view.result is not None:
            return self.view.result
        job_calls.check_is_classification(self.view)
        return self._client.run(job_calls.result(self.id))

    def output(self) -> Iterator[dict[str, Any]]:
        """The results of a batch that has ended, one per video."""
        return self._lines(job_calls.lines(self.id, "output"))

    def errors(self) -> Iterator[dict[str, Any]]:
        """The errors of a batch that has ended, one per video."""
        return self._lines(job_calls.lines(self.id, "errors"))

    def _lines(self, call: Call[None]) -> Iterator[dict[str, Any]]:
        lines = Lines()
        with self._client.stream(call) as answer:
            for chunk in answer.chunks:
                for line in lines.feed(chunk):
                    if line:
                        yield job_calls.parse_object(line)

    def cancel(self) -> Self:
        """A job that runs ends soon; see `wait`."""
        self.view = self._client.run(job_calls.cancel(self.id))
        return self

    def retry(self) -> Self:
        self.view = self._client.run(job_calls.retry(self.id))
        return self
