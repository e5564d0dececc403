"""Who may be worked on now, and when the others should come back: a bound on videos at work, with promises.

A refused client is told a moment of its own, one after another at the rate at which places have been becoming free,
and a place is kept for it then: newcomers get only what is not promised. A client is known by its API key, or by its
address where there is none; it holds at most ``_MAX_PROMISES`` at the same time, so that one who asks again and again
gains nothing on one who waits as told.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic

from service.errors import DeadlineExceeded, Overloaded

_MAX_RETRY_SECONDS = 60.0
"""Nobody is told a later moment; whoever would have to be has no place kept."""
_MAX_PROMISES = 4
_MAX_ALL_PROMISES = 1024
"""Of all clients: looking through them is to stay cheap."""
_PACE = 1.25
"""Turns are so many times as far apart as places become free: the rate is a guess, and newcomers take the rest."""
_KEPT_SECONDS = 1.5
"""A promised place is kept so long after the told moment."""
_UPLOAD_SECONDS = 10.0
"""And so long for who has come in time and is sending the video."""


@dataclass(eq=False)
class _Promise:
    client: str
    from_at: float
    """From when on the place is kept: its turn, which is up to a second before the told moment."""
    until_at: float


class Entry:
    """One request's way in, from ``Admission.enter``."""

    def __init__(self, admission: Admission, client: str, promise: _Promise | None) -> None:
        self._admission, self._client, self._promise = admission, client, promise

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Around the work. Raises Overloaded at once when too many are at work."""
        with self._admission.work(self._client, self._promise):
            yield


class Admission:
    """Thread-safe. ``clock`` gives seconds, and only goes forward."""

    def __init__(self, max_requests: int, num_workers: int, *, clock: Callable[[], float] = monotonic) -> None:
        self._max_requests = max_requests
        self._num_workers = num_workers
        # Never so many that workers idle for those who do not come, and newcomers keep half.
        self._max_kept = max(0, min(max_requests // 2, max_requests - 2 * num_workers))
        self._clock = clock
        self._lock = threading.Lock()
        self._count = 0
        self._mean_seconds = 0.5
        """Of one worker for one video."""
        self._busy_done_at: float | None = None
        self._last_turn_at = 0.0
        self._promises: list[_Promise] = []

    @property
    def count(self) -> int:
        return self._count

    @property
    def num_promises(self) -> int:
        """Refused clients that are expected back."""
        return len(self._promises)

    @contextmanager
    def enter(self, client: str) -> Iterator[Entry]:
        """Ask before an upload: raises Overloaded when ``admit`` would, which saves the bytes."""
        with self._lock:
            promise = self._due_promise(client)
            self._check(client, promise)
            if promise is not None:
                promise.until_at = max(promise.until_at, self._clock() + _UPLOAD_SECONDS)
                promise.client = ""  # it is used: a second request of the same client has another, or none
        try:
            yield Entry(self, client, promise)
        finally:
            with self._lock:
                self._forget(promise)

    @contextmanager
    def work(self, client: str, promise: _Promise | None) -> Iterator[None]:
        """See ``Entry.admit``."""
        with self._lock:
            self._check(client, promise)
            self._forget(promise)
            self._count += 1
        started = self._clock()
        try:
            yield
        finally:
            with self._lock:
                self._learn(started)
                self._count -= 1

    def seconds_until_done(self, num_requests: int) -> float:
        """How long so many requests take at the rate at which they have been leaving."""
        return num_requests * self._mean_seconds / self._num_workers

    def check_deadline(self, seconds: float) -> None:
        """Raises DeadlineExceeded when what is at work already leaves no time for one more."""
        if self._count and seconds < self.seconds_until_done(self._count + 1):
            raise DeadlineExceeded("With what is waiting now, the answer would come after the deadline")

    # --- inside, with the lock

    def _learn(self, started: float) -> None:
        """From a request that is done: with all workers busy, the time since the one before it, else its own."""
        now = self._clock()
        busy = self._count > self._num_workers
        if not busy:
            seconds = now - started
        elif self._busy_done_at is not None:
            seconds = (now - self._busy_done_at) * self._num_workers
        else:
            seconds = self._mean_seconds
        self._busy_done_at = now if busy else None
        self._mean_seconds += 0.1 * (seconds - self._mean_seconds)

    def _check(self, client: str, promise: _Promise | None) -> None:
        now = self._clock()
        self._promises = [p for p in self._promises if p.until_at > now]
        # Whose turn came earlier goes first, though it may come later: it was told a whole number of seconds.
        before = now if promise is None else promise.from_at
        kept = min(self._max_kept, sum(p.from_at <= before and p is not promise for p in self._promises))
        if self._max_requests - self._count - kept > 0:
            return
        error = Overloaded("Too many videos are waiting")
        error.retry_after_seconds = self._retry_after(client, promise, now)
        raise error

    def _retry_after(self, client: str, promise: _Promise | None, now: float) -> int:
        if promise is not None:  # it came as told and the others took longer than thought: the next turn is its own
            promise.client, promise.until_at = client, now + 1 + _KEPT_SECONDS
            return 1
        mine = [p for p in self._promises if p.client == client]
        if len(mine) < _MAX_PROMISES:
            turn_at = max(now, self._last_turn_at) + _PACE * self.seconds_until_done(1)
            # All workers may have just begun: a place that is kept from the turn on is free when one of them is done.
            seconds = max(1, math.ceil(turn_at + self._mean_seconds - now))
            if seconds <= _MAX_RETRY_SECONDS and len(self._promises) < _MAX_ALL_PROMISES:
                self._last_turn_at = turn_at
                self._promises.append(_Promise(client, turn_at, now + seconds + _KEPT_SECONDS))
                return seconds
            return round(_MAX_RETRY_SECONDS)
        return max(1, math.ceil(max(p.from_at for p in mine) - now))

    def _due_promise(self, client: str) -> _Promise | None:
        now = self._clock()
        due = [p for p in self._promises if p.client == client and p.from_at <= now < p.until_at]
        return min(due, key=lambda p: p.from_at) if due else None

    def _forget(self, promise: _Promise | None) -> None:
        if promise is not None and promise.client == "" and promise in self._promises:
            self._promises.remove(promise)
