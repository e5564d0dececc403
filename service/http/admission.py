"""Bounds the classify requests at work, and gives a refused client the time of its next try.

A client holds at most as many places as are free: half of them if it is alone. So there is room for others.

A 429 carries a slot in ``Retry-After``; slots are handed out at half the rate at which requests finish. A client that
returns in its slot may use every place; while slots are outstanding, other clients may use half of the places. A slot
is used once, expires ``_EXPIRY_SECONDS`` after its time, and a client holds at most ``_MAX_CLIENT_SLOTS`` of them. A
client that was refused because it holds its share gets a time too, for which no place is kept free.

A client is identified by its API key, or by its address if it has none.
"""

from __future__ import annotations

import bisect
import math
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic

from vidlex.service.errors import DeadlineExceeded, Overloaded, ShareExceeded

LIMIT = "requests"  # of a refusal
MAX_RETRY_SECONDS = 300  # the longest Retry-After, which reserves no slot
# Slots per finished request. At 0.8, slots in whole seconds bring clients back in crowds larger than the free places
# (measured: 65 % of the returning clients admitted, 100 % at 0.5).
_SLOT_RATE = 0.5
_EXPIRY_SECONDS = 1.5
_EARLY_SECONDS = 0.1  # a client that returns this much too early still uses its slot
_MAX_CLIENT_SLOTS = 4
_MAX_SLOTS = 2048
_NUM_DURATIONS = 32
_ASSUMED_SECONDS = 0.5  # until requests have been measured


@dataclass(frozen=True)
class _Slot:
    client: str
    at: float
    keeps_place: bool


class Entry:
    def __init__(self, admission: Admission, client: str) -> None:
        self._admission = admission
        self.client = client
        self.is_uploading = True

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Around the work, after the upload. Raises Overloaded at once if every place is taken."""
        with self._admission.work(self):
            yield


class Admission:
    """Thread-safe. ``clock`` returns seconds and is monotonic."""

    def __init__(self, max_requests: int, num_workers: int, *, clock: Callable[[], float] = monotonic) -> None:
        self._max_requests = max_requests
        self._num_workers = num_workers
        self._clock = clock
        self._lock = threading.Lock()
        self._working: Counter[str] = Counter()  # requests by client
        self._uploading: Counter[str] = Counter()
        # Of the last requests.
        self._worker_seconds = deque([_ASSUMED_SECONDS] * _NUM_DURATIONS, maxlen=_NUM_DURATIONS)
        self._last_finish: float | None = None  # of a request, while all workers were busy
        self._slots: list[_Slot] = []  # sorted by time
        self._next_slot = -math.inf

    @property
    def num_working(self) -> int:
        """Requests whose video has been received and that are not yet answered."""
        return self._working.total()

    @property
    def num_slots(self) -> int:
        return len(self._slots)

    @contextmanager
    def enter(self, client: str) -> Iterator[Entry]:
        """Around the whole request: raises Overloaded or ShareExceeded before the upload, which saves its bytes."""
        with self._lock:
            self._check(client)
            self._uploading[client] += 1
        entry = Entry(self, client)
        try:
            yield entry
        finally:
            with self._lock:
                self._end_upload(entry)

    @contextmanager
    def work(self, entry: Entry) -> Iterator[None]:
        with self._lock:
            self._end_upload(entry)
            if self.num_working >= self._max_requests:
                raise self._refusal(entry.client)
            self._working[entry.client] += 1
        started = self._clock()
        try:
            yield
        finally:
            with self._lock:
                self._measure(started)
                _count_down(self._working, entry.client)

    def seconds_until_done(self, num_requests: int) -> float:
        durations = tuple(self._worker_seconds)
        return num_requests * sum(durations) / len(durations) / self._num_workers

    def check_deadline(self, client: str, seconds: float) -> None:
        """Raises DeadlineExceeded if the requests before another one of this client leave no time for it.

        Clients are served in turn, so that of each other client as many come first as this one has.
        """
        with self._lock:
            own = self._working[client]
            num_others = len(self._working) - (own > 0)
            num_before = min(self.num_working, own + (own + 1) * num_others)
        if num_before >= self._num_workers and seconds < self.seconds_until_done(num_before + 1):
            raise DeadlineExceeded("With the requests already waiting, the answer would miss the deadline")

    # --- the lock is held

    def _check(self, client: str) -> None:
        now = self._clock()
        del self._slots[: bisect.bisect_left(self._slots, now - _EXPIRY_SECONDS, key=_time)]
        num_slots = sum(slot.keeps_place for slot in self._slots)
        num_reserved = 0 if self._use_slot(client, now) else min(num_slots, self._max_requests // 2)
        # Slow uploads take at most half of the places away from others.
        num_taken = self.num_working + min(self._uploading.total(), self._max_requests // 2)
        if num_taken + num_reserved >= self._max_requests:
            raise self._refusal(client)
        own = self._working[client] + self._uploading[client]
        if own and own + 1 > self._max_requests - num_taken:
            raise self._share_exceeded(client)

    def _use_slot(self, client: str, now: float) -> bool:
        for i, slot in enumerate(self._slots):
            if slot.at > now + _EARLY_SECONDS:
                break
            if slot.client == client:
                del self._slots[i]
                return True
        return False

    def _refusal(self, client: str) -> Overloaded:
        error = Overloaded("Too many videos are waiting", limit=LIMIT)
        error.retry_after_seconds = self._reserve(client, keeps_place=True)
        return error

    def _share_exceeded(self, client: str) -> ShareExceeded:
        error = ShareExceeded("Too many videos of this client are waiting", limit=LIMIT)
        error.retry_after_seconds = self._reserve(client, keeps_place=False)
        return error

    def _reserve(self, client: str, *, keeps_place: bool) -> int:
        """Seconds until the client's slot. A client that holds enough slots gets the time of its last one."""
        now = self._clock()
        own = [slot for slot in self._slots if slot.client == client]
        if len(own) >= _MAX_CLIENT_SLOTS:
            return max(1, math.ceil(own[-1].at - now))
        at = max(self._next_slot, now) + self.seconds_until_done(1) / _SLOT_RATE
        seconds = max(1, math.ceil(at - now))
        if seconds > MAX_RETRY_SECONDS or len(self._slots) >= _MAX_SLOTS:
            return MAX_RETRY_SECONDS
        self._next_slot = at
        bisect.insort(self._slots, _Slot(client, now + seconds, keeps_place), key=_time)
        return seconds

    def _measure(self, started: float) -> None:
        """With all workers busy, measures the time since the previous request finished."""
        now = self._clock()
        if self.num_working <= self._num_workers:
            self._worker_seconds.append(now - started)
            self._last_finish = None
            return
        if self._last_finish is not None:
            self._worker_seconds.append((now - self._last_finish) * self._num_workers)
        self._last_finish = now

    def _end_upload(self, entry: Entry) -> None:
        if entry.is_uploading:
            entry.is_uploading = False
            _count_down(self._uploading, entry.client)


def _time(slot: _Slot) -> float:
    return slot.at


def _count_down(counts: Counter[str], client: str) -> None:
    counts[client] -= 1
    if counts[client] <= 0:
        del counts[client]
