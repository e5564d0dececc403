"""Types of the redis-py commands that the queue uses; see ``labels/store/redis_types.py``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, Self, cast

import redis

from vidlex.service.labels.store.redis_types import RedisPipeline, Value


class JobPipeline(RedisPipeline, Protocol):
    def __enter__(self) -> Self: ...

    def time(self) -> tuple[int, int]: ...

    def zscore(self, name: str, value: str) -> float | None: ...

    def set(
        self, name: str, value: Value, *, px: int | None = None, pxat: int | None = None, nx: bool = False
    ) -> object: ...

    def zadd(
        self,
        name: str,
        mapping: Mapping[str, float],
        *,
        nx: bool = False,
        xx: bool = False,
        gt: bool = False,
        incr: bool = False,
    ) -> object: ...

    def zincrby(self, name: str, amount: float, value: str) -> object: ...

    def zremrangebyscore(self, name: str, min: float | str, max: float | str) -> object: ...

    def xdel(self, name: str, *ids: str | bytes) -> object: ...


class BatchedReads(Protocol):
    """Commands that ``execute`` sends at once."""

    def time(self) -> object: ...

    def get(self, name: str) -> object: ...

    def exists(self, name: str) -> object: ...

    def hget(self, name: str, key: str) -> object: ...

    def hgetall(self, name: str) -> object: ...

    def hmget(self, name: str, keys: Sequence[str]) -> object: ...

    def hlen(self, name: str) -> object: ...

    def zcard(self, name: str) -> object: ...

    def zscore(self, name: str, value: str) -> object: ...

    def zrange(self, name: str, start: int, end: int, *, withscores: bool = False) -> object: ...

    def zrangebyscore(
        self, name: str, min: float | str, max: float | str, start: int | None = None, num: int | None = None
    ) -> object: ...

    def zrevrangebylex(self, name: str, max: str, min: str, start: int, num: int) -> object: ...

    def xrange(self, name: str, min: str, max: str = "+", count: int | None = None) -> object: ...

    def execute(self) -> list[Any]: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


class BatchedWrites(Protocol):
    """Independent commands that ``execute`` sends at once, no transaction."""

    def set(self, name: str, value: Value, *, px: int | None = None, nx: bool = False) -> object: ...

    def hdel(self, name: str, *keys: str) -> object: ...

    def zadd(self, name: str, mapping: Mapping[str, float], *, xx: bool = False, gt: bool = False) -> object: ...

    def zrem(self, name: str, *values: str) -> object: ...

    def execute(self) -> list[Any]: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


def batched_reads(client: redis.Redis, *, is_snapshot: bool = False) -> BatchedReads:
    """``is_snapshot``: no write of another connection falls between the reads."""
    return cast(BatchedReads, client.pipeline(transaction=is_snapshot))


def batched_writes(client: redis.Redis) -> BatchedWrites:
    return cast(BatchedWrites, client.pipeline(transaction=False))


def transaction(client: redis.Redis) -> JobPipeline:
    return cast(JobPipeline, client.pipeline(transaction=True))
