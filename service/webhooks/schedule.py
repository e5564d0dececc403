"""When a delivery is tried again: ten tries over about three days (Standard Webhooks, "Retry schedule")."""

from __future__ import annotations

import random

RETRY_SECONDS = (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)
MAX_TRIES = len(RETRY_SECONDS) + 1
MAX_RETRY_AFTER_SECONDS = 86_400.0
_JITTER = 0.2


def delay_seconds(tries: int, retry_after_seconds: float | None, jitter: random.Random) -> float | None:
    """From try number ``tries`` to the next one; None: it was the last. A Retry-After only lengthens it."""
    if tries >= MAX_TRIES:
        return None
    planned = RETRY_SECONDS[tries - 1] * jitter.uniform(1 - _JITTER, 1 + _JITTER)
    return max(planned, min(retry_after_seconds or 0.0, MAX_RETRY_AFTER_SECONDS))
