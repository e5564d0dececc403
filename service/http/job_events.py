"""The events of a job as they happen: as Server-Sent Events (HTML standard, section 9.2), or waited for.

Nothing is held for a client that does not read: events are read from the store when the ones before have been sent.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from time import monotonic

import anyio

from vidlex.service.errors import InvalidParameter, NotFound, StoreUnavailable, VidlexError
from vidlex.service.jobs.event_reader import EventReader
from vidlex.service.jobs.records import FINAL_STATES, Job, JobEvent

MEDIA_TYPE = "text/event-stream"
KEEP_ALIVE_SECONDS = 15.0
MAX_STREAM_SECONDS = 900.0
"""After which a client connects again, so that a key that was revoked is noticed."""
MAX_STREAMS = 1024
"""Streams and waiting requests of a process, half per client."""
_RETRY_MS = 1000
_STOP_SECONDS = 1.0  # in which a stop of the service is noticed
_EVENT_ID = re.compile(r"([0-9]{1,20})(?:-([0-9]{1,20}))?")
_MAX_ID_PART = 2**64 - 1

GetJob = Callable[[], Awaitable[Job]]
"""Raises NotFound and StoreUnavailable."""


def parse_event_id(text: str | None, name: str) -> str:
    """Of the last event that the client knows. Raises InvalidParameter."""
    if text is None or not text:
        return "0-0"
    parts = _EVENT_ID.fullmatch(text)
    if parts is None or any(int(part) > _MAX_ID_PART for part in parts.groups() if part):
        problem = {"pointer": f"/{name}", "detail": "is not the id of an event"}
        raise InvalidParameter(f"{name} is not the id of an event", errors=[problem])
    return text if "-" in text else f"{text}-0"


async def stream(
    reader: EventReader, job_id: str, after: str, get_job: GetJob, is_stopping: Callable[[], bool]
) -> AsyncIterator[bytes]:
    """Ends behind the last event of a job that is finished, when the service stops and after MAX_STREAM_SECONDS.

    Also if the events of this job cannot be read: the client connects again, and the answer says why.
    """
    yield b"retry: %d\n\n" % _RETRY_MS
    ends_at = monotonic() + MAX_STREAM_SECONDS
    sent_at, may_have_more = monotonic(), True
    while monotonic() < ends_at and not is_stopping():
        try:
            events = await _next_events(reader, job_id, after, _STOP_SECONDS, at_once=may_have_more)
        except VidlexError:
            return
        may_have_more = bool(events)
        if events:
            yield b"".join(map(_frame, events))
            after, sent_at = events[-1].id, monotonic()
            if is_final(events[-1]):
                return
        elif monotonic() - sent_at >= KEEP_ALIVE_SECONDS:
            yield b": keep-alive\n\n"
            sent_at = monotonic()
            try:
                if (await get_job()).state in FINAL_STATES:
                    ends_at = min(ends_at, monotonic() + 2 * _STOP_SECONDS)  # its last event is known, or comes now
                    may_have_more = True
            except NotFound:
                return
            except StoreUnavailable:
                continue


async def wait_until_final(
    reader: EventReader, job: Job, seconds: float, get_job: GetJob, is_stopping: Callable[[], bool]
) -> Job:
    """The job once it is finished, or as it is after ``seconds``. Raises what ``get_job`` and the reader raise."""
    after, ends_at, may_have_more = "0-0", monotonic() + seconds, True
    while job.state not in FINAL_STATES and not is_stopping() and (left := ends_at - monotonic()) > 0:
        events = await _next_events(reader, job.id, after, min(left, _STOP_SECONDS), at_once=may_have_more)
        may_have_more = bool(events)
        if events:
            after = events[-1].id
            if any(event.type == "state" for event in events):
                job = await get_job()
    return job


def is_final(event: JobEvent) -> bool:
    return event.type == "state" and event.data.get("state") in FINAL_STATES


async def _next_events(
    reader: EventReader, job_id: str, after: str, seconds: float, *, at_once: bool
) -> list[JobEvent]:
    """Raises a VidlexError if the events of this job cannot be read."""
    loop = asyncio.get_running_loop()
    found: asyncio.Future[list[JobEvent]] = loop.create_future()

    def set_found(events: list[JobEvent] | VidlexError) -> None:
        if found.done():
            return
        if isinstance(events, VidlexError):
            found.set_exception(events)
        else:
            found.set_result(events)

    end = reader.watch(job_id, after, lambda events: _on_loop(loop, lambda: set_found(events)), at_once=at_once)
    try:
        with anyio.move_on_after(seconds):
            return await found
        return []
    finally:
        end()


def _on_loop(loop: asyncio.AbstractEventLoop, action: Callable[[], None]) -> None:
    try:
        loop.call_soon_threadsafe(action)
    except RuntimeError:  # the loop is closed, and so are its streams
        return


def _frame(event: JobEvent) -> bytes:
    data = json.dumps(event.data, separators=(",", ":"))
    return f"id: {event.id}\nevent: {event.type}\ndata: {data}\n\n".encode()
