"""The requests of jobs, and the events of a job as they are read."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict
from urllib.parse import quote

from vidlex.service.bounds import MAX_PAGE_SIZE
from vidlex.service.client.calls import ClassifyOptions, view_of
from vidlex.service.client.config import RetryPolicy
from vidlex.service.client.errors import (
    CLASS_OF_CODE,
    Conflict,
    ConnectionFailed,
    JobFailed,
    RequestInvalid,
    TimedOut,
    UnexpectedAnswer,
    VidlexClientError,
)
from vidlex.service.client.exchange import Attempts, Call
from vidlex.service.client.uploads import OnProgress, Upload, VideoInput
from vidlex.service.schemas.classify import ClassificationView
from vidlex.service.schemas.jobs import (
    JobKindName,
    JobListView,
    JobStateName,
    JobView,
    NewJobKindName,
    PriorityName,
)

FINAL_STATES: frozenset[JobStateName] = frozenset({"succeeded", "failed", "cancelled", "expired"})
SILENCE_SECONDS = 60.0
"""Of a stream, which sends at least a comment every 15 s; after that it is opened again."""
MAX_WAIT_SECONDS = 30.0
"""Of one request that waits for the end of a job."""
MAX_LINE_BYTES = 32 << 20  # a result with all its labels is a line of a batch's output
_END_PAUSE_SECONDS = 0.5
_MIN_POLL_SECONDS = 0.5


class WebhookOptions(TypedDict, total=False):
    url: str
    events: Sequence[Literal["job.succeeded", "job.failed", "job.cancelled", "job.expired"]]
    cloud_events: bool


Webhook = str | WebhookOptions
"""A URL, or the members of the body."""


class JobFilters(TypedDict, total=False):
    state: JobStateName | None
    kind: JobKindName | None
    dead: bool | None


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    kind: NewJobKindName
    priority: PriorityName
    webhook: Webhook | None
    metadata: Mapping[str, Any] | None
    idempotency_key: str | None


class JobFacts:
    """What `Job` and `AsyncJob` say without a request."""

    def __init__(self, view: JobView) -> None:
        self.view = view

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} {self.state}>"

    @property
    def id(self) -> str:
        return self.view.id

    @property
    def state(self) -> JobStateName:
        return self.view.state

    @property
    def is_finished(self) -> bool:
        return self.view.state in FINAL_STATES


@dataclass(frozen=True)
class JobEvent:
    """``type`` is `state`, `progress` or `labels`. ``id``: to go on behind this event."""

    id: str
    type: str
    data: Mapping[str, Any]

    @property
    def is_final(self) -> bool:
        return self.type == "state" and self.data.get("state") in FINAL_STATES


def submit(
    file: VideoInput | None,
    url: str | None,
    job: JobOptions,
    options: ClassifyOptions,
    *,
    on_progress: OnProgress | None,
) -> Call[JobView]:
    """With an Idempotency-Key, so that it can be repeated. Raises RequestInvalid."""
    if (file is None) == (url is None):
        raise RequestInvalid("give either a file or a url", code="invalid_parameter")
    body: dict[str, Any] = {"kind": job.kind, "priority": job.priority}
    params = {key: _plain(value) for key, value in options.items() if value is not None}
    if params:
        body["params"] = params
    if job.webhook is not None:
        body["webhook"] = {"url": job.webhook} if isinstance(job.webhook, str) else _plain_items(job.webhook)
    if job.metadata is not None:
        body["metadata"] = dict(job.metadata)
    headers = {"Idempotency-Key": job.idempotency_key or secrets.token_hex(16)}
    if file is None:
        body["input"] = {"url": url}
        return Call("POST", "/jobs", view_of(JobView), headers=headers, body=body, is_repeatable=True)
    upload = Upload(file, body, on_progress)
    return Call("POST", "/jobs", view_of(JobView), headers=headers, upload=upload, is_repeatable=True)


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | None) else list(value)


def _plain_items(members: WebhookOptions) -> dict[str, Any]:
    return {key: _plain(value) for key, value in members.items()}


def get(job_id: str, wait_seconds: float = 0.0) -> Call[JobView]:
    headers = {"Prefer": f"wait={round(wait_seconds)}"} if wait_seconds >= 1 else {}
    return Call("GET", _path(job_id), view_of(JobView), headers=headers, is_repeatable=True)


def page(filters: JobFilters, *, after: str | None, page_size: int) -> Call[JobListView]:
    params: dict[str, str | int] = {"limit": min(page_size, MAX_PAGE_SIZE)}
    for key, value in filters.items():
        if value is not None:
            params[key] = str(value).lower() if isinstance(value, bool) else str(value)
    if after is not None:
        params["after"] = after
    return Call("GET", "/jobs", view_of(JobListView), params=params, is_repeatable=True)


def cancel(job_id: str) -> Call[JobView]:
    return Call("DELETE", _path(job_id), view_of(JobView), is_repeatable=True)


def retry(job_id: str) -> Call[JobView]:
    return Call("POST", f"{_path(job_id)}:retry", view_of(JobView))


def result(job_id: str) -> Call[ClassificationView]:
    return Call("GET", f"{_path(job_id)}/result", view_of(ClassificationView), is_repeatable=True)


def lines(job_id: str, name: Literal["output", "errors"]) -> Call[None]:
    headers = {"Accept": "application/jsonl"}
    return Call("GET", f"{_path(job_id)}/{name}", lambda _: None, headers=headers, is_repeatable=True)


def check_succeeded(view: JobView) -> None:
    """Raises the class of the job's error, or JobFailed."""
    if view.state == "succeeded":
        return
    if view.error is not None and view.state == "failed":
        kind = CLASS_OF_CODE.get(view.error.code, JobFailed)
        raise kind(view.error.detail, code=view.error.code)
    raise JobFailed(f"the job {view.id} is {view.state}", code=f"job_{view.state}")


