"""The durable queue of jobs, their states, results and events."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import redis

from vidlex.service.errors import NotFound
from vidlex.service.ids import is_id
from vidlex.service.jobs import keys
from vidlex.service.jobs.queue.claims import Claims
from vidlex.service.jobs.queue.entries import unpack_result
from vidlex.service.jobs.queue.events import Events
from vidlex.service.jobs.queue.fair_order import FairOrder
from vidlex.service.jobs.queue.listing import page
from vidlex.service.jobs.queue.redis_types import JobPipeline, batched_reads
from vidlex.service.jobs.queue.states import States
from vidlex.service.jobs.queue.submission import Submission
from vidlex.service.jobs.queue.sweeping import Sweeper
from vidlex.service.jobs.queue.transactions import Step, Transactions, parse_entry, read_entry
from vidlex.service.jobs.records import (
    FINAL_STATES,
    JOB_PREFIX,
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
from vidlex.service.labels.store.connection import store_errors
from vidlex.service.labels.store.redis_types import Guard, RedisWrites, accept_any, typed_client
from vidlex.service.webhooks.events import WebhookEvent, WebhookTarget


class QueueWebhook(Protocol):
    def __call__(self, pipe: RedisWrites, target: WebhookTarget, event: WebhookEvent) -> None:
        """Adds a delivery to the transaction that stores what the event tells."""


@dataclass(frozen=True)
class JobLimits:
    max_queued: int = 100_000  # jobs of all clients, half per client
    lease_seconds: float = 15.0  # without a sign of life of its worker a job is queued again
    retry_seconds: float = 2.0  # before the second attempt; twice as long before each further one, 5 minutes at most
    max_result_bytes: int = 16 << 20
    max_events: int = 1000  # per job
    max_namespace_bytes: int = 1 << 30  # of the jobs of a namespace and their results, until they are removed


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
        lease_ms = int(limits.lease_seconds * 1000)
        self._client = client
        self._transactions = Transactions(client, guard)
        self._states = States(limits.max_events, int(limits.retry_seconds * 1000), queue_webhook)
        order = FairOrder(self._transactions)
        self._submission = Submission(self._transactions, self._states, limits.max_queued, limits.max_namespace_bytes)
        self._claims = Claims(self._transactions, order, self._states, lease_ms, limits.max_result_bytes)
        self._sweeper = Sweeper(self._transactions, order, self._states, lease_ms)
        self._events = Events(client)

    def submit(self, new: NewJob, *, idempotency: IdempotencyOf | None = None) -> tuple[Job, bool]:
        """The job, and whether it is new.

        Raises Overloaded, ShareExceeded, ByteQuotaExceeded, IdempotencyKeyReused, and InvalidParameter for params of
        more than 1 MiB, for metadata beyond the limits of labels' metadata, and for a malformed key.
        """
        key = None if idempotency is None else (idempotency.key, idempotency.body_digest)
        return self._submission.submit(new, key)

    def get(self, namespace: str, job_id: str) -> Job:
        """Raises NotFound."""
        with store_errors():
            raw = typed_client(self._client).hgetall(keys.job(job_id)) if is_id(job_id, JOB_PREFIX) else {}
        entry = parse_entry(job_id, raw)
        if entry is None or entry.job.namespace != namespace:
            raise NotFound("No job has this id")
        return entry.job

    def result(self, namespace: str, job_id: str) -> bytes | None:
        """The JSON of a job that has succeeded. Raises NotFound."""
        self.get(namespace, job_id)
        with store_errors():
            packed = typed_client(self._client).get(keys.result(job_id))
        return None if packed is None else unpack_result(packed)

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
        """Of jobs without their params, of fewer than ``limit`` if they take more than MAX_PAGE_BYTES.

        Raises InvalidParameter if ``after_id`` cannot be the id of a job; the job need not exist.
        """
        return page(
            self._client, namespace, limit=limit, after_id=after_id, states=states, kinds=kinds, is_dead=is_dead
        )

    def cancel(self, namespace: str, job_id: str) -> Job:
        """At once if it is queued; its worker is asked to stop if it runs, and the state follows when it has stopped.

        A finished job stays as it is. Raises NotFound.
        """

        def body(pipe: JobPipeline) -> Step[Job]:
            entry = read_entry(pipe, job_id)
            if entry is None or entry.job.namespace != namespace:
                raise NotFound("No job has this id")
            if entry.is_final or entry.job.is_cancelling:
                return Step(entry.job)
            if entry.job.state == "running":
                after = entry.with_job(is_cancelling=True)
            else:
                after = self._states.final(entry, "cancelled", self._transactions.now_ms(pipe))
            return Step(after.job, lambda pipe: self._states.change(pipe, entry, after))

        return self._transactions.run(keys.job(job_id), body)

    def retry(self, namespace: str, job_id: str) -> Job:
        """A failed, cancelled or expired job is queued again, with all its attempts.

        Raises NotFound, JobConflict, and what ``submit`` raises if there is no room.
        """
        return self._submission.retry(namespace, job_id)

    def claim(self, worker: str, places: Sequence[str], kinds: Collection[JobKind]) -> JobClaim | None:
        """The next job of the client that has been served least: of its jobs the highest priority, then the oldest.

        Work is counted in seconds, from the start of an attempt to ``renew`` or its end.
        """
        return self._claims.claim(worker, places, kinds)

    def next_client(
        self, places: Sequence[str], kinds: Collection[JobKind], others: Collection[str]
    ) -> tuple[str, set[str]] | None:
        """Whose job ``claim`` takes next, and those of the other clients whose jobs would be taken later if queued now.

        None if no job waits.
        """
        return self._claims.next_client(places, kinds, others)

    def sweep(self) -> list[Job]:
        """Jobs of workers that died are queued again or become dead letters, overdue ones expire, old ones go.

        Returns the jobs that were removed, their time being over, so that their files can be removed. Any process may
        call it; some should, about once a second, also because attempts that failed wait for it. After a time without
        sweeps that is longer than a lease, running jobs get another lease before they count as abandoned.
        """
        return self._sweeper.sweep()

    def existing(self, job_ids: Sequence[str]) -> set[str]:
        """Those of the ids that are jobs, of any namespace: files of the others can be removed."""
        with store_errors(), batched_reads(self._client) as pipe:
            for job_id in job_ids:
                pipe.exists(keys.job(job_id))
            return {job_id for job_id, exists in zip(job_ids, pipe.execute(), strict=True) if exists}

    def events(self, namespace: str, job_id: str, after: str = "0-0", *, block_seconds: float = 0.0) -> list[JobEvent]:
        """At most 100; with none to come, and none within ``block_seconds`` (2.5 at most), an empty list.

        Of several progress events in a row only the last one is kept. Raises NotFound, InvalidParameter.
        """
        is_final = self.get(namespace, job_id).state in FINAL_STATES
        events = self.read_events({job_id: after}).get(job_id, [])
        if events or is_final or block_seconds <= 0:
            return events
        self._events.wait(job_id, after, block_seconds)
        return self.read_events({job_id: after}).get(job_id, [])

    def read_events(self, after: Mapping[str, str]) -> Mapping[str, list[JobEvent]]:
        """From ids of jobs, of any namespace, each with the id of the last known event, to the next events of each.

        One request to the store. Raises InvalidParameter.
        """
        return self._events.read(after)

    def poll_events(self, after: Mapping[str, str]) -> Mapping[str, list[JobEvent]]:
        """As ``read_events`` for jobs whose earlier events are known, for less work of the store."""
        return self._events.poll(after)

    def inputs_in_use(self, refs: Sequence[str]) -> set[str]:
        """Those of the uploads that a job has, a finished one too."""
        with store_errors(), batched_reads(self._client) as pipe:
            pipe.hmget(keys.INPUTS, refs)
            (job_ids,) = pipe.execute()
        return {ref for ref, job_id in zip(refs, job_ids, strict=True) if job_id is not None}

    def counts(self) -> Mapping[JobState, int]:
        """Of ``queued`` and ``running``."""
        with store_errors(), batched_reads(self._client, is_snapshot=True) as pipe:
            pipe.zcard(keys.EXPIRING)
            pipe.zcard(keys.RUNNING)
            num_queued, num_running = pipe.execute()
        return {"queued": num_queued, "running": num_running}


class JobClaim(Protocol):
    """A job that this process works on, as long as its lease holds."""

    @property
    def job(self) -> Job: ...

    def renew(self) -> Literal["held", "cancelled", "lost"]:
        """Call it several times within a lease. After ``cancelled`` or ``lost`` the work is of no use."""
        ...

    def report(self, progress: JobProgress) -> None:
        """Stored at once: call it at most every half second. Does nothing once the job is lost."""
        ...

    def emit(self, event_type: EventType, data: Mapping[str, Any]) -> None:
        """Raises InvalidParameter for more than 16 KiB of JSON. Does nothing once the job is lost."""
        ...

    def succeed(self, result: bytes) -> bool:
        """Stores result and state, tells the webhook. False, and nothing stored, if the job was lost or cancelled.

        Raises InvalidParameter, and the job is still held, if the result is too large.
        """
        ...

    def fail(self, error: JobError, *, may_retry: bool) -> bool:
        """``may_retry``: it is tried again after a pause, or a dead letter after its last attempt."""
        ...

    def give_back(self) -> None:
        """Queued again as if it had not been taken: this process stops."""
        ...
