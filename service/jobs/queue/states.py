"""Writes that take a job from one state to another: its record, its places in queues and indexes, event and webhook."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from vidlex.service.errors import InvalidParameter
from vidlex.service.jobs import keys
from vidlex.service.jobs.queue import fair_order
from vidlex.service.jobs.queue.entries import Entry, state_to_json
from vidlex.service.jobs.queue.fair_order import Join
from vidlex.service.jobs.queue.redis_types import JobPipeline
from vidlex.service.jobs.records import EventType, Job, JobError, JobState
from vidlex.service.labels.store.redis_types import RedisWrites
from vidlex.service.webhooks.events import WebhookEvent, WebhookTarget

MAX_EVENT_BYTES = 16_384
MAX_DETAIL_CHARS = 1000  # of an error, which events and webhooks repeat
EVENTS_KEPT_MS = 600_000  # after the job's end; a stream takes 4 KiB at least
MAX_RETRY_PAUSE_MS = 300_000
DEAD = JobError("job_dead", "Every attempt at this job ended without a result")


class States:
    """Where a job is listed follows from its record: ``change`` removes it from all places and adds it to the new ones.

    Everything is written within the caller's transaction, which watches the job.
    """

    def __init__(
        self, max_events: int, retry_ms: int, queue_webhook: Callable[[RedisWrites, WebhookTarget, WebhookEvent], None]
    ) -> None:
        self._max_events = max_events
        self._retry_ms = retry_ms
        self._queue_webhook = queue_webhook

    # -- states --------------------------------------------------------------------------------------------------------

    @staticmethod
    def queued(entry: Entry, now_ms: int, *, due_at_ms: int = 0, **changes: Any) -> Entry:
        until_ms = max(now_ms, due_at_ms) + int(entry.job.queue_seconds * 1000)
        changes |= {"state": "queued", "queue_until_ms": until_ms, "is_cancelling": False}
        return replace(entry.with_job(**changes), due_at_ms=due_at_ms)

    @staticmethod
    def due(entry: Entry) -> Entry:
        return replace(entry, due_at_ms=0)

    @staticmethod
    def final(
        entry: Entry, state: JobState, now_ms: int, *, error: JobError | None = None, is_dead: bool = False
    ) -> Entry:
        changed = entry.with_job(
            state=state,
            finished_at_ms=now_ms,
            kept_until_ms=now_ms + int(entry.job.keep_seconds * 1000),
            error=error,
            is_dead=is_dead,
            is_cancelling=False,
        )
        return replace(changed, due_at_ms=0)

    def failed(self, entry: Entry, now_ms: int, error: JobError, *, may_retry: bool) -> Entry:
        job = entry.job
        error = JobError(error.code, error.detail[:MAX_DETAIL_CHARS])
        if may_retry and job.attempts < job.max_attempts:
            pause_ms = min(self._retry_ms * 2 ** (job.attempts - 1), MAX_RETRY_PAUSE_MS)
            return self.queued(entry, now_ms, due_at_ms=now_ms + pause_ms, error=error)
        return self.final(entry, "failed", now_ms, error=error, is_dead=may_retry)

    def abandoned(self, entry: Entry, now_ms: int) -> Entry:
        """A running job whose worker has died."""
        entry = replace(entry, token="")
        if entry.job.is_cancelling:
            return self.final(entry, "cancelled", now_ms)
        if entry.job.attempts < entry.job.max_attempts:
            return self.queued(entry, now_ms)
        return self.final(entry, "failed", now_ms, error=DEAD, is_dead=True)

    # -- writes --------------------------------------------------------------------------------------------------------

    def change(self, pipe: JobPipeline, before: Entry, after: Entry, join: Join | None = None) -> None:
        """``join`` is needed where ``after`` enters a queue."""
        if before.job.state == after.job.state == "running":
            pipe.hset(keys.job(after.job.id), "state", state_to_json(after))
        else:
            self._remove_from_places(pipe, before)
            self._put(pipe, after, join)
        if after.num_bytes != before.num_bytes:
            pipe.zincrby(keys.KEPT, after.num_bytes - before.num_bytes, after.job.namespace)
        job, events = after.job, keys.events(after.job.id)
        if job.state == before.job.state and job.is_cancelling == before.job.is_cancelling:
            return
        self.add_event(pipe, job.id, "state", state_data(job))
        if after.is_final:
            assert job.finished_at_ms is not None and job.kept_until_ms is not None
            pipe.pexpireat(events, min(job.finished_at_ms + EVENTS_KEPT_MS, job.kept_until_ms))
            if job.webhook is not None:
                event = WebhookEvent(f"job.{job.state}", job.namespace, _webhook_data(job), job.finished_at_ms)
                self._queue_webhook(pipe, job.webhook, event)
        elif before.is_final:
            pipe.persist(events)

    def add(self, pipe: JobPipeline, new_json: str, entry: Entry, join: Join) -> None:
        """A job that is queued for the first time; its first event is not stored, see events.py."""
        pipe.hset(keys.job(entry.job.id), "new", new_json)
        if entry.job.input is not None and entry.job.input.kind == "upload":
            pipe.hset(keys.INPUTS, entry.job.input.ref, entry.job.id)
        self._put(pipe, entry, join)
        pipe.zincrby(keys.KEPT, entry.num_bytes, entry.job.namespace)

    def remove(self, pipe: JobPipeline, entry: Entry) -> None:
        job_id = entry.job.id
        self._remove_from_places(pipe, entry)
        pipe.zincrby(keys.KEPT, -entry.num_bytes, entry.job.namespace)
        pipe.zremrangebyscore(keys.KEPT, "-inf", 0)
        if entry.job.input is not None and entry.job.input.kind == "upload":
            pipe.hdel(keys.INPUTS, entry.job.input.ref)
        pipe.unlink(keys.job(job_id), keys.result(job_id), keys.events(job_id), keys.lease(job_id))
        if entry.request:
            pipe.unlink(entry.request)

    def add_event(self, pipe: JobPipeline, job_id: str, event_type: EventType, data: Mapping[str, Any]) -> None:
        """Raises InvalidParameter."""
        text = json.dumps(data, allow_nan=False, separators=(",", ":"))
        if len(text) > MAX_EVENT_BYTES:
            raise InvalidParameter(f"An event is at most {MAX_EVENT_BYTES} bytes of JSON")
        fields = {"type": event_type, "data": text}
        pipe.xadd(keys.events(job_id), fields, id="*", maxlen=self._max_events, approximate=False)

    def _put(self, pipe: JobPipeline, entry: Entry, join: Join | None) -> None:
        job = entry.job
        pipe.hset(keys.job(job.id), "state", state_to_json(entry))
        pipe.zadd(keys.index(job.namespace, job.kind, entry.partition), {job.id: 0})
        if job.state == "queued":
            pipe.zadd(keys.EXPIRING, {job.id: job.queue_until_ms})
            pipe.zincrby(keys.QUEUED, 1, job.client)
            if entry.due_at_ms:
                pipe.zadd(keys.DELAYED, {job.id: entry.due_at_ms})
            else:
                assert join is not None
                fair_order.enter(pipe, entry, join)
        elif job.state == "running":
            assert job.started_at_ms is not None
            pipe.zadd(keys.RUNNING, {job.id: job.started_at_ms})
        else:
            assert job.kept_until_ms is not None
            pipe.zadd(keys.FINISHED, {job.id: job.kept_until_ms})

    @staticmethod
    def _remove_from_places(pipe: JobPipeline, entry: Entry) -> None:
        job = entry.job
        pipe.zrem(keys.index(job.namespace, job.kind, entry.partition), job.id)
        if job.state == "queued":
            pipe.zrem(keys.EXPIRING, job.id)
            pipe.zincrby(keys.QUEUED, -1, job.client)
            pipe.zremrangebyscore(keys.QUEUED, "-inf", 0)
            if entry.due_at_ms:
                pipe.zrem(keys.DELAYED, job.id)
            else:
                fair_order.leave(pipe, entry)
        elif job.state == "running":
            pipe.zrem(keys.RUNNING, job.id)
            pipe.delete(keys.lease(job.id))
        else:
            pipe.zrem(keys.FINISHED, job.id)


def state_data(job: Job) -> dict[str, Any]:
    """Of a ``state`` event."""
    data: dict[str, Any] = {"state": job.state, "attempts": job.attempts}
    if job.is_cancelling:
        data["cancelling"] = True
    if job.is_dead:
        data["dead"] = True
    if job.error is not None:
        data["error"] = {"code": job.error.code, "detail": job.error.detail}
    return data


def _webhook_data(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "kind": job.kind,
        "created_at_ms": job.created_at_ms,
        "finished_at_ms": job.finished_at_ms,
        **state_data(job),
    }
