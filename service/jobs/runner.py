"""Takes jobs from the queue and runs them, until it is closed."""

from __future__ import annotations

import os
import random
import secrets
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import structlog

from vidlex.service.errors import StoreUnavailable
from vidlex.service.jobs.attempt import Attempt, AttemptLimits
from vidlex.service.jobs.handlers import JobHandler
from vidlex.service.jobs.records import Job, JobKind, JobState
from vidlex.service.jobs.store import JobClaim, JobStore
from vidlex.service.telemetry.metrics import Metrics

_POLL_SECONDS = 0.25  # of the queue, while it is empty
_TURNS_SECONDS = 2.0
_TICK_SECONDS = 0.5
_MAX_PAUSE_SECONDS = 5.0  # between two tries of a store that does not answer
_SWEEP_SECONDS = 1.0
_CHORES_SECONDS = 600.0
_JOIN_SECONDS = 6.0  # a store that does not answer is waited for 5 s

_log = structlog.get_logger("vidlex.jobs")


@dataclass(frozen=True)
class RunnerOptions:
    num_workers: int  # jobs at a time; 0: none, but what others left behind is still swept
    own_places: Mapping[JobKind, int]  # of kinds that do not count among these: long jobs must not hold up short ones
    places: tuple[str, ...]  # see JobFiles
    lease_seconds: float  # that of the store
    stop_seconds: float = 10.0  # how long ``close`` waits for handlers to notice
    turn_kinds: frozenset[JobKind] = frozenset()  # with own places, whose attempts go on where the last one ended
    turn_seconds: float = 300.0  # after which a job of these gives its place to a client that has fewer


