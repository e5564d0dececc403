"""What happens to jobs without a request: workers that died, attempts that are due, expiry, removal."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from vidlex.service.jobs import keys
from vidlex.service.jobs.queue import fair_order
from vidlex.service.jobs.queue.entries import Entry
from vidlex.service.jobs.queue.fair_order import FairOrder
from vidlex.service.jobs.queue.redis_types import JobPipeline, batched_reads, batched_writes
from vidlex.service.jobs.queue.states import States
from vidlex.service.jobs.queue.transactions import EntryDamaged, Step, Transactions, read_entry
from vidlex.service.jobs.records import Job
from vidlex.service.labels.store.connection import store_errors

_MAX_PER_SWEEP = 1000  # of each kind of step

_log = structlog.get_logger("vidlex.jobs")


class Sweeper:
    """Thread-safe; several processes may sweep at once. Every method raises StoreUnavailable."""

    def __init__(self, transactions: Transactions, order: FairOrder, states: States, lease_ms: int) -> None:
        self._transactions = transactions
        self._order = order
        self._states = states
        self._lease_ms = lease_ms

    def sweep(self) -> list[Job]:
        now_ms, abandoned = self._abandoned()
        for job_id in abandoned:
            self._step(job_id, keys.RUNNING, lambda pipe, entry: self._abandon(pipe, entry, now_ms))
        for job_id in self._due(keys.EXPIRING, now_ms):
            self._step(job_id, keys.EXPIRING, lambda _, entry: self._expire(entry, now_ms))
        for job_id in self._due(keys.DELAYED, now_ms):
            self._step(job_id, keys.DELAYED, lambda pipe, entry: self._enter(pipe, entry, now_ms))
        removed = []
        for job_id in self._due(keys.FINISHED, now_ms):
            job = self._step(job_id, keys.FINISHED, lambda _, entry: self._remove(entry, now_ms))
            if job is not None:
                removed.append(job)
        self._order.trim()
        return removed

    def _abandoned(self) -> tuple[int, list[str]]:
        """The time, and the running jobs without a lease.

        If nothing has swept for as long as a lease, the store was away, or all processes were: workers that live could
        not renew their leases, so all get the time to do it.
        """
        client = self._transactions.client
        now_ms = self._transactions.now_ms()
        with store_errors(), batched_reads(client) as pipe:
            pipe.get(keys.SWEPT)
            pipe.zrange(keys.RUNNING, 0, -1)
            swept, running = pipe.execute()
        ids = [raw.decode() for raw in running]
        with store_errors(), batched_reads(client) as pipe:
            for job_id in ids:
                pipe.exists(keys.lease(job_id))
            found = [job_id for job_id, exists in zip(ids, pipe.execute(), strict=True) if not exists]
        was_away = swept is not None and now_ms - int(swept) > self._lease_ms
        with store_errors(), batched_writes(client) as writes:
            writes.set(keys.SWEPT, now_ms)
            for job_id in found if was_away else ():
                writes.set(keys.lease(job_id), "", px=self._lease_ms, nx=True)
            writes.execute()
        return now_ms, [] if was_away else found[:_MAX_PER_SWEEP]

    def _due(self, key: str, now_ms: int) -> list[str]:
        with store_errors(), batched_reads(self._transactions.client) as pipe:
            pipe.zrangebyscore(key, "-inf", now_ms, 0, _MAX_PER_SWEEP)
            return [raw.decode() for raw in pipe.execute()[0]]

    def _step(self, job_id: str, listed: str, decide: Callable[[JobPipeline, Entry], Step[Job | None]]) -> Job | None:
        """The steps see the job as it is now: another process may have been faster."""

        def body(pipe: JobPipeline) -> Step[Job | None]:
            try:
                entry = read_entry(pipe, job_id)
            except EntryDamaged as error:
                _log.error("job_damaged", job=job_id, internal=error.internal)
                entry = None
            if entry is None:
                return Step(None, lambda pipe: _unlist(pipe, listed, job_id))
            return decide(pipe, entry)

        return self._transactions.run(keys.job(job_id), body)

    def _abandon(self, pipe: JobPipeline, entry: Entry, now_ms: int) -> Step[Job | None]:
        job = entry.job
        pipe.watch(keys.lease(job.id))
        if job.state != "running" or pipe.exists(keys.lease(job.id)):
            return Step(None)
        after = self._states.abandoned(entry, now_ms)
        join = fair_order.read_join(pipe, after) if after.job.state == "queued" else None
        _log.warning("job_abandoned", job=job.id, attempts=job.attempts, state=after.job.state)
        return Step(None, lambda pipe: self._states.change(pipe, entry, after, join))

    def _expire(self, entry: Entry, now_ms: int) -> Step[Job | None]:
        if entry.job.state != "queued" or entry.job.queue_until_ms > now_ms:
            return Step(None)
        after = self._states.final(entry, "expired", now_ms, error=entry.job.error)
        return Step(None, lambda pipe: self._states.change(pipe, entry, after))

    def _enter(self, pipe: JobPipeline, entry: Entry, now_ms: int) -> Step[Job | None]:
        if entry.job.state != "queued" or not 0 < entry.due_at_ms <= now_ms:
            return Step(None)
        after = self._states.due(entry)
        join = fair_order.read_join(pipe, after)
        return Step(None, lambda pipe: self._states.change(pipe, entry, after, join))

    def _remove(self, entry: Entry, now_ms: int) -> Step[Job | None]:
        if not entry.is_final or (entry.job.kept_until_ms or 0) > now_ms:
            return Step(None)
        return Step(entry.job, lambda pipe: self._states.remove(pipe, entry))


def _unlist(pipe: JobPipeline, listed: str, job_id: str) -> None:
    pipe.zrem(listed, job_id)
