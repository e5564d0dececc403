"""The files that wait for a decode process or hold one, and which of them is next.

Clients share the processes by the seconds for which their files hold them: see `FairQueue`. A file holds its process to
its end, which may take minutes, so that clients with long files could hold all of them. Spare processes are for clients
of which no file is in progress, when no other process has become free for a moment: the operating system then shares
the cores between all.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from vidlex.service.errors import Overloaded
from vidlex.service.machine.cpus import num_cpus
from vidlex.service.sharing.fair_queue import FairQueue

_IDLE_SECONDS = 1.0
# Short files do without spares: more processes than cores decode no more videos per second.
_SPARE_AFTER_SECONDS = 0.1
# What a file takes at least, until it has taken more: so that a client's second file does not come before the first
# one of another.
_FIRST_CHARGE_SECONDS = 0.1
# After this time in progress a file goes behind those of other clients, and the service itself: the client's next ones
# at once, for a while.
_LONG_SECONDS = 0.5
# A client that had a file so recently may have its frames encoded now, and comes back soon.
_RECENT_SECONDS = 5.0
_NUM_LOWERED = 2


@dataclass(eq=False, kw_only=True)
class QueuedFile:
    client: str
    started: float = field(default=0.0, init=False)  # time.monotonic
    charged_seconds: float = field(default=0.0, init=False)
    num_lowered: int = field(default=0, init=False)


FileT = TypeVar("FileT", bound=QueuedFile)


class FileQueue(Generic[FileT]):
    """Thread-safe. ``two_clients`` is set once a second client has had a file, and when the queue is closed."""

    def __init__(self, max_unfinished: int) -> None:
        self._max_unfinished = max_unfinished
        self._condition = threading.Condition()
        self._queued: FairQueue[FileT] = FairQueue()
        self._unfinished: Counter[str] = Counter()  # by client, queued or in progress
        self._in_progress: Counter[str] = Counter()
        self._seen_at: dict[str, float] = {}  # by client, of the last ``_RECENT_SECONDS``; time.monotonic
        self._long_at: dict[str, float] = {}  # by client in ``_seen_at``, when a file of it was long; time.monotonic
        self._num_idle = 0  # processes that wait for a file, without spares
        self._last_start = 0.0  # of a file, by a process that is no spare; time.monotonic
        self._last_client: str | None = None
        self._is_closed = False
        self.two_clients = threading.Event()

    @property
    def num_unfinished(self) -> int:
        return self._unfinished.total()

    def add(self, file: FileT) -> None:
        """Raises Overloaded. Call ``remove`` in the end."""
        with self._condition:
            if self._is_closed:
                raise Overloaded("The service is stopping.")
            if self.num_unfinished >= self._max_unfinished:
                raise Overloaded("Too many videos are waiting to be decoded.", limit="queued_videos")
            self._unfinished[file.client] += 1
            self._see(file.client)
            self._queued.push(file.client, file)
            self._condition.notify_all()
            if self._last_client not in (None, file.client):
                self.two_clients.set()
            self._last_client = file.client

    def remove(self, file: FileT) -> None:
        """It is not waited for any more."""
        with self._condition:
            self._queued.remove(file.client, file)
            _count_down(self._unfinished, file.client)
            self._see(file.client)

    def _see(self, client: str) -> None:
        """Kept in order of time."""
        now = time.monotonic()
        self._seen_at.pop(client, None)
        self._seen_at[client] = now
        while now - (first := next(iter(self._seen_at.items())))[1] > _RECENT_SECONDS:
            del self._seen_at[first[0]]
            self._long_at.pop(first[0], None)

    def _has_others(self, client: str) -> bool:
        """Whether another client has a file, or had one a moment ago."""
        with self._condition:
            since = time.monotonic() - _RECENT_SECONDS
            recent = (other for other, seen_at in self._seen_at.items() if seen_at > since)
            return any(other != client for other in itertools.chain(self._unfinished, recent))

    def take(self, *, is_spare: bool) -> FileT | None:
        """Wait a moment for a file; it is in progress until ``finish``."""
        with self._condition:
            file, wait_seconds = self._next(is_spare)
            if file is None and not self._is_closed:
                self._num_idle += not is_spare
                self._condition.wait(wait_seconds)
                self._num_idle -= not is_spare
                file, _ = self._next(is_spare)
            if file is None:
                return None
            self._in_progress[file.client] += 1
            file.started, file.charged_seconds = time.monotonic(), _FIRST_CHARGE_SECONDS
            self._last_start = self._last_start if is_spare else file.started
            self._queued.charge(file.client, file.charged_seconds)
            if self._queued:
                self._condition.notify_all()  # a spare may take what this process did not
            return file

    def _next(self, is_spare: bool) -> tuple[FileT | None, float]:
        """And how long to wait if there is none."""
        if not is_spare:
            return self._queued.take(), _IDLE_SECONDS
        seconds = self._last_start + _SPARE_AFTER_SECONDS - time.monotonic()
        if seconds > 0:
            return None, seconds if self._queued else _IDLE_SECONDS
        if self._num_idle:
            return None, _IDLE_SECONDS
        return self._queued.take(lambda client, _: not self._in_progress[client]), _IDLE_SECONDS

    def charge(self, file: FileT) -> bool:
        """Call it at the start of the file and now and then while it is in progress.

        True when its process is to go after others: twice, since its threads may not have started at the first time.
        """
        seconds = time.monotonic() - file.started
        if seconds > file.charged_seconds:
            self._charge(file, seconds)
        if not self._is_long(file.client, seconds) or not self._has_others(file.client):
            return False
        file.num_lowered += 1
        return file.num_lowered <= _NUM_LOWERED

    def _is_long(self, client: str, seconds: float) -> bool:
        with self._condition:
            now = time.monotonic()
            if seconds >= _LONG_SECONDS:
                self._long_at[client] = now
            return now - self._long_at.get(client, -math.inf) <= _RECENT_SECONDS

    def finish(self, file: FileT) -> None:
        seconds = time.monotonic() - file.started
        self._charge(file, seconds)
        with self._condition:
            self._see(file.client)  # its file may have taken longer than clients are remembered
            if seconds >= _LONG_SECONDS:
                self._long_at[file.client] = time.monotonic()
            _count_down(self._in_progress, file.client)
            self._condition.notify_all()  # a spare may take the client's next file

    def _charge(self, file: FileT, seconds: float) -> None:
        with self._condition:
            self._queued.charge(file.client, seconds - file.charged_seconds)
        file.charged_seconds = seconds

    def close(self) -> list[FileT]:
        """Returns those that were queued."""
        with self._condition:
            self._is_closed = True
            self.two_clients.set()
            self._condition.notify_all()
            return self._queued.clear()

    def num_threads(self, file: FileT) -> int:
        """The cores are divided among the clients, and a client's among its files."""
        with self._condition:
            return threads_per_file(self._unfinished[file.client], len(self._unfinished))


def threads_per_file(num_files: int, num_clients: int = 1) -> int:
    return max(1, num_cpus() // max(1, num_files) // max(1, num_clients))


def _count_down(counts: Counter[str], client: str) -> None:
    counts[client] -= 1
    if counts[client] <= 0:
        del counts[client]
