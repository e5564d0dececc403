"""Time limits of one request, and its cancellation."""

from __future__ import annotations

import threading
import time

from vidlex.service.errors import FetchFailed

CONNECT_SECONDS = 10.0
"""For one address, its TLS handshake included."""
HEAD_SECONDS = 30.0
"""From the connection to the end of the answer's head."""
IDLE_SECONDS = 30.0
"""Without a byte."""


class Limits:
    poll_seconds = 0.25  # how soon a cancelled request ends

    def __init__(self, deadline: float, cancelled: threading.Event) -> None:
        """``deadline`` of time.monotonic."""
        self._deadline = deadline
        self._cancelled = cancelled
        self._head_until: float | None = None

    def begin_head(self) -> None:
        self._head_until = time.monotonic() + HEAD_SECONDS

    def end_head(self) -> None:
        self._head_until = None

    def check(self) -> None:
        """Raises FetchFailed."""
        if self._cancelled.is_set():
            raise FetchFailed("The request was cancelled")
        now = time.monotonic()
        if now >= self._deadline:
            raise FetchFailed("The URL was not read in time")
        if self._head_until is not None and now >= self._head_until:
            raise FetchFailed("The server did not answer in time")

    def seconds_left(self, at_most: float) -> float:
        """Positive. Raises FetchFailed."""
        self.check()
        return max(0.001, min(at_most, self._deadline - time.monotonic()))
