"""Taking jobs, and the hold of a worker on the job that it has taken.

Who holds a job is decided by the token in its record, which only a transaction on the record changes. The lease, a key
that expires, only says when another process may take the job away: a result that comes later than the lease, but before
somebody has taken the job away, still counts.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import structlog

from vidlex.service.errors import InvalidParameter
from vidlex.service.jobs import keys
from vidlex.service.jobs.queue import fair_order
from vidlex.service.jobs.queue.entries import Entry, pack_result, progress_to_json
from vidlex.service.jobs.queue.fair_order import Candidate, FairOrder
from vidlex.service.jobs.queue.redis_types import JobPipeline
from vidlex.service.jobs.queue.states import States
from vidlex.service.jobs.queue.transactions import EntryDamaged, Step, Transactions, read_entry
from vidlex.service.jobs.records import EventType, Job, JobError, JobKind, JobProgress
from vidlex.service.labels.store.redis_keys import random_token

_log = structlog.get_logger("vidlex.jobs")

# The entry after the end of an attempt, and whether the worker is the cause of it.
End = Callable[[Entry, int], tuple[Entry, bool]]


class Claims:
    """Thread-safe. Every method raises StoreUnavailable."""

    def __init__(
        self, transactions: Transactions, order: FairOrder, states: States, lease_ms: int, max_result_bytes: int
    ) -> None:
        self.transactions = transactions
        self.states = states
        self.lease_ms = lease_ms
        self.max_result_bytes = max_result_bytes
        self._order = order
        self._lock = threading.Lock()  # workers of one process would conflict at the head of the queue

    def claim(self, worker: str, places: Sequence[str], kinds: Collection[JobKind]) -> Claim | None:
        queues = _queues(places, kinds)
        token = random_token()
        with self._lock:
            while (candidate := self._order.next(queues)) is not None:
                entry = self._take(candidate, token, worker)
                if entry is not None:
                    return Claim(self, entry, worker)
        return None

    def next_client(
        self, places: Sequence[str], kinds: Collection[JobKind], others: Collection[str]
    ) -> tuple[str, set[str]] | None:
        return self._order.next_client(_queues(places, kinds), others)

    def _take(self, candidate: Candidate, token: str, worker: str) -> Entry | None:
        """None if somebody else was first."""
        job_id = candidate.job_id
        own_queue = keys.queue(candidate.queue, candidate.client)

        def body(pipe: JobPipeline) -> Step[Entry | None]:
            if candidate.is_last:
                pipe.watch(own_queue)
            try:
                entry = read_entry(pipe, job_id)
            except EntryDamaged as error:
                _log.error("job_damaged", job=job_id, internal=error.internal)
                entry = None
            if entry is None:  # it would stay at the head of the queue for ever
                return Step(None, lambda pipe: _discard(pipe, candidate))
            if entry.is_held_by(token):
                return Step(entry)
            if entry.job.state != "queued" or entry.due_at_ms:
                is_left = pipe.zscore(own_queue, job_id) is not None  # by something else than this module
                return Step(None, (lambda pipe: _discard(pipe, candidate)) if is_left else None)
            if candidate.is_last and pipe.zcard(own_queue) != 1:
                return Step(None)
            now_ms = self.transactions.now_ms(pipe)
            taken = entry.with_job(
                state="running", started_at_ms=now_ms, attempts=entry.job.attempts + 1, progress=None
            )
            taken = replace(taken, token=token)

            def write(pipe: JobPipeline) -> None:
                self.states.change(pipe, entry, taken)
                pipe.hdel(keys.job(job_id), "progress")
                pipe.set(keys.lease(job_id), worker, px=self.lease_ms)
                fair_order.note_taken(pipe, candidate)
                fair_order.charge(pipe, taken, fair_order.CLAIM_COST_MS)

            return Step(taken, write)

        return self.transactions.run(keys.job(job_id), body)


class Claim:
    """A ``JobClaim``. Thread-safe."""

    def __init__(self, claims: Claims, entry: Entry, worker: str) -> None:
        self._claims = claims
        self._worker = worker
        self._token = entry.token
        self._job = entry.job
        self._charged_ms = fair_order.CLAIM_COST_MS
        self._has_ended = False
        self._lock = threading.Lock()

    @property
    def job(self) -> Job:
        return self._job

    def renew(self) -> Literal["held", "cancelled", "lost"]:
        def body(pipe: JobPipeline) -> Step[tuple[Literal["held", "cancelled", "lost"], int]]:
            entry = read_entry(pipe, self._job.id)
            if entry is None or not entry.is_held_by(self._token):
                return Step(("lost", self._charged_ms))
            cost_ms = self._cost_ms(entry, self._claims.transactions.now_ms(pipe))

            def write(pipe: JobPipeline) -> None:
                pipe.set(keys.lease(entry.job.id), self._worker, px=self._claims.lease_ms)
                fair_order.charge(pipe, entry, cost_ms)

            return Step(("cancelled" if entry.job.is_cancelling else "held", self._charged_ms + cost_ms), write)

        with self._lock:
            state, self._charged_ms = self._claims.transactions.run(keys.job(self._job.id), body)
            return state

    def report(self, progress: JobProgress) -> None:
        job_id = self._job.id
        data = {name: value for name, value in vars(progress).items() if value is not None}

        def body(pipe: JobPipeline) -> Step[None]:
            entry = read_entry(pipe, job_id)
            if entry is None or not entry.is_held_by(self._token):
                return Step(None)
            newest = pipe.xrevrange(keys.events(job_id), count=1)
            replaced = [event_id for event_id, fields in newest if fields.get(b"type") == b"progress"]

            def write(pipe: JobPipeline) -> None:
                pipe.hset(keys.job(job_id), "progress", progress_to_json(progress))
                if replaced:
                    pipe.xdel(keys.events(job_id), *replaced)
                self._claims.states.add_event(pipe, job_id, "progress", data)

            return Step(None, write)

        with self._lock:
            self._claims.transactions.run(keys.job(job_id), body)

    def emit(self, event_type: EventType, data: Mapping[str, Any]) -> None:
        """Raises InvalidParameter if the data are too large. Does nothing if the lease was lost."""

        def body(pipe: JobPipeline) -> Step[None]:
            entry = read_entry(pipe, self._job.id)
            if entry is None or not entry.is_held_by(self._token):
                return Step(None)
            return Step(None, lambda pipe: self._claims.states.add_event(pipe, self._job.id, event_type, data))

        with self._lock:
            self._claims.transactions.run(keys.job(self._job.id), body)

    def succeed(self, result: bytes) -> bool:
        """Raises InvalidParameter, and stores nothing, if the result is too large."""
        if len(result) > self._claims.max_result_bytes:
            raise InvalidParameter(f"The result is larger than {self._claims.max_result_bytes} bytes")
        packed = pack_result(result)

        def end(entry: Entry, now_ms: int) -> tuple[Entry, bool]:
            after = self._claims.states.final(entry, "succeeded", now_ms)
            return replace(after, num_bytes=entry.num_bytes + len(packed)), True

        return self._end(end, packed)

    def fail(self, error: JobError, *, may_retry: bool) -> bool:
        """``may_retry``: another attempt follows after a pause; after the last one the job is a dead letter."""
        return self._end(
            lambda entry, now_ms: (self._claims.states.failed(entry, now_ms, error, may_retry=may_retry), True)
        )

    def give_back(self) -> None:
        def end(entry: Entry, now_ms: int) -> tuple[Entry, bool]:
            return self._claims.states.queued(entry, now_ms, attempts=entry.job.attempts - 1), True

        self._end(end)

    def _end(self, end: End, packed: bytes | None = None) -> bool:
        """A job that was cancelled meanwhile becomes ``cancelled`` instead."""
        job_id = self._job.id

        def body(pipe: JobPipeline) -> Step[tuple[Entry | None, bool]]:
            entry = read_entry(pipe, job_id)
            if entry is None or not entry.is_held_by(self._token):
                # With the same token this is what an earlier run of this body has stored.
                is_own = entry is not None and entry.token == self._token and entry.job.state != "cancelled"
                return Step((entry, is_own))
            now_ms = self._claims.transactions.now_ms(pipe)
            if entry.job.is_cancelling:
                after, is_own = self._claims.states.final(entry, "cancelled", now_ms), False
            else:
                after, is_own = end(entry, now_ms)
            join = None
            if after.job.state == "queued" and not after.due_at_ms:
                join = fair_order.read_join(pipe, after)

            def write(pipe: JobPipeline) -> None:
                self._claims.states.change(pipe, entry, after, join)
                fair_order.charge(pipe, entry, self._cost_ms(entry, now_ms))
                if after.job.state == "succeeded" and packed is not None:
                    pipe.set(keys.result(job_id), packed, pxat=after.job.kept_until_ms)

            return Step((after, is_own), write)

        with self._lock:
            if self._has_ended:
                return False
            after, is_own = self._claims.transactions.run(keys.job(job_id), body)
            self._has_ended = True
            if after is not None and is_own:
                self._job = after.job
            return is_own

    def _cost_ms(self, entry: Entry, now_ms: int) -> int:
        started_at_ms = entry.job.started_at_ms or now_ms
        return max(0, now_ms - started_at_ms - self._charged_ms)


def _queues(places: Sequence[str], kinds: Collection[JobKind]) -> list[keys.QueueName]:
    return [keys.QueueName(kind, place) for kind in sorted(set(kinds)) for place in sorted({"", *places})]


def _discard(pipe: JobPipeline, candidate: Candidate) -> None:
    fair_order.discard(pipe, candidate.queue, candidate.client, candidate.job_id)
    pipe.zrem(keys.EXPIRING, candidate.job_id)
    pipe.zincrby(keys.QUEUED, -1, candidate.client)
    pipe.zremrangebyscore(keys.QUEUED, "-inf", 0)