def check_is_classification(view: JobView) -> None:
    """Raises Conflict."""
    if view.kind != "classify":
        raise Conflict(f"a job of the kind {view.kind} has no classification as its result", code="job_conflict")


def pause_between(took_seconds: float, seconds_left: float | None) -> float:
    """Before the next request for the job, if the last one was answered without waiting."""
    pause = max(0.0, _MIN_POLL_SECONDS - took_seconds)
    return pause if seconds_left is None else min(pause, max(0.0, seconds_left - took_seconds))


def wait_seconds(seconds_left: float | None, timeout_seconds: float) -> float:
    """Of the next request, for a client whose requests may be silent for ``timeout_seconds``."""
    most = min(MAX_WAIT_SECONDS, timeout_seconds / 2)
    return max(0.0, most if seconds_left is None else min(most, seconds_left))


def _path(job_id: str) -> str:
    return f"/jobs/{quote(job_id, safe='')}"


class Following:
    """A stream of events that is opened again behind the last event that was read, without input and output."""

    def __init__(self, job_id: str, after: str | None, policy: RetryPolicy) -> None:
        self._path = f"{_path(job_id)}/events"
        self._after = after
        self._policy = policy
        self._attempts = self._new_attempts()
        self._parser = EventParser()

    def _new_attempts(self) -> Attempts:
        return Attempts(self._call(), self._policy)

    def _call(self) -> Call[None]:
        headers = {"Accept": "text/event-stream"}
        if self._after is not None:
            headers["Last-Event-ID"] = self._after
        return Call("GET", self._path, lambda _: None, headers=headers, is_repeatable=True)

    def next_call(self) -> Call[None]:
        self._parser = EventParser()
        return self._call()

    def feed(self, chunk: bytes) -> Iterator[JobEvent]:
        """Raises UnexpectedAnswer."""
        self._attempts = self._new_attempts()
        for event in self._parser.feed(chunk):
            self._after = event.id
            yield event

    def pause_after(self, error: VidlexClientError | None) -> float:
        """Seconds until the next request. ``error`` None: the stream has ended. Raises ``error`` if there is none."""
        if error is None:
            return _END_PAUSE_SECONDS
        if isinstance(error, TimedOut):
            broken = ConnectionFailed(error.detail)
            broken.was_connected = True
            pause = self._attempts.pause_after(broken, None)
        else:
            pause = self._attempts.pause_after(error, error.retry_after_seconds)
        if pause is None:
            raise error
        return pause


class Lines:
    """Splits bytes as they come. Raises UnexpectedAnswer for a line that is too long."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        *complete, rest = (self._rest + chunk).split(b"\n")
        if len(rest) > MAX_LINE_BYTES:
            raise UnexpectedAnswer("a line of the answer is too long")
        self._rest = rest
        for line in complete:
            yield line.removesuffix(b"\r")


def parse_object(text: bytes | str) -> dict[str, Any]:
    """Raises UnexpectedAnswer."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UnexpectedAnswer("a line of the answer has no JSON object")
    return found


class EventParser:
    """Server-Sent Events (HTML standard, 9.2.6), with JSON as data."""

    def __init__(self) -> None:
        self._lines = Lines()
        self._id = ""
        self._type = ""
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> Iterator[JobEvent]:
        """Raises UnexpectedAnswer."""
        for line in self._lines.feed(chunk):
            event = self._read(line.decode("utf-8", "replace"))
            if event is not None:
                yield event

    def _read(self, line: str) -> JobEvent | None:
        if not line:
            return self._dispatch()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "id":
            self._id = value
        elif name == "event":
            self._type = value
        elif name == "data":
            self._data.append(value)
        return None

    def _dispatch(self) -> JobEvent | None:
        text, event_type = "\n".join(self._data), self._type
        self._data, self._type = [], ""
        if not text:
            return None
        return JobEvent(self._id, event_type, parse_object(text))
