"""Job stores for tests: short leases, webhooks that are counted, a clock that the test moves."""

from __future__ import annotations

import time
from typing import Any

import pytest
import redis

from vidlex.service.jobs import keys
from vidlex.service.jobs.queue.redis_types import JobPipeline
from vidlex.service.jobs.queue.transactions import Transactions
from vidlex.service.jobs.records import Job, JobError, JobInput, JobState, NewJob
from vidlex.service.jobs.store import JobClaim, JobLimits, JobStore
from vidlex.service.labels.store.redis_types import RedisWrites
from vidlex.service.webhooks.events import WebhookEvent, WebhookTarget

ERROR = JobError("undecodable_video", "The video cannot be decoded")
WEBHOOK = WebhookTarget("https://hooks.example/")
DELIVERIES = f"{keys.PREFIX}:test-deliveries"
ALL_KINDS = ("classify", "batch", "backfill", "reencode")


def count_delivery(pipe: RedisWrites, target: WebhookTarget, event: WebhookEvent) -> None:
    """In the transaction that stores what the event reports."""
    pipe.hincrby(DELIVERIES, f"{event.data['id']} {event.type}", 1)


def deliveries(client: redis.Redis) -> dict[str, int]:
    commands: Any = client
    return {raw.decode(): int(count) for raw, count in commands.hgetall(DELIVERIES).items()}


def job_store(client: redis.Redis, **limits: Any) -> JobStore:
    return JobStore(client, JobLimits(**limits), count_delivery)


def new_job(client: str = "ada", **fields: Any) -> NewJob:
    place = fields.pop("place", None)
    if place is not None:
        fields["input"] = JobInput("upload", "ref", place)
    return NewJob(**{"kind": "classify", "namespace": "default", "client": client, **fields})


def submit(store: JobStore, client: str = "ada", **fields: Any) -> Job:
    job, is_new = store.submit(new_job(client, **fields))
    assert is_new
    return job


def claim(store: JobStore, *places: str) -> JobClaim:
    claimed = store.claim("worker", places, ALL_KINDS)
    assert claimed is not None
    return claimed


def kill_worker(client: redis.Redis, job_id: str) -> None:
    """As if the worker had died and its lease had expired."""
    client.delete(keys.lease(job_id))


class Clock:
    """The store's time as this process sees it; leases and other expiring keys have the real one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ms = time.time_ns() // 1_000_000
        monkeypatch.setattr(Transactions, "now_ms", self._now_ms)

    def _now_ms(self, *_: JobPipeline | None) -> int:
        return self.ms

    def advance(self, seconds: float) -> None:
        self.ms += int(seconds * 1000)


def brought_to(jobs: JobStore, state: JobState, clock: Clock, *, is_dead: bool = False, **fields: Any) -> str:
    """The id of a new job in this state. No other job waits."""
    job_id = submit(jobs, **fields).id
    if state == "cancelled":
        jobs.cancel("default", job_id)
    elif state == "expired":
        clock.advance(86_400)
        jobs.sweep()
    elif state != "queued":
        claimed = claim(jobs)
        if state == "succeeded":
            assert claimed.succeed(b'{"labels":[]}')
        elif state == "failed":
            assert claimed.fail(ERROR, may_retry=is_dead)
    assert jobs.get("default", job_id).state == state
    return job_id
