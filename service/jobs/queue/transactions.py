"""Optimistic transactions on keys of the queue: WATCH, read, MULTI, EXEC; no Lua, so an ACL may forbid EVAL."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import redis

from vidlex.service.errors import StoreUnavailable
from vidlex.service.jobs import keys
from vidlex.service.jobs.queue.entries import Entry, EntryCorrupt, entry_from_hash
from vidlex.service.jobs.queue.redis_types import JobPipeline, batched_reads, transaction
from vidlex.service.labels.store.clock import store_now_ms, to_ms
from vidlex.service.labels.store.connection import store_errors
from vidlex.service.labels.store.redis_types import Guard

T = TypeVar("T")

_DEADLINE_SECONDS = 5.0
_MAX_PAUSE_SECONDS = 0.05


@dataclass(frozen=True)
class Step(Generic[T]):
    """``write`` None: nothing is stored."""

    result: T
    write: Callable[[JobPipeline], None] | None = None


# Reads through the pipeline, may raise and watch further keys, and runs again after a conflict.
Body = Callable[[JobPipeline], Step[T]]


class Transactions:
    """Thread-safe. Every method raises StoreUnavailable."""

    def __init__(self, client: redis.Redis, guard: Guard) -> None:
        self.client = client
        self._guard = guard

    def run(self, watched: str, body: Body[T]) -> T:
        """The result of ``body`` once its writes are stored, if the watched keys did not change in between.

        ``body`` also runs again if the connection broke between EXEC and its reply: it must recognise its own writes.
        """
        deadline = time.monotonic() + _DEADLINE_SECONDS
        num_conflicts = 0
        while True:
            with store_errors(), transaction(self.client) as pipe:
                try:
                    pipe.watch(watched)
                    step = body(pipe)
                    if step.write is None:
                        return step.result
                    self._guard(pipe)
                    pipe.multi()
                    step.write(pipe)
                    pipe.execute()
                    return step.result
                except redis.WatchError as error:
                    if time.monotonic() > deadline:
                        raise StoreUnavailable("The store is too busy", internal=repr(error)) from error
            num_conflicts += 1
            time.sleep(random.uniform(0, min(0.001 * 2**num_conflicts, _MAX_PAUSE_SECONDS)))

    def now_ms(self, pipe: JobPipeline | None = None) -> int:
        """Unix time by the clock of the store."""
        if pipe is not None:
            return store_now_ms(pipe)
        with store_errors(), batched_reads(self.client) as reads:
            reads.time()
            return to_ms(reads.execute()[0])


class EntryDamaged(StoreUnavailable):
    """Of one job: others can be used."""


def read_entry(pipe: JobPipeline, job_id: str) -> Entry | None:
    """None if there is no such job. Raises EntryDamaged."""
    return parse_entry(job_id, pipe.hgetall(keys.job(job_id)))


def parse_entry(job_id: str, raw: Mapping[bytes, bytes]) -> Entry | None:
    try:
        return entry_from_hash(job_id, raw) if raw else None
    except EntryCorrupt as error:
        raise EntryDamaged("The stored record of this job is damaged", internal=str(error)) from error
