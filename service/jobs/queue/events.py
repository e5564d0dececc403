"""Events of jobs, in a stream per job.

Two events are not stored. The first one, that the job was queued, has the id ``0-1``: a job that waits has no stream,
which takes 4 KiB at least. Ten minutes after a job's end its stream expires; then its state is the only event left.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Mapping
from typing import Any, cast

import redis

from vidlex.service.errors import InvalidParameter
from vidlex.service.jobs import keys
from vidlex.service.jobs.queue.redis_types import batched_reads
from vidlex.service.jobs.queue.states import state_data
from vidlex.service.jobs.queue.transactions import parse_entry
from vidlex.service.jobs.records import FINAL_STATES, EventType, Job, JobEvent
from vidlex.service.labels.store.connection import SOCKET_TIMEOUT_SECONDS, store_errors
from vidlex.service.labels.store.redis_types import StreamEntry, typed_client

FIRST_ID = "0-1"
_MAX_AT_ONCE = 100  # events of 16 KiB at most
_MAX_BLOCKED = 32  # threads of this process, each with a connection
_POLL_SECONDS = 0.5
_ID = re.compile(r"(\d{1,20})(?:-(\d{1,20}))?")
_MAX_PART = 2**64 - 1


class Events:
    """Thread-safe. Every method raises StoreUnavailable."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        pool = client.connection_pool
        self._blocking = redis.Redis(
            connection_pool=redis.ConnectionPool(
                connection_class=pool.connection_class, max_connections=_MAX_BLOCKED, **pool.connection_kwargs
            )
        )
        timeout_seconds: float = pool.connection_kwargs.get("socket_timeout") or SOCKET_TIMEOUT_SECONDS
        self._max_block_seconds = timeout_seconds / 2
        self._places = threading.BoundedSemaphore(_MAX_BLOCKED)

    def read(self, after: Mapping[str, str]) -> dict[str, list[JobEvent]]:
        """The next events of each job, of at most 100 each; jobs that are not there are left out.

        Raises InvalidParameter, and EntryDamaged if one job's record cannot be read.
        """
        for event_id in after.values():
            _check_id(event_id)
        with store_errors(), batched_reads(self._client, is_snapshot=True) as pipe:
            for job_id, event_id in after.items():
                pipe.hgetall(keys.job(job_id))
                pipe.xrange(keys.events(job_id), min=f"({event_id}", count=_MAX_AT_ONCE)
                pipe.exists(keys.events(job_id))
            replies = pipe.execute()
        found = {}
        for i, (job_id, event_id) in enumerate(after.items()):
            raw, entries, has_stream = replies[3 * i : 3 * i + 3]
            entry = parse_entry(job_id, raw)
            if entry is not None:
                found[job_id] = _with_unstored(entry.job, event_id, entries, has_stream)
        return found

    def poll(self, after: Mapping[str, str]) -> dict[str, list[JobEvent]]:
        """As ``read`` for jobs whose earlier events are known, with one command: to look again and again."""
        for event_id in after.values():
            _check_id(event_id)
        streams = {keys.events(job_id): event_id for job_id, event_id in after.items()}
        with store_errors():
            reply: Any = typed_client(self._client).xread(streams, count=_MAX_AT_ONCE, block=None)
        found = dict(reply.items() if isinstance(reply, Mapping) else reply or ())
        ids = {keys.events(job_id).encode(): job_id for job_id in after}
        return {
            ids[key]: [_parse(event_id, fields) for event_id, fields in _entries(value)] for key, value in found.items()
        }

    def wait(self, job_id: str, after: str, seconds: float) -> None:
        """Returns when there may be an event behind ``after``, after half of the client's timeout at most."""
        seconds = min(seconds, self._max_block_seconds)
        if not self._places.acquire(blocking=False):
            time.sleep(min(seconds, _POLL_SECONDS))
            return
        try:
            with store_errors():
                self._blocking.xread({keys.events(job_id): after}, count=1, block=max(1, int(seconds * 1000)))
        finally:
            self._places.release()


def _with_unstored(job: Job, after: str, entries: list[StreamEntry], has_stream: bool) -> list[JobEvent]:
    events = [_parse(event_id, fields) for event_id, fields in entries]
    if _order(after) < _order(FIRST_ID):
        events.insert(0, JobEvent(FIRST_ID, "state", {"state": "queued", "attempts": 0}))
    if job.state in FINAL_STATES and not has_stream:
        last_id = f"{job.finished_at_ms}-{_MAX_PART}"
        if _order(after) < _order(last_id):
            events.append(JobEvent(last_id, "state", state_data(job)))
    return events


def _entries(value: Any) -> list[StreamEntry]:
    # With RESP3, redis-py puts the entries of each stream into a list.
    return value[0] if len(value) == 1 and isinstance(value[0], list) else value


def _parse(event_id: bytes, fields: Mapping[bytes, bytes]) -> JobEvent:
    data: Any = json.loads(fields[b"data"])
    return JobEvent(event_id.decode(), cast(EventType, fields[b"type"].decode()), data)


def _check_id(event_id: str) -> None:
    match = _ID.fullmatch(event_id)
    if match is None or any(int(part) > _MAX_PART for part in match.groups() if part):
        raise InvalidParameter("The id of an event is two numbers with a hyphen between them")


def _order(event_id: str) -> tuple[int, int]:
    milliseconds, _, number = event_id.partition("-")
    return int(milliseconds), int(number or 0)
