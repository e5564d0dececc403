"""Jobs: work that is acknowledged first and done later, by this process or another one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from vidlex.service.webhooks.events import WebhookTarget

JobKind = Literal["classify", "batch", "backfill", "reencode"]
JobState = Literal["queued", "running", "succeeded", "failed", "cancelled", "expired"]
Priority = Literal["high", "normal", "low"]
EventType = Literal["state", "progress", "labels"]

FINAL_STATES: frozenset[JobState] = frozenset({"succeeded", "failed", "cancelled", "expired"})
BATCH_TIMEOUTS = 24  # of one video: how long an attempt at a batch may take
JOB_PREFIX = "job"  # of ids, see ids.py


@dataclass(frozen=True)
class JobInput:
    """What a job reads. ``upload``: a file that ``place`` holds, by ``ref``. ``url``: ``ref`` is https:// or s3://."""

    kind: Literal["upload", "url"]
    ref: str
    place: str | None = None  # only processes with this folder can take the job; None: any
    sha256: str | None = None
    num_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class NewJob:
    kind: JobKind
    namespace: str
    client: str  # unit of fair shares: the id of an API key, else an address
    params: Mapping[str, Any] = field(default_factory=dict)  # JSON; the handler of the kind knows it
    input: JobInput | None = None
    priority: Priority = "normal"  # among the jobs of one client
    metadata: Mapping[str, Any] = field(default_factory=dict)  # of the client, returned as it is
    webhook: WebhookTarget | None = None
    max_attempts: int = 3
    timeout_seconds: float = 3600.0  # of one attempt
    queue_seconds: float = 86_400.0  # after which a job that no worker has taken expires
    keep_seconds: float = 604_800.0  # how long a finished job and its result are kept


@dataclass(frozen=True)
class JobDefaults:
    """Of the jobs that a service accepts, see NewJob. ``timeout_seconds`` is that of one video."""

    max_attempts: int
    timeout_seconds: float
    queue_seconds: float
    keep_seconds: float

    def timeout_of(self, kind: JobKind) -> float:
        """Of an attempt. The next attempt at a batch goes on where the last one ended."""
        return self.timeout_seconds * (BATCH_TIMEOUTS if kind in ("batch", "reencode") else 1)


@dataclass(frozen=True)
class JobError:
    code: str
    detail: str


@dataclass(frozen=True)
class JobProgress:
    """``done`` and ``total`` count ``unit``; ``total`` is None where it is not known (yet)."""

    stage: str  # fetch, decode, encode, match, write, ...
    unit: Literal["bytes", "frames", "segments", "videos", "labels"]
    done: int
    total: int | None = None
    num_failed: int = 0  # of ``done``


@dataclass(frozen=True, kw_only=True)
class Job(NewJob):
    """Times are Unix time in milliseconds, by the clock of the store."""

    id: str
    state: JobState
    created_at_ms: int
    queue_until_ms: int
    started_at_ms: int | None = None  # of the last attempt
    finished_at_ms: int | None = None
    kept_until_ms: int | None = None  # of a finished job
    attempts: int = 0
    progress: JobProgress | None = None
    error: JobError | None = None  # of ``failed``, and of the last attempt while it is queued again
    is_dead: bool = False  # ``failed`` because every attempt ended without a result (dead letter)
    is_cancelling: bool = False  # asked for, while a worker has the job


@dataclass(frozen=True)
class JobEvent:
    """``id`` is that of a stream entry: pass it on to continue behind the event."""

    id: str
    type: EventType
    data: Mapping[str, Any]  # JSON


@dataclass(frozen=True)
class JobPage:
    data: list[Job]  # newest first
    has_more: bool
