"""Hands the decoded chunks of one file from a thread of the pool to the thread of the request."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from typing import Literal

from vidlex.model.types import FrameBatch
from vidlex.service.errors import Overloaded, VidlexError

_POLL_SECONDS = 0.1  # of ``cancelled``, an event of another thread


class ChunkStream:
    """One chunk at a time: the pool's thread waits until the request has taken the chunk before.

    Iterate on the request's thread. Raises the error that ``end`` was given, and Overloaded once ``deadline`` (of
    time.monotonic) has passed or ``cancelled`` is set. A chunk is valid until the next one is asked for.
    """

    def __init__(self, *, deadline: float = math.inf, cancelled: threading.Event | None = None) -> None:
        self._condition = threading.Condition()
        self._deadline = deadline
        self._cancelled = cancelled
        self._state: Literal["queued", "running", "ended"] = "queued"
        self._is_closed = False  # by the request, which wants no more
        self._chunk: FrameBatch | None = None
        self._error: VidlexError | None = None

    # --- on the pool's thread

    def begin(self) -> bool:
        """False if the request has given up."""
        with self._condition:
            if self._is_closed:
                return False
            self._state = "running"
            self._condition.notify_all()
            return True

    def offer(self, chunk: FrameBatch) -> bool:
        """Wait until the chunk is taken, or return False if it will not be."""
        with self._condition:
            self._chunk = chunk
            self._condition.notify_all()
            self._condition.wait_for(lambda: self._chunk is None or self._is_closed or self._state == "ended")
            return self._chunk is None and not self._is_closed and self._state != "ended"

    def end(self, error: VidlexError | None = None) -> None:
        """The first call counts. A chunk that was not taken is lost."""
        with self._condition:
            if self._state != "ended":
                self._state, self._error, self._chunk = "ended", error, None
                self._condition.notify_all()

    @property
    def is_over(self) -> bool:
        """No further chunk is wanted."""
        return self._is_closed or self._state == "ended"

    # --- on the request's thread

    def wait_for_start(self, wait_seconds: float = math.inf) -> None:
        """Raises Overloaded if no process is free within ``wait_seconds`` or by the deadline."""
        until = min(self._deadline, time.monotonic() + wait_seconds)
        with self._condition:
            while self._state == "queued":
                if time.monotonic() >= until:
                    self._is_closed = True
                    raise Overloaded("No decoder was free in time.", limit="timeout")
                self._wait(until)

    def __iter__(self) -> Iterator[FrameBatch]:
        return self

    def __next__(self) -> FrameBatch:
        with self._condition:
            while True:
                if time.monotonic() >= self._deadline:
                    raise Overloaded("The video was not decoded in time.", limit="timeout")
                if self._chunk is not None:
                    chunk, self._chunk = self._chunk, None
                    self._condition.notify_all()
                    return chunk
                if self._state == "ended":
                    if self._error is not None:
                        raise self._error
                    raise StopIteration
                self._wait(self._deadline)

    def close(self) -> None:
        with self._condition:
            self._is_closed = True
            self._chunk = None
            self._condition.notify_all()

    def _wait(self, until: float) -> None:
        """The caller holds the condition and checks why it returned."""
        if self._cancelled is not None and self._cancelled.is_set():
            raise Overloaded("The request was cancelled")
        remaining = until - time.monotonic()
        if self._cancelled is not None:
            remaining = min(remaining, _POLL_SECONDS)
        self._condition.wait(None if remaining == math.inf else max(0.0, remaining))
