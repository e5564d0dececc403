"""Who may be worked on now, and when the others should come back: a bound on videos at work, with promises.

A refused client is told a moment of its own, by the rate at which places have been becoming free, and a place is kept
for it then (``service.http.retry_slots``): newcomers get only what is not promised. A client is known by its API key,
or by its address where there is none; it holds few promises at the same time, so that one who asks again and again
gains nothing on one who waits as told.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic

from vidlex.service.errors import DeadlineExceeded, Overloaded
from vidlex.service.http.retry_slots import Pace, Promises

_PACE = 1.25
"""Promises are given for so many times fewer places than become free: the rate is a guess, and newcomers take the
rest."""
_NUM_LEARNED = 16
"""Moments of which the rate is the mean."""
_MOMENT_SECONDS = 0.01
"""Videos of one batch are done within so many seconds of one another."""
_MOMENT_VIDEOS = 64
_HELD_SECONDS = 1.0
"""Who is let in has its place so long while it sends the video; then it is a newcomer again."""
_HELD_PROMISED_SECONDS = 10.0
"""The same for who has come as told."""


@dataclass(eq=False)
class _Moment:
    """In which some videos were done."""

    num_videos: int
    seconds: float
    """Of one worker, since the moment before."""


@dataclass(eq=False)
class _Hold:
    until_at: float


class Entry:
    """One request's way in, from ``Admission.enter``."""

    def __init__(self, admission: Admission, client: str, hold: _Hold | None) -> None:
        self._admission, self._client, self._hold = admission, client, hold

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Around the work. Raises Overloaded at once when too many are at work."""
        with self._admission.work(self._client, self._hold):
            yield


class Admission:
    """Thread-safe. ``clock`` gives seconds, and only goes forward."""

    def __init__(self, max_requests: int, num_workers: int, *, clock: Callable[[], float] = monotonic) -> None:
        self._max_requests = max_requests
        self._num_workers = num_workers
        self._clock = clock
        self._lock = threading.Lock()
        self._count = 0
        self._holds: list[_Hold] = []
        # At first it is taken for known that 8 videos took half a second each.
        self._moments = deque((_Moment(1, 0.5) for _ in range(8)), maxlen=_NUM_LEARNED)
        self._busy_done_at: float | None = None
        # Never so many that workers idle for those who do not come, and newcomers keep half.
        self._promises = Promises(max(0, min(max_requests // 2, max_requests - 2 * num_workers)))

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
            hold = self._hold(as_told=self._check(client))
        try:
            yield Entry(self, client, hold)
        finally:
            with self._lock:
                self._let_go(hold)

    @contextmanager
    def work(self, client: str, hold: _Hold | None) -> Iterator[None]:
        """See ``Entry.admit``."""
        with self._lock:
            if not self._let_go(hold):
                self._check(client)
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
        moments = tuple(self._moments)
        seconds = sum(m.seconds for m in moments) / sum(m.num_videos for m in moments)
        return num_requests * seconds / self._num_workers

    def check_deadline(self, seconds: float) -> None:
        """Raises DeadlineExceeded when what is at work already leaves no time for one more."""
        if self._count and seconds < self.seconds_until_done(self._count + 1):
            raise DeadlineExceeded("With what is waiting now, the answer would come after the deadline")

    # --- inside, with the lock

    def _learn(self, started: float) -> None:
        """From a request that is done: with all workers busy, the time since the one before it, else its own."""
        now = self._clock()
        if self._count <= self._num_workers:
            self._moments.append(_Moment(1, now - started))
            self._busy_done_at = None
            return
        if self._busy_done_at is not None:
            seconds, last = now - self._busy_done_at, self._moments[-1]
            if seconds < _MOMENT_SECONDS and last.num_videos < _MOMENT_VIDEOS:
                last.num_videos += 1
                last.seconds += seconds * self._num_workers
            else:
                self._moments.append(_Moment(1, seconds * self._num_workers))
        self._busy_done_at = now

    def _pace(self) -> Pace:
        """Of the places that are promised."""
        lag = max(m.seconds for m in self._moments) / self._num_workers
        return Pace(1.0 / max(1e-6, _PACE * self.seconds_until_done(1)), lag)

    def _check(self, client: str) -> bool:
        """Whether it has come as told, which uses up its promise. Raises Overloaded when there is no place for it."""
        now, pace = self._clock(), self._pace()
        self._holds = [hold for hold in self._holds if hold.until_at > now]
        self._promises.forget_late(now)
        num_free = self._max_requests - self._count - len(self._holds)
        as_told = self._promises.take(client, now)
        if num_free <= 0 or (not as_told and num_free <= self._promises.num_kept(now, pace)):
            error = Overloaded("Too many videos are waiting")
            error.retry_after_seconds = self._promises.make(client, now, pace=pace, num_free=num_free)
            raise error
        return as_told

    def _hold(self, *, as_told: bool) -> _Hold | None:
        """A place until the video is there; None where newcomers hold enough: who only holds a place must not keep out
        those who send."""
        if not as_told and len(self._holds) >= max(1, self._max_requests // 2):
            return None
        hold = _Hold(self._clock() + (_HELD_PROMISED_SECONDS if as_told else _HELD_SECONDS))
        self._holds.append(hold)
        return hold

    def _let_go(self, hold: _Hold | None) -> bool:
        """Whether the place was still held."""
        if hold is None or hold not in self._holds:
            return False
        self._holds.remove(hold)
        return hold.until_at > self._clock()
