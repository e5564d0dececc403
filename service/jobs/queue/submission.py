"""New jobs, and finished ones that are queued again: both need room in the queue."""

from __future__ import annotations

from dataclasses import replace

from vidlex.service.errors import ByteQuotaExceeded, IdempotencyKeyReused, InvalidParameter, JobConflict, NotFound
from vidlex.service.ids import new_id
from vidlex.service.jobs import keys
from vidlex.service.jobs.queue import fair_order
from vidlex.service.jobs.queue.entries import OVERHEAD_BYTES, Entry, checked
from vidlex.service.jobs.queue.redis_types import JobPipeline, batched_reads
from vidlex.service.jobs.queue.states import States
from vidlex.service.jobs.queue.transactions import Step, Transactions, read_entry
from vidlex.service.jobs.records import JOB_PREFIX, Job, NewJob
from vidlex.service.labels.store.connection import store_errors
from vidlex.service.labels.store.idempotency import MAX_KEY_CHARS
from vidlex.service.sharing.shares import Shares

_OTHERS = "\0"  # stands for all other clients


class Submission:
    """Thread-safe. Every method raises StoreUnavailable.

    Room is checked before the transaction: jobs that are submitted in the same moment may exceed it by their number.
    """

    def __init__(self, transactions: Transactions, states: States, max_queued: int, max_bytes: int) -> None:
        self._transactions = transactions
        self._states = states
        self._max_queued = max_queued
        self._max_bytes = max_bytes

    def submit(self, new: NewJob, idempotency: tuple[str, str] | None) -> tuple[Job, bool]:
        """``idempotency``: key and digest of the body."""
        new, new_json = checked(new)
        if idempotency is None:
            return self._submit(new, new_json, None, "")
        key, digest = idempotency
        if not (0 < len(key) <= MAX_KEY_CHARS and key.isascii() and key.isprintable()):
            raise InvalidParameter(f"An Idempotency-Key is 1 to {MAX_KEY_CHARS} printable ASCII characters")
        return self._submit(new, new_json, keys.request(new.namespace, key), digest)

    def _submit(self, new: NewJob, new_json: str, request: str | None, digest: str) -> tuple[Job, bool]:
        job_id = new_id(JOB_PREFIX)
        num_bytes = len(new_json.encode()) + OVERHEAD_BYTES

        def body(pipe: JobPipeline) -> Step[tuple[Job, bool]]:
            stored = read_entry(pipe, job_id)
            if stored is not None:  # by an earlier run of this body
                return Step((stored.job, True))
            known = self._known(pipe, request, digest)
            if known is not None:
                return Step((known, False))
            self._check_room(new, num_bytes)
            now_ms = self._transactions.now_ms(pipe)
            job = Job(
                **vars(new),
                id=job_id,
                state="queued",
                created_at_ms=now_ms,
                queue_until_ms=now_ms + int(new.queue_seconds * 1000),
            )
            entry = Entry(job, queued_at_ms=now_ms, num_bytes=num_bytes, request=request or "")
            join = fair_order.read_join(pipe, entry)

            def write(pipe: JobPipeline) -> None:
                self._states.add(pipe, new_json, entry, join)
                if request is not None:
                    pipe.set(request, f"{digest} {job_id}")

            return Step((job, True), write)

        return self._transactions.run(keys.job(job_id), body)

    def retry(self, namespace: str, job_id: str) -> Job:
        """Raises NotFound, JobConflict, Overloaded, ShareExceeded, ByteQuotaExceeded."""
        num_runs = 0

        def body(pipe: JobPipeline) -> Step[Job]:
            nonlocal num_runs
            num_runs += 1
            entry = read_entry(pipe, job_id)
            if entry is None or entry.job.namespace != namespace:
                raise NotFound("No job has this id")
            job = entry.job
            if num_runs > 1 and job.state == "queued":  # by an earlier run of this body, or a second request
                return Step(job)
            if job.state not in ("failed", "cancelled", "expired"):
                raise JobConflict(f"The job is {job.state}; only failed, cancelled and expired ones can be retried")
            self._check_room(job, 0)
            now_ms = self._transactions.now_ms(pipe)
            reset = replace(entry, queued_at_ms=now_ms, token="")
            after = self._states.queued(
                reset,
                now_ms,
                attempts=0,
                started_at_ms=None,
                finished_at_ms=None,
                kept_until_ms=None,
                progress=None,
                is_dead=False,
            )
            join = fair_order.read_join(pipe, after)

            def write(pipe: JobPipeline) -> None:
                self._states.change(pipe, entry, after, join)
                pipe.hdel(keys.job(job_id), "progress")

            return Step(after.job, write)

        return self._transactions.run(keys.job(job_id), body)

    def _known(self, pipe: JobPipeline, request: str | None, digest: str) -> Job | None:
        if request is None:
            return None
        pipe.watch(request)
        known = pipe.get(request)
        if known is None:
            return None
        known_digest, _, known_id = known.decode().rpartition(" ")
        if known_digest != digest:
            raise IdempotencyKeyReused("This Idempotency-Key was used with another body; use a new key")
        entry = read_entry(pipe, known_id)
        return None if entry is None else entry.job

    def _check_room(self, new: NewJob, num_bytes: int) -> None:
        with store_errors(), batched_reads(self._transactions.client) as pipe:
            pipe.zcard(keys.EXPIRING)
            pipe.zscore(keys.QUEUED, new.client)
            pipe.zscore(keys.KEPT, new.namespace)
            num_queued, own, kept_bytes = pipe.execute()
        places = Shares(self._max_queued, "queued_jobs", "queued jobs")
        places.recount({new.client: int(own or 0), _OTHERS: num_queued - int(own or 0)})
        refusal = places.refusal(new.client)
        if refusal is not None:
            raise refusal
        if (kept_bytes or 0) + num_bytes > self._max_bytes:
            raise ByteQuotaExceeded(
                f"The jobs of a namespace may take {self._max_bytes} bytes with their results, until they are removed"
            )