class JobRunner:
    """``start`` first, ``close`` last. Thread-safe.

    ``on_succeeded`` gets the jobs that have succeeded here, ``on_removed`` those that are kept no longer, ``chores`` is
    called every ten minutes; they may block and raise. While ``is_draining``, no job is taken.
    """

    def __init__(
        self,
        store: JobStore,
        handlers: Mapping[JobKind, JobHandler],
        options: RunnerOptions,
        metrics: Metrics,
        *,
        on_succeeded: Callable[[Job], None] = lambda job: None,
        on_removed: Callable[[Job], None] = lambda job: None,
        chores: Callable[[], None] = lambda: None,
        is_draining: Callable[[], bool] = lambda: False,
    ) -> None:
        self._store = store
        self._handlers = handlers
        self._options = options
        self._limits = AttemptLimits(options.lease_seconds)
        self._metrics = metrics
        self._on_succeeded = on_succeeded
        self._on_removed = on_removed
        self._chores = chores
        self._is_draining = is_draining
        self._worker = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._stopping, self._closed = threading.Event(), threading.Event()
        self._wake = threading.Event()  # the queue may have a job, or an attempt has ended
        self._look = threading.Event()  # a job may be cancelled
        self._lock = threading.Lock()
        self._attempts: set[Attempt] = set()
        self.counts: Mapping[JobState, int] = {}
        """Of queued and running jobs, as of the last sweep."""
        loops = {"sweep": self._sweep}
        if options.num_workers:
            loops |= {"take": self._take, "watch": self._watch}
        self._threads = {
            name: threading.Thread(target=loop, name=f"vidlex-jobs-{name}", daemon=True) for name, loop in loops.items()
        }

    @property
    def num_running(self) -> int:
        """In this process."""
        with self._lock:
            return len(self._attempts)

    def start(self) -> None:
        for thread in self._threads.values():
            thread.start()

    def wake(self) -> None:
        """A job was queued or cancelled by this process: look at once."""
        self._wake.set()
        self._look.set()

    def close(self) -> None:
        """Jobs that are not finished are given back."""
        self._stopping.set()
        self.wake()
        self._join("take")  # afterwards no attempt begins
        with self._lock:
            attempts = list(self._attempts)
        for attempt in attempts:
            attempt.stop()
        until = time.monotonic() + self._options.stop_seconds
        for attempt in attempts:
            if not attempt.ended.wait(max(0.0, until - time.monotonic())):
                try:
                    attempt.abandon()
                except StoreUnavailable as error:
                    _log.warning("job_not_given_back", job_id=attempt.job.id, internal=error.internal)
        self._closed.set()
        self._look.set()
        self._join("watch")
        self._join("sweep")

    def _join(self, name: str) -> None:
        thread = self._threads.get(name)
        if thread is not None and thread.ident is not None:
            thread.join(timeout=_JOIN_SECONDS)

    # -- taking jobs

    def _take(self) -> None:
        pause = _Pause()
        turns_at = 0.0  # of time.monotonic
        while not self._stopping.is_set():
            if self._is_draining():
                self._stopping.wait(_POLL_SECONDS)
                continue
            self._wake.clear()
            kinds = self._kinds_with_room()
            try:
                claim = self._store.claim(self._worker, self._options.places, kinds) if kinds else None
                if claim is not None:
                    self._begin(claim)
                if time.monotonic() >= turns_at:
                    turns_at = time.monotonic() + _TURNS_SECONDS
                    self._end_turns(self._options.turn_kinds - set(kinds))
            except Exception as error:  # without this thread no job would run any more
                _log.warning("jobs_not_taken", internal=getattr(error, "internal", ""), exc_info=_if_unknown(error))
                self._stopping.wait(pause.next())
                continue
            pause.reset()
            if claim is None:
                self._wake.wait(_POLL_SECONDS * random.uniform(0.8, 1.2))

    def _kinds_with_room(self) -> list[JobKind]:
        own = self._options.own_places
        with self._lock:
            running = Counter(attempt.job.kind for attempt in self._attempts)
        num_shared = sum(number for kind, number in running.items() if kind not in own)
        return [
            kind
            for kind in self._handlers
            if (running[kind] < own[kind] if kind in own else num_shared < self._options.num_workers)
        ]

    def _begin(self, claim: JobClaim) -> None:
        """Raises RuntimeError if the system has no thread for it: the job is given back."""
        attempt = Attempt(claim, self._handlers[claim.job.kind], self._limits, self._metrics)
        with self._lock:
            self._attempts.add(attempt)
        try:
            threading.Thread(target=self._run, args=(attempt,), name=f"vidlex-{claim.job.kind}", daemon=True).start()
        except BaseException:
            with self._lock:
                self._attempts.discard(attempt)
            attempt.abandon()
            raise

    def _end_turns(self, full: Collection[JobKind]) -> None:
        """Of each kind without a free place, one job, if a client with fewer of these places waits for one."""
        for kind in full:
            with self._lock:
                attempts = [attempt for attempt in self._attempts if attempt.job.kind == kind]
            if any(attempt.is_ending for attempt in attempts):
                continue  # a place becomes free
            held = Counter(attempt.job.client for attempt in attempts)
            had_turn = [x for x in attempts if x.seconds >= self._options.turn_seconds and x.has_advanced]
            had_turn.sort(key=lambda attempt: (held[attempt.job.client], attempt.seconds), reverse=True)
            owners = {attempt.job.client for attempt in had_turn}
            found = self._store.next_client(self._options.places, [kind], owners) if had_turn else None
            if found is None:
                continue
            client, later = found
            for attempt in had_turn:
                owner = attempt.job.client
                if owner in later and held[owner] > held[client]:
                    _log.info("job_turn_over", job_id=attempt.job.id, kind=kind)
                    attempt.end_turn()
                    break

    def _run(self, attempt: Attempt) -> None:
        try:
            attempt.run()
            if attempt.outcome == "succeeded":
                self._on_succeeded(attempt.job)
        except Exception:
            _log.exception("job_attempt_failed", job_id=attempt.job.id)
        finally:
            with self._lock:
                self._attempts.discard(attempt)
            self._wake.set()

    # -- leases, progress, timeouts

    def _watch(self) -> None:
        while not self._closed.is_set():
            has_cause = self._look.wait(_TICK_SECONDS)
            self._look.clear()
            with self._lock:
                attempts = list(self._attempts)
            try:
                for attempt in attempts:
                    attempt.check_time()
                for attempt in attempts:
                    attempt.tick(renew_now=has_cause)
            except Exception as error:  # of a store that does not answer: for the other jobs it would not either
                _log.warning("leases_not_renewed", internal=getattr(error, "internal", ""), exc_info=_if_unknown(error))

    # -- what others left behind

    def _sweep(self) -> None:
        pause = _Pause()
        chores_at = time.monotonic() + random.uniform(0.0, 0.1) * _CHORES_SECONDS
        while not self._stopping.wait(_SWEEP_SECONDS * random.uniform(0.5, 1.5)):
            try:
                for job in self._store.sweep():
                    self._on_removed(job)
                self.counts = self._store.counts()
                if time.monotonic() >= chores_at:
                    chores_at = time.monotonic() + _CHORES_SECONDS * random.uniform(0.8, 1.2)
                    self._chores()
                pause.reset()
            except Exception as error:
                _log.warning("jobs_not_swept", internal=getattr(error, "internal", ""), exc_info=_if_unknown(error))
                self._stopping.wait(pause.next())


def _if_unknown(error: Exception) -> Exception | None:
    return None if isinstance(error, StoreUnavailable) else error


class _Pause:
    """Seconds until the next try, doubled with each, with jitter."""

    def __init__(self) -> None:
        self._seconds = _POLL_SECONDS

    def reset(self) -> None:
        self._seconds = _POLL_SECONDS

    def next(self) -> float:
        seconds, self._seconds = self._seconds, min(_MAX_PAUSE_SECONDS, 2 * self._seconds)
        return seconds * random.uniform(0.5, 1.0)
