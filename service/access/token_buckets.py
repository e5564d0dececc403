"""Token buckets for rate limits, in memory and so per replica."""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

_MAX_BUCKETS = 10_000


@dataclass(frozen=True)
class RateLimitDecision:
    is_allowed: bool
    burst: int
    window_seconds: int  # time in which an empty bucket fills up
    remaining: int
    full_in_seconds: int
    retry_after_seconds: int  # 0 when allowed

    def headers(self) -> dict[str, str]:
        # draft-ietf-httpapi-ratelimit-headers
        return {
            "RateLimit-Policy": f'"key";q={self.burst};w={self.window_seconds}',
            "RateLimit": f'"key";r={self.remaining};t={self.full_in_seconds}',
        }


class TokenBuckets:
    """One bucket per name; keeps the 10,000 most recently used names. Thread-safe.

    ``take`` requires ``per_second`` > 0 and ``burst`` >= 1.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, name: str, per_second: float, burst: int) -> RateLimitDecision:
        now = self._clock()
        with self._lock:
            level, at = self._levels.pop(name, (float(burst), now))
            level = min(float(burst), level + max(0.0, now - at) * per_second)
            is_allowed = level >= 1
            level -= is_allowed
            self._levels[name] = (level, now)
            if len(self._levels) > _MAX_BUCKETS:
                self._levels.popitem(last=False)
        return RateLimitDecision(
            is_allowed=is_allowed,
            burst=burst,
            window_seconds=max(1, math.ceil(burst / per_second)),
            remaining=int(level),
            full_in_seconds=math.ceil((burst - level) / per_second),
            retry_after_seconds=0 if is_allowed else max(1, math.ceil((1 - level) / per_second)),
        )
