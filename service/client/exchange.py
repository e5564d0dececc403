"""A request, its repetitions and its answer, without input and output: `Client` and `AsyncClient` carry it out."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Generic, TypeVar

from vidlex.service.client.config import RetryPolicy
from vidlex.service.client.errors import (
    ConnectionFailed,
    RequestInvalid,
    UnexpectedAnswer,
    VidlexClientError,
    error_of,
)
from vidlex.service.client.uploads import Upload

T = TypeVar("T")

MAX_ANSWER_BYTES = 1 << 30
MAX_JITTER_SECONDS = 0.5  # of a Retry-After, whose place the service keeps for 1.5 s
_FIRST_PAUSE_SECONDS, _MAX_PAUSE_SECONDS = 0.25, 8.0
_MAX_RETRY_AFTER_SECONDS = 86_400.0
# The service has not begun what it refuses with these.
_NOT_BEGUN = frozenset({"model_loading", "idempotency_in_flight"})
_FROM_A_PROXY = frozenset({"http_502", "http_503", "proxy_error"})


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]  # by name in lower case
    body: bytes

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300


@dataclass(frozen=True)
class Call(Generic[T]):
    """``is_repeatable``: executing it twice is as good as once. ``answers``: statuses that are no errors here."""

    method: str
    path: str
    parse: Callable[[Reply], T]
    params: Mapping[str, str | int] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Any = None
    upload: Upload | None = None
    is_repeatable: bool = False
    answers: frozenset[int] = frozenset()

    def content(self) -> bytes | None:
        """Raises RequestInvalid for a number that JSON does not have."""
        try:
            return None if self.body is None else json.dumps(self.body, allow_nan=False).encode()
        except ValueError as error:
            raise RequestInvalid(f"the request cannot be sent as JSON: {error}", code="malformed") from None


@dataclass(frozen=True)
class Send:
    """Answered with a Reply, or with why there is none."""


@dataclass(frozen=True)
class Pause:
    seconds: float


Exchange = Generator[Send | Pause, Reply | VidlexClientError | None, T]


def exchange(call: Call[T], policy: RetryPolicy, clock: Callable[[], float] = time.monotonic) -> Exchange[T]:
    """Raises the last attempt's VidlexClientError."""
    attempts = Attempts(call, policy, clock)
    while True:
        got = yield Send()
        assert got is not None
        if isinstance(got, Reply):
            if got.is_success or got.status in call.answers:
                return call.parse(got)
            error, retry_after = error_of_reply(got), retry_after_of(got)
        else:
            error, retry_after = got, None
        pause = attempts.pause_after(error, retry_after)
        if pause is None:
            raise error
        yield Pause(pause)


class Attempts:
    """Which failures of a call are waited out."""

    def __init__(self, call: Call[Any], policy: RetryPolicy, clock: Callable[[], float] = time.monotonic) -> None:
        self._call, self._policy, self._clock = call, policy, clock
        self._refused_since: float | None = None
        self._unconnected_since: float | None = None
        self._num_broken = self._num_failures = 0

    def pause_after(self, error: VidlexClientError, retry_after: float | None) -> float | None:
        """Seconds until the next attempt; None if there is none."""
        if self._call.upload is not None and not self._call.upload.can_be_repeated:
            return None
        now = self._clock()
        self._num_failures += 1
        backoff = min(_MAX_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2 ** min(10, self._num_failures - 1))
        if isinstance(error, ConnectionFailed):
            pause = backoff * random.uniform(0.5, 1.0)
            if not error.was_connected:
                self._unconnected_since = now if self._unconnected_since is None else self._unconnected_since
                return pause if now + pause <= self._unconnected_since + self._policy.connect_seconds else None
            self._num_broken += 1
            is_allowed = self._call.is_repeatable and self._num_broken <= self._policy.max_broken_connections
            return pause if is_allowed else None
        self._num_broken, self._unconnected_since = 0, None
        if not self._may_repeat(error):
            return None
        pause = backoff if retry_after is None else max(0.1, retry_after)
        pause += random.uniform(0.0, min(MAX_JITTER_SECONDS, pause))
        self._refused_since = now if self._refused_since is None else self._refused_since
        return pause if now + pause <= self._refused_since + self._policy.max_seconds else None

    def _may_repeat(self, error: VidlexClientError) -> bool:
        if error.status == 429 or error.code in _NOT_BEGUN:
            return True
        return self._call.is_repeatable and (error.code == "stopping" or error.code in _FROM_A_PROXY)


def error_of_reply(reply: Reply) -> VidlexClientError:
    if 300 <= reply.status < 400:
        target = reply.headers.get("location", "another address")[:200]
        return UnexpectedAnswer(f"the answer refers to {target}: use that address", status=reply.status)
    try:
        document = json.loads(reply.body)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict) or not ("detail" in document or "title" in document):
        return error_of({"status": reply.status, "title": f"HTTP {reply.status}"}, reply.status)
    return error_of(document, reply.status)


def retry_after_of(reply: Reply) -> float | None:
    """Seconds of the header, which may also be a date (RFC 9110, 10.2.3)."""
    text = reply.headers.get("retry-after", "").strip()
    try:
        seconds = float(text)
    except ValueError:
        try:
            date = parsedate_to_datetime(text)
        except ValueError:
            return None
        seconds = ((date if date.tzinfo else date.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds()
    return None if math.isnan(seconds) else min(_MAX_RETRY_AFTER_SECONDS, max(0.0, seconds))
