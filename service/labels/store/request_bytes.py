"""What a namespace keeps for requests with an Idempotency-Key, which has a quota: each is kept for a day.

Counted by the hour in which it was written; what is older than a day has expired, and does not count.
"""

from __future__ import annotations

import time

from vidlex.service.errors import ByteQuotaExceeded
from vidlex.service.labels.store.redis_types import RedisReads, RedisWrites

DEFAULT_MAX_BYTES = 2**28
OVERHEAD_BYTES = 512  # of a request
_HOUR_SECONDS = 3600
_NUM_HOURS = 25  # a day, and the part of the current hour


def count(pipe: RedisWrites, key: str, num_bytes: int) -> None:
    """``key`` is that of `Keys.requests`. A negative number gives back."""
    pipe.hincrby(key, str(_hour()), num_bytes)
    pipe.expire(key, _NUM_HOURS * _HOUR_SECONDS)


def check(client: RedisReads, key: str, max_bytes: int) -> list[str]:
    """Raises ByteQuotaExceeded. Returns the fields that do not count any more, which can be deleted."""
    first = _hour() - _NUM_HOURS
    counted, old = 0, []
    for raw, value in client.hgetall(key).items():
        if int(raw) > first:
            counted += int(value)
        else:
            old.append(raw.decode())
    if counted >= max_bytes:
        raise ByteQuotaExceeded(
            f"The answers for the Idempotency-Keys of a day may take {max_bytes} bytes of a namespace; send none"
        )
    return old


def _hour() -> int:
    return int(time.time()) // _HOUR_SECONDS
