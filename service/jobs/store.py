"""The durable queue of jobs, their states, results and events."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import redis

from vidlex.service.jobs.records import (
    EventType,
    Job,
    JobError,
    JobEvent,
    JobKind,
    JobPage,
    JobProgress,
    JobState,
    NewJob,
)
from vidlex.service.labels.store.redis_types import Guard, RedisWrites, accept_any
from vidlex.service.webhooks.events import WebhookEvent, WebhookTarget


class QueueWebhook(Protocol):
    def __call__(self, pipe: RedisWrites, target: WebhookTarget, event: WebhookEvent) -> None:
        """Adds a delivery to the transaction that stores what the event tells."""


@dataclass(frozen=True)
class JobLimits:
    max_queued: int = 100_000  # jobs of all clients, half per client
    lease_seconds: float = 15.0  # without a sign of life of its worker a job is queued again
    max_result_bytes: int = 16 << 20
    max_events: int = 1000  # per job


@dataclass(frozen=True)
class IdempotencyOf:
    key: str
    body_digest: str


class JobStore:
    """Thread-safe. Every method raises StoreUnavailable.

    All keys of jobs and webhooks share the hash tag ``{jobs}``: one transaction changes a job's state, its place in the
    queue, its result and its webhook.
    """

    def __init__(
        self, client: redis.Redis, limits: JobLimits, queue_webhook: QueueWebhook, *, guard: Guard = accept_any
    ) -> None:
        raise NotImplementedError

    def submit(self, new: NewJob, *, idempotency: IdempotencyOf | None = None) -> tuple[Job, bool]:
        """The job, and whether it is new. Raises Overloaded, ShareExceeded, IdempotencyKeyReused."""
        raise NotImplementedError

    def get(self, namespace: str, job_id: str) -> Job:
        """Raises NotFound."""
        raise NotImplementedError

    def result(self, namespace: str, job_id: str) -> bytes | None:
        """The JSON of a job that has succeeded. Raises NotFound."""
        raise NotImplementedError

    def page(
        self,
        namespace: str,
        *,
        limit: int,
        after_id: str | None = None,
        states: Collection[JobState] = (),
        kinds: Collection[JobKind] = (),
        is_dead: bool | None = None,
    ) -> JobPage:
        raise NotImplementedError

    def cancel(self, namespace: str, job_id: str) -> Job:
        """At once if it is queued; its worker is asked to stop if it runs. Raises NotFound."""
        raise NotImplementedError

    def retry(self, namespace: str, job_id: str) -> Job:
        """A failed, cancelled or expired job is queued again. Raises NotFound, JobConflict."""
        raise NotImplementedError

    def claim(self, worker: str, places: Sequence[str], kinds: Collection[JobKind]) -> JobClaim | None:
        """The next job of the client that has been served least: of its jobs the highest priority, then the oldest."""
        raise NotImplementedError

    def sweep(self) -> list[Job]:
        """Jobs of workers that died are queued again or become dead letters, overdue ones expire, old ones go.

        Returns the jobs that are finished for good, so that their files can be removed. Any process may call it.
        """
        raise NotImplementedError

    def events(self, namespace: str, job_id: str, after: str = "0-0", *, block_seconds: float = 0.0) -> list[JobEvent]:
        """Raises NotFound."""
        raise NotImplementedError

    def counts(self) -> Mapping[JobState, int]:
        """Of ``queued`` and ``running``."""
        raise NotImplementedError


class JobClaim(Protocol):
    """A job that this process works on, as long as its lease holds."""

    @property
    def job(self) -> Job: ...

    def renew(self) -> Literal["held", "cancelled", "lost"]: ...

    def report(self, progress: JobProgress) -> None: ...

    def emit(self, event_type: EventType, data: Mapping[str, Any]) -> None: ...

    def succeed(self, result: bytes) -> bool:
        """Stores result and state, tells the webhook. False, and nothing stored, if the lease was lost or the job
        cancelled."""
        ...

    def fail(self, error: JobError, *, may_retry: bool) -> bool: ...

    def give_back(self) -> None:
        """Queued again as if it had not been taken: this process stops."""
        ...
