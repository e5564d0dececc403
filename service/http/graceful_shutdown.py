from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vidlex.service.errors import Stopping


class GracefulShutdown:
    """Use on the event loop; only ``begin`` and ``refuse`` may be called from signal handlers and other threads."""

    def __init__(self) -> None:
        self.has_begun = False
        self._is_refusing = False
        self._num_requests = 0

    def begin(self) -> None:
        """/readyz answers 503 from now on, so that proxies send no more; what comes nevertheless is still served."""
        self.has_begun = True

    def refuse(self) -> None:
        self.has_begun = self._is_refusing = True

    @property
    def num_requests(self) -> int:
        # accepted and not completely answered
        return self._num_requests

    @contextmanager
    def track_request(self) -> Iterator[None]:
        """Raises Stopping once requests are refused."""
        if self._is_refusing:
            raise Stopping("The service is stopping; retry later or on another replica")
        self._num_requests += 1
        try:
            yield
        finally:
            self._num_requests -= 1
