from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vidlex.service.errors import Stopping


class GracefulShutdown:
    """Use on the event loop; only ``begin`` may be called from signal handlers and other threads."""

    def __init__(self) -> None:
        self.has_begun = False
        self._num_requests = 0

    def begin(self) -> None:
        self.has_begun = True

    @property
    def num_requests(self) -> int:
        # accepted and not completely answered
        return self._num_requests

    @contextmanager
    def track_request(self) -> Iterator[None]:
        """Raises Stopping if the shutdown has begun."""
        if self.has_begun:
            raise Stopping("The service is stopping; retry later or on another replica")
        self._num_requests += 1
        try:
            yield
        finally:
            self._num_requests -= 1
