"""One attempt at a job: its handler's thread, its lease, its progress, its end."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import structlog

from vidlex.service.errors import InvalidParameter, StoreUnavailable, VidlexError
from vidlex.service.jobs.handlers import JobHandler, JobWork
from vidlex.service.jobs.records import EventType, Job, JobError, JobProgress
from vidlex.service.jobs.store import JobClaim
from vidlex.service.telemetry.metrics import Metrics

JOB_TIMEOUT = "job_timeout"
# After its time a handler has so long to notice; then the job is decided without it.
_TIMEOUT_GRACE_SECONDS = 30.0
_MAX_RENEW_SECONDS = 2.0  # so that a job that is cancelled elsewhere ends soon
_STORE_PAUSE_SECONDS, _MAX_STORE_PAUSE_SECONDS = 0.1, 2.0
_RETRY_STATUSES = (429, 503)

Outcome = Literal["succeeded", "failed", "retried", "timed_out", "cancelled", "lost", "given_back"]
_Reason = Literal["cancelled", "lost", "timed_out", "stopping", "turn_over"]

_log = structlog.get_logger("vidlex.jobs")


@dataclass(frozen=True)
class AttemptLimits:
    lease_seconds: float
    report_seconds: float = 0.5  # between two stored reports of progress


class Attempt:
    """``run`` blocks, in a thread of its own. The other methods are for another thread, ``tick`` every half second."""

    def __init__(self, claim: JobClaim, handler: JobHandler, limits: AttemptLimits, metrics: Metrics) -> None:
        self.job: Job = claim.job
        self._claim = claim
        self._handler = handler
        self._limits = limits
        self._metrics = metrics
        self._started = time.monotonic()
        self._deadline = self._started + self.job.timeout_seconds
        self._cancelled = threading.Event()
        self._lock = threading.RLock()  # of what follows, and around each write of the claim
        self._reason: _Reason | None = None
        self._is_decided = False  # nothing is stored any more
        self._has_reported = False
        self._progress_lock = threading.Lock()
        self._first_done: int | None = None  # videos, when they were first counted
        self._num_done = 0
        self._progress: JobProgress | None = None  # not stored yet
        self._reported_at = self._renewed_at = self._started
        self.ended = threading.Event()
        self.outcome: Outcome | None = None

    # -- the handler's thread

    def run(self) -> None:
        job = self.job
        try:
            with structlog.contextvars.bound_contextvars(job_id=job.id, namespace=job.namespace):
                try:
                    result = self._handler(job, JobWork(self._deadline, self._cancelled, self._report, self._emit))
                    body = json.dumps(result, ensure_ascii=False, separators=(",", ":")).encode()
                except Exception as error:
                    self._end_with(error)
                else:
                    self._succeed(body)
        finally:
            self.ended.set()

    def _succeed(self, body: bytes) -> None:
        self._flush_if_reported()
        try:
            self._decide("succeeded", lambda: self._claim.succeed(body))
        except InvalidParameter as error:  # it is too large
            self._fail(error)

    def _report(self, progress: JobProgress) -> None:
        with self._progress_lock:
            self._progress = progress
            if progress.unit == "videos":
                self._num_done = lasting_videos(self.job, progress)
                self._first_done = self._num_done if self._first_done is None else self._first_done

    def _emit(self, event_type: EventType, data: Mapping[str, Any]) -> None:
        with self._lock:
            if self._is_decided or self._reason is not None:
                return
            try:
                self._claim.emit(event_type, data)
            except VidlexError as error:  # an event is not worth the job
                _log.warning("job_event_lost", detail=str(error), internal=error.internal)

    def _end_with(self, error: Exception) -> None:
        reason = self._reason
        if reason is None and time.monotonic() >= self._deadline:  # the handler saw it before ``check_time``
            reason = "timed_out"
        if reason in ("stopping", "turn_over"):
            self._decide("given_back", self._give_back)
        elif reason == "timed_out":
            self._decide("timed_out", self._time_out)
        elif reason == "cancelled":
            self._decide_cancelled()
        elif reason is None:
            self._flush_if_reported()
            self._fail(error)
        else:
            self._decide("lost", lambda: True)

    def _fail(self, error: Exception) -> None:
        if isinstance(error, VidlexError):
            failure = JobError(error.code, str(error))
            may_retry = error.status in _RETRY_STATUSES
            _log.info("job_failed", code=error.code, internal=error.internal)
        else:
            failure, may_retry = JobError(VidlexError.code, "The service failed on this job"), True
            _log.error("job_crashed", exc_info=error)
        is_last = self.job.attempts >= self.job.max_attempts
        outcome: Outcome = "retried" if may_retry and not is_last else "failed"
        self._decide(outcome, lambda: self._claim.fail(failure, may_retry=may_retry))

    def _time_out(self) -> bool:
        failure = JobError(JOB_TIMEOUT, f"The attempt took longer than {self.job.timeout_seconds:g} seconds")
        return self._claim.fail(failure, may_retry=True)

    def _decide_cancelled(self) -> None:
        failure = JobError("cancelled", "The job was cancelled")
        self._decide("cancelled", lambda: self._claim.fail(failure, may_retry=False))

    def _give_back(self) -> bool:
        self._claim.give_back()
        return True

    def _decide(self, outcome: Outcome, store: Callable[[], bool]) -> None:
        """Tries until the store answers, at most until the process stops."""
        pause_seconds = _STORE_PAUSE_SECONDS
        while True:
            try:
                self._decide_once(outcome, store)
                return
            except StoreUnavailable as error:
                if self._reason == "stopping":  # the lease ends by itself, and another worker begins again
                    _log.warning("job_not_decided", job_id=self.job.id, internal=error.internal)
                    return
            time.sleep(pause_seconds)
            pause_seconds = min(_MAX_STORE_PAUSE_SECONDS, 2 * pause_seconds)

    def _decide_once(self, outcome: Outcome, store: Callable[[], bool]) -> None:
        """Does nothing once it is decided. Raises StoreUnavailable."""
        with self._lock:
            if self._is_decided:
                return
            if not store():  # it was cancelled, or the lease was lost
                outcome = "cancelled" if self._reason == "cancelled" else "lost"
            self._is_decided = True
            self.outcome = outcome
        seconds = time.monotonic() - self._started
        self._metrics.on_job_attempt(self.job.kind, outcome, seconds)
        facts = {"job_id": self.job.id, "kind": self.job.kind, "attempt": self.job.attempts}
        _log.info("job_attempt", **facts, outcome=outcome, seconds=round(seconds, 3))

    def _flush_if_reported(self) -> None:
        """Of a job that was seen at work, the last progress too; a short one does without the write."""
        with self._lock:
            if not self._has_reported:
                return
            try:
                self._store_progress()
            except StoreUnavailable as error:
                _log.warning("job_progress_lost", internal=error.internal)

    def _store_progress(self) -> None:
        with self._progress_lock:
            progress, self._progress = self._progress, None
        if progress is not None and not self._is_decided:
            self._has_reported = True
            self._claim.report(progress)

    # -- other threads

    def check_time(self) -> None:
        """Ends an attempt that takes too long, even if its handler does not notice. Raises StoreUnavailable."""
        late_seconds = time.monotonic() - self._deadline
        if late_seconds >= 0:
            self._stop_for("timed_out")
        if late_seconds >= _TIMEOUT_GRACE_SECONDS and not self._is_decided:
            _log.error("job_does_not_stop", job_id=self.job.id, kind=self.job.kind)
            self._decide_once("timed_out", self._time_out)

    def tick(self, *, renew_now: bool = False) -> None:
        """Renews the lease and stores progress, each if it is due. Raises StoreUnavailable."""
        if self.ended.is_set():
            return
        now = time.monotonic()
        with self._lock:
            if self._is_decided:
                return
            if renew_now or now - self._renewed_at >= min(_MAX_RENEW_SECONDS, self._limits.lease_seconds / 4):
                state = self._claim.renew()
                self._renewed_at = now
                if state != "held":
                    self._stop_for(state)
                    return
            if now - self._reported_at >= self._limits.report_seconds:
                self._reported_at = now
                self._store_progress()

    def stop(self) -> None:
        """This process stops: the handler is to end, and the job is given back."""
        self._stop_for("stopping")

    def end_turn(self) -> None:
        """The handler is to end, and the job is given back, so that another client's job has the place."""
        self._stop_for("turn_over")

    @property
    def is_ending(self) -> bool:
        return self._reason is not None

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    @property
    def has_advanced(self) -> bool:
        """A further attempt need not do again all that this one has done."""
        with self._progress_lock:
            return self._first_done is not None and self._num_done > self._first_done

    def abandon(self) -> None:
        """Gives the job back although its handler has not ended. Raises StoreUnavailable."""
        self._decide_once("given_back", self._give_back)

    def _stop_for(self, reason: _Reason) -> None:
        with self._lock:
            # A stop of the process comes last: what was cancelled or lost before is not given back.
            self._reason = self._reason or reason
            self._cancelled.set()


def lasting_videos(job: Job, progress: JobProgress) -> int:
    """That are not done again by another attempt: a batch also stores those that failed."""
    return progress.done if job.kind == "batch" else progress.done - progress.num_failed
