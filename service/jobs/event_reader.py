"""Reads the events of all jobs that somebody waits for, in one thread and with one request to the store at a time."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import structlog

from vidlex.service.errors import StoreUnavailable, VidlexError
from vidlex.service.jobs.queue.transactions import EntryDamaged
from vidlex.service.jobs.records import JobEvent

ReadEvents = Callable[[Mapping[str, str]], Mapping[str, Sequence[JobEvent]]]
"""From the ids of jobs, each with the id of the last event that is known, to the next events of each."""
Deliver = Callable[[list[JobEvent] | VidlexError], None]

_POLL_SECONDS = 0.25
_MIN_SECONDS = 0.02  # between two requests
_OUTAGE_SECONDS = 1.0
_MAX_JOBS_PER_READ = 256

_log = structlog.get_logger("vidlex.jobs")


@dataclass(eq=False)
class _Watch:
    job_id: str
    after: str
    deliver: Deliver
    may_have_more: bool


class EventReader:
    """Thread-safe. The thread starts with the first ``watch`` and ends with ``close``."""

    def __init__(self, read: ReadEvents, poll: ReadEvents) -> None:
        """``read`` finds all events; ``poll``, which is called every quarter of a second, those that are new."""
        self._read = read
        self._poll = poll
        self._watches: set[_Watch] = set()
        self._changed = threading.Condition()
        self._is_urgent = False
        self._is_closed = False
        self._thread: threading.Thread | None = None

    def watch(self, job_id: str, after: str, deliver: Deliver, *, at_once: bool) -> Callable[[], None]:
        """Calls ``deliver`` once, from another thread, with the next events behind ``after``, or with the
        error due to which those of this job cannot be read. Returns what ends it.

        ``at_once``: there may be such events already. Otherwise they are noticed within a quarter of a second.
        """
        watch = _Watch(job_id, after, deliver, at_once)
        with self._changed:
            if not self._is_closed:
                self._watches.add(watch)
            self._is_urgent |= at_once
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="vidlex-job-events", daemon=True)
                self._thread.start()
            if at_once or len(self._watches) == 1:
                self._changed.notify()

        def end() -> None:
            with self._changed:
                self._watches.discard(watch)

        return end

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._watches.clear()
            self._changed.notify()
            thread = self._thread
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        poll_at = 0.0  # of time.monotonic
        while True:
            with self._changed:
                seconds = max(_MIN_SECONDS, poll_at - time.monotonic())
                self._changed.wait_for(lambda: self._is_closed or self._is_urgent, timeout=seconds)
                self._changed.wait_for(lambda: self._is_closed or bool(self._watches))
                if self._is_closed:
                    return
                self._is_urgent = False
                watches = list(self._watches)
            try:
                self._deliver(self._read, [watch for watch in watches if watch.may_have_more])
                if time.monotonic() >= poll_at:  # however many watches begin in between
                    self._deliver(self._poll, [watch for watch in watches if not watch.may_have_more])
                    poll_at = time.monotonic() + _POLL_SECONDS
            except StoreUnavailable as error:
                _log.warning("job_events_not_read", detail=str(error), internal=error.internal)
                time.sleep(_OUTAGE_SECONDS)
            except Exception:  # without this thread no stream would go on
                _log.exception("job_events_not_read")
                time.sleep(_OUTAGE_SECONDS)
            time.sleep(_MIN_SECONDS)

    def _deliver(self, read: ReadEvents, watches: Sequence[_Watch]) -> None:
        by_job: dict[str, list[_Watch]] = defaultdict(list)
        for watch in watches:
            by_job[watch.job_id].append(watch)
        # From the least advanced watch of each job; the others skip what they know.
        cursors = {job_id: min((w.after for w in found), key=event_order) for job_id, found in by_job.items()}
        ids = list(cursors)
        for start in range(0, len(ids), _MAX_JOBS_PER_READ):
            batch = ids[start : start + _MAX_JOBS_PER_READ]
            found = _read_each(read, {job_id: cursors[job_id] for job_id in batch})
            for job_id in batch:
                events = found.get(job_id, ())
                for watch in by_job[job_id]:
                    if isinstance(events, VidlexError):
                        self._remove_and_deliver(watch, events)
                    else:
                        self._deliver_to(watch, events)

    def _deliver_to(self, watch: _Watch, events: Sequence[JobEvent]) -> None:
        known = event_order(watch.after)
        new = [event for event in events if event_order(event.id) > known]
        if not new:
            watch.may_have_more = False  # it has been looked for them
            return
        self._remove_and_deliver(watch, new)

    def _remove_and_deliver(self, watch: _Watch, found: list[JobEvent] | VidlexError) -> None:
        with self._changed:
            if watch not in self._watches:
                return
            self._watches.remove(watch)
        watch.deliver(found)


def _read_each(read: ReadEvents, after: Mapping[str, str]) -> Mapping[str, Sequence[JobEvent] | VidlexError]:
    """With one request, unless a job is at fault: then it alone has no events. Raises StoreUnavailable."""
    try:
        return read(after)
    except Exception as error:
        if _is_outage(error):
            raise
    found: dict[str, Sequence[JobEvent] | VidlexError] = {}
    for job_id, event_id in after.items():
        try:
            found[job_id] = read({job_id: event_id}).get(job_id, ())
        except Exception as error:
            if _is_outage(error):
                raise
            _log.warning("job_events_not_readable", job_id=job_id, exc_info=_if_unknown(error))
            found[job_id] = error if isinstance(error, VidlexError) else VidlexError("The events cannot be read")
    return found


def _if_unknown(error: Exception) -> Exception | None:
    return None if isinstance(error, VidlexError) else error


def _is_outage(error: Exception) -> bool:
    return isinstance(error, StoreUnavailable) and not isinstance(error, EntryDamaged)


def event_order(event_id: str) -> tuple[int, int]:
    """Sorts the ids of events; they are those of stream entries: milliseconds, and a number within them."""
    milliseconds, _, number = event_id.partition("-")
    return int(milliseconds), int(number or 0)
