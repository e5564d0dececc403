"""Keys of the queue of jobs. Only this file builds them.

    vidlex-jobs:{jobs}:job:<id>                       hash    new, state, progress: JSON, see queue/entries.py
    vidlex-jobs:{jobs}:result:<id>                    string  packed JSON; expires with the job
    vidlex-jobs:{jobs}:events:<id>                    stream  see queue/events.py; expires 10 min after the job's end
    vidlex-jobs:{jobs}:lease:<id>                     string  name of the worker; expires unless the worker renews it
    vidlex-jobs:{jobs}:index:<ns>:<kind>:<partition>  zset    ids with score 0, sorted by creation
    vidlex-jobs:{jobs}:queue:<kind>:<place>:<client>  zset    ids that wait, by priority, then age
    vidlex-jobs:{jobs}:clients:<kind>:<place>         zset    clients with jobs in that queue, by virtual time
    vidlex-jobs:{jobs}:served                         zset    virtual time of clients, in milliseconds of work
    vidlex-jobs:{jobs}:now                            hash    <kind>:<place> -> virtual time of the client served last
    vidlex-jobs:{jobs}:waiting                        zset    number of jobs of each client in its queues
    vidlex-jobs:{jobs}:queued                         zset    the same, with those that wait for their next attempt
    vidlex-jobs:{jobs}:kept                           zset    bytes of the jobs of each namespace
    vidlex-jobs:{jobs}:expiring                       zset    every queued job, by the time at which it expires
    vidlex-jobs:{jobs}:delayed                        zset    queued jobs that wait for their next attempt, by its time
    vidlex-jobs:{jobs}:running                        zset    jobs that a worker has, by the start of the attempt
    vidlex-jobs:{jobs}:finished                       zset    finished jobs, by the time at which they are removed
    vidlex-jobs:{jobs}:inputs                         hash    upload of a job -> its id
    vidlex-jobs:{jobs}:request:<digest>               string  body digest and id of a job with an Idempotency-Key
    vidlex-jobs:{jobs}:swept                          string  time of the last sweep

All times but the virtual ones are Unix milliseconds by the clock of the store. A place is empty for jobs that any
worker can take. The braces are a hash tag: in a cluster all keys share a slot, so one transaction may use them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal, get_args
from urllib.parse import quote

from vidlex.service.jobs.records import JobKind

PREFIX = "vidlex-jobs:{jobs}"
SERVED = f"{PREFIX}:served"
NOW = f"{PREFIX}:now"
WAITING = f"{PREFIX}:waiting"
QUEUED = f"{PREFIX}:queued"
KEPT = f"{PREFIX}:kept"
EXPIRING = f"{PREFIX}:expiring"
DELAYED = f"{PREFIX}:delayed"
RUNNING = f"{PREFIX}:running"
FINISHED = f"{PREFIX}:finished"
INPUTS = f"{PREFIX}:inputs"
SWEPT = f"{PREFIX}:swept"

Partition = Literal["queued", "running", "succeeded", "failed", "dead", "cancelled", "expired"]
"""A job is in the partition of its state; a dead letter is in ``dead`` instead of ``failed``."""
PARTITIONS: tuple[Partition, ...] = get_args(Partition)


@dataclass(frozen=True)
class QueueName:
    kind: JobKind
    place: str  # empty: any

    def __str__(self) -> str:
        return f"{self.kind}:{quote(self.place, safe='')}"


def job(job_id: str) -> str:
    return f"{PREFIX}:job:{job_id}"


def result(job_id: str) -> str:
    return f"{PREFIX}:result:{job_id}"


def events(job_id: str) -> str:
    return f"{PREFIX}:events:{job_id}"


def lease(job_id: str) -> str:
    return f"{PREFIX}:lease:{job_id}"


def index(namespace: str, kind: JobKind, partition: Partition) -> str:
    return f"{PREFIX}:index:{namespace}:{kind}:{partition}"


def queue(name: QueueName, client: str) -> str:
    return f"{PREFIX}:queue:{name}:{quote(client, safe='')}"


def clients(name: QueueName) -> str:
    return f"{PREFIX}:clients:{name}"


def request(namespace: str, idempotency_key: str) -> str:
    digest = hashlib.sha256(f"{namespace}\n{idempotency_key}".encode()).hexdigest()
    return f"{PREFIX}:request:{digest}"
