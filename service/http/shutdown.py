"""The polite end: what was accepted is finished, what comes later is sent elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vidlex.service.errors import Stopping


class Draining:
    """Counts the requests at work, on the event loop; ``begin`` may come from anywhere, a signal's handler too."""

    def __init__(self) -> None:
        self.has_begun = False
        self._num_requests = 0

    def begin(self) -> None:
        """From now on new requests are refused."""
        self.has_begun = True

    @property
    def num_requests(self) -> int:
        """Requests that were accepted and whose answer is not out yet."""
        return self._num_requests

    @contextmanager
    def accept(self) -> Iterator[None]:
        """Around the work of one request. Raises Stopping when it came too late."""
        if self.has_begun:
            raise Stopping("The service is stopping; another replica, or a later moment, will answer")
        self._num_requests += 1
        try:
            yield
        finally:
            self._num_requests -= 1
