"""Token buckets: so many requests at once, so many a second from then on. In memory, so per replica."""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

_MAX_BUCKETS = 10_000


@dataclass(frozen=True)
class Grant:
    """The answer to one request."""

    allowed: bool
    burst: int
    window_seconds: int
    """In which an empty bucket fills up."""
    remaining: int
    full_in_seconds: int
    retry_after_seconds: int
    """0 when allowed."""

    def headers(self) -> dict[str, str]:
        """As in draft-ietf-httpapi-ratelimit-headers: the quota and window, what is left and for how long."""
        return {
            "RateLimit-Policy": f'"key";q={self.burst};w={self.window_seconds}',
            "RateLimit": f'"key";r={self.remaining};t={self.full_in_seconds}',
        }


class Buckets:
    """One bucket for each name. Thread-safe; remembers the 10,000 names that came last."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, name: str, per_second: float, burst: int) -> Grant:
        """One token, if there is one. ``per_second`` > 0, ``burst`` >= 1."""
        now = self._clock()
        with self._lock:
            level, at = self._levels.pop(name, (float(burst), now))
            level = min(float(burst), level + max(0.0, now - at) * per_second)
            allowed = level >= 1
            level -= allowed
            self._levels[name] = (level, now)
            if len(self._levels) > _MAX_BUCKETS:
                self._levels.popitem(last=False)
        return Grant(
            allowed=allowed,
            burst=burst,
            window_seconds=max(1, math.ceil(burst / per_second)),
            remaining=int(level),
            full_in_seconds=math.ceil((burst - level) / per_second),
            retry_after_seconds=0 if allowed else max(1, math.ceil((1 - level) / per_second)),
        )
