"""Which client is served next: start-time fair queueing in the store, see ``sharing/fair_queue.py``.

A client has one virtual time, in milliseconds of work done for it, and a tag in every queue with jobs of it. A tag can
be behind the virtual time, because work is charged to the virtual time and only to the tag in the job's own queue. The
least tag is compared with the virtual time when it is the turn of its client, and raised if it is behind. So a charge
costs the same with any number of queues, and clients are served as if all tags were exact.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import redis

from vidlex.service.jobs import keys
from vidlex.service.jobs.queue.entries import Entry
from vidlex.service.jobs.queue.redis_types import JobPipeline, batched_reads, batched_writes
from vidlex.service.jobs.queue.transactions import Step, Transactions
from vidlex.service.labels.store.connection import store_errors

CLAIM_COST_MS = 100
"""Of any job, charged when it is taken: clients take turns before the first of their jobs has ended."""
_MAX_IDLE_CLIENTS = 1024
_MAX_QUEUE_NAMES = 1024
_TRIMMED_AT_ONCE = 256


@dataclass(frozen=True)
class Join:
    """How a client enters a queue."""

    tag: float
    is_new: bool  # it has no job in any queue: it is not owed for the time in which it was away


@dataclass(frozen=True)
class Candidate:
    job_id: str
    queue: keys.QueueName
    client: str
    is_last: bool  # of its client in this queue
    now: Mapping[str, float]  # virtual time of the queues that the worker serves, once the job is taken


def read_join(pipe: JobPipeline, entry: Entry) -> Join:
    client = entry.job.client
    now, served = pipe.hget(keys.NOW, str(entry.queue)), pipe.zscore(keys.SERVED, client)
    return Join(max(float(now or 0), served or 0.0), not pipe.zscore(keys.WAITING, client))


def enter(pipe: JobPipeline, entry: Entry, join: Join) -> None:
    client = entry.job.client
    pipe.zadd(keys.queue(entry.queue, client), {entry.job.id: entry.score})
    pipe.zincrby(keys.WAITING, 1, client)
    pipe.zadd(keys.clients(entry.queue), {client: join.tag}, nx=True)
    if join.is_new:
        pipe.zadd(keys.SERVED, {client: join.tag}, gt=True)


def leave(pipe: JobPipeline, entry: Entry) -> None:
    discard(pipe, entry.queue, entry.job.client, entry.job.id)


def discard(pipe: JobPipeline, queue: keys.QueueName, client: str, job_id: str) -> None:
    """A job that is in the queue."""
    pipe.zrem(keys.queue(queue, client), job_id)
    pipe.zincrby(keys.WAITING, -1, client)
    pipe.zremrangebyscore(keys.WAITING, "-inf", 0)


def charge(pipe: JobPipeline, entry: Entry, cost_ms: int) -> None:
    if cost_ms > 0:
        client = entry.job.client
        pipe.zincrby(keys.SERVED, cost_ms, client)
        pipe.zadd(keys.clients(entry.queue), {client: cost_ms}, xx=True, incr=True)


def note_taken(pipe: JobPipeline, candidate: Candidate) -> None:
    """In the transaction that takes the candidate."""
    pipe.hset(keys.NOW, mapping=candidate.now)
    if candidate.is_last:
        pipe.zrem(keys.clients(candidate.queue), candidate.client)


class FairOrder:
    """Thread-safe. Every method raises StoreUnavailable."""

    def __init__(self, transactions: Transactions) -> None:
        self._client: redis.Redis = transactions.client
        self._transactions = transactions

    def next(self, queues: Sequence[keys.QueueName]) -> Candidate | None:
        """The job that is to be taken next from these queues, as of now."""
        while True:
            with store_errors(), batched_reads(self._client) as pipe:
                for queue in queues:
                    pipe.zrange(keys.clients(queue), 0, 0, withscores=True)
                tops = [top[0] for top in pipe.execute() if top]
            if not tops:
                return None
            tag, client = min((tag, raw.decode()) for raw, tag in tops)
            candidate = self._first_job(client, tag, queues)
            if candidate is not None:
                return candidate

    def next_client(self, queues: Sequence[keys.QueueName], others: Collection[str]) -> tuple[str, set[str]] | None:
        """The client of ``next``, and those of the others that have been served more than its tag says."""
        candidate = self.next(queues)
        if candidate is None:
            return None
        others = sorted(others)
        with store_errors(), batched_reads(self._client) as pipe:
            pipe.zscore(keys.clients(candidate.queue), candidate.client)
            for client in others:
                pipe.zscore(keys.SERVED, client)
            tag, *served = pipe.execute()
        if tag is None:  # its job was taken meanwhile
            return None
        later = {client for client, time in zip(others, served, strict=True) if time is not None and time > tag}
        return candidate.client, later

    def _first_job(self, client: str, tag: float, queues: Sequence[keys.QueueName]) -> Candidate | None:
        """None after a correction of the client's tags."""
        with store_errors(), batched_reads(self._client) as pipe:
            pipe.zscore(keys.SERVED, client)
            pipe.hmget(keys.NOW, [str(queue) for queue in queues])
            for queue in queues:
                pipe.zscore(keys.clients(queue), client)
                pipe.zrange(keys.queue(queue, client), 0, 0, withscores=True)
                pipe.zcard(keys.queue(queue, client))
            served, times, *found = pipe.execute()
        stale, empty = [], []
        heads = []
        for queue, own_tag, head, size in zip(queues, found[::3], found[1::3], found[2::3], strict=True):
            if own_tag is None:
                continue  # a job that was added meanwhile is found by the next call
            if not head:
                empty.append(queue)
                continue
            heads.append((head[0][1], head[0][0].decode(), queue, size == 1))
            if served is not None and own_tag < served:
                stale.append(queue)
        if stale:
            with store_errors(), batched_writes(self._client) as writes:
                for queue in stale:
                    writes.zadd(keys.clients(queue), {client: served}, xx=True, gt=True)
                writes.execute()
        for queue in empty:
            self._forget_empty(queue, client)
        if stale or empty or not heads:
            return None
        _, job_id, queue, is_last = min(heads, key=lambda head: head[:2])
        now = {str(name): max(float(time or 0), tag) for name, time in zip(queues, times, strict=True)}
        return Candidate(job_id, queue, client, is_last, now)

    def _forget_empty(self, queue: keys.QueueName, client: str) -> None:
        own = keys.queue(queue, client)

        def body(pipe: JobPipeline) -> Step[None]:
            if pipe.zcard(own):
                return Step(None)
            return Step(None, lambda pipe: _remove_client(pipe, queue, client))

        self._transactions.run(own, body)

    def trim(self) -> None:
        """Forgets the idle clients that were served least, which would come first if they returned at once."""
        with store_errors(), batched_reads(self._client) as pipe:
            pipe.zcard(keys.SERVED)
            pipe.zcard(keys.WAITING)
            pipe.hlen(keys.NOW)
            num_served, num_waiting, num_names = pipe.execute()
        num_forgotten = num_served - num_waiting - _MAX_IDLE_CLIENTS
        if num_forgotten > 0:
            self._forget_idle(num_waiting + min(num_forgotten, _TRIMMED_AT_ONCE))
        if num_names > _MAX_QUEUE_NAMES:
            self._forget_queues()

    def _forget_idle(self, num_read: int) -> None:
        with store_errors(), batched_reads(self._client) as pipe:
            pipe.zrange(keys.SERVED, 0, num_read - 1)
            clients = [raw.decode() for raw in pipe.execute()[0]]
        with store_errors(), batched_reads(self._client) as pipe:
            for client in clients:
                pipe.zscore(keys.WAITING, client)
            idle = [client for client, waiting in zip(clients, pipe.execute(), strict=True) if not waiting]
        if idle:
            with store_errors(), batched_writes(self._client) as writes:
                writes.zrem(keys.SERVED, *idle[:_TRIMMED_AT_ONCE])
                writes.execute()

    def _forget_queues(self) -> None:
        with store_errors(), batched_reads(self._client) as pipe:
            pipe.hgetall(keys.NOW)
            names = [raw.decode() for raw in pipe.execute()[0]]
        with store_errors(), batched_reads(self._client) as pipe:
            for name in names:
                pipe.exists(f"{keys.PREFIX}:clients:{name}")
            idle = [name for name, exists in zip(names, pipe.execute(), strict=True) if not exists]
        if idle:
            with store_errors(), batched_writes(self._client) as writes:
                writes.hdel(keys.NOW, *idle)
                writes.execute()


def _remove_client(pipe: JobPipeline, queue: keys.QueueName, client: str) -> None:
    pipe.zrem(keys.clients(queue), client)
