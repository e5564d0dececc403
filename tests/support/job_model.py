"""What the queue of jobs does, in plain Python: to compare it with in random histories.

All workers serve all places and kinds. Times are those of a `Clock`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from vidlex.service.jobs.records import FINAL_STATES, Job, JobState

CLAIM_MS = 100
RETRY_MS = 2000
_PRIORITIES = ("high", "normal", "low")


@dataclass
class ModelJob:
    id: str
    client: str
    priority: str
    max_attempts: int
    queue_ms: int
    keep_ms: int
    queued_at_ms: int
    queue_until_ms: int
    state: JobState = "queued"
    attempts: int = 0
    attempt: object = None  # that has the job
    is_waiting: bool = True  # in the queue, not for its next attempt
    due_at_ms: int = 0
    started_at_ms: int = 0
    charged_ms: int = 0
    is_cancelling: bool = False
    is_dead: bool = False
    kept_until_ms: int = 0
    num_results: int = 0


@dataclass
class JobModel:
    ms: int = 0
    jobs: dict[str, ModelJob] = field(default_factory=dict)
    served: Counter[str] = field(default_factory=Counter)
    now: int = 0  # virtual time of the client served last

    def submit(self, job: Job) -> None:
        queue_ms, keep_ms = int(job.queue_seconds * 1000), int(job.keep_seconds * 1000)
        found = ModelJob(
            job.id, job.client, job.priority, job.max_attempts, queue_ms, keep_ms, self.ms, self.ms + queue_ms
        )
        found.is_waiting = False
        self.jobs[job.id] = found
        self._enter(found)

    def next(self) -> str | None:
        waiting = [job for job in self.jobs.values() if job.state == "queued" and job.is_waiting]
        if not waiting:
            return None
        client = min({job.client for job in waiting}, key=lambda name: (self.served[name], name))
        own = [job for job in waiting if job.client == client]
        return min(own, key=lambda job: (_PRIORITIES.index(job.priority), job.queued_at_ms, job.id)).id

    def claim(self, job_id: str, attempt: object) -> None:
        job = self.jobs[job_id]
        self.now = max(self.now, self.served[job.client])
        job.state, job.attempt, job.started_at_ms, job.charged_ms = "running", attempt, self.ms, 0
        job.attempts += 1
        self._charge(job, CLAIM_MS)

    def holds(self, job_id: str, attempt: object) -> bool:
        job = self.jobs.get(job_id)
        return job is not None and job.state == "running" and job.attempt is attempt

    def renew(self, job_id: str) -> None:
        job = self.jobs[job_id]
        self._charge(job, max(0, self.ms - job.started_at_ms - job.charged_ms))

    def succeed(self, job_id: str) -> bool:
        job = self.jobs[job_id]
        self.renew(job_id)
        self._finish(job, "cancelled" if job.is_cancelling else "succeeded")
        job.num_results += job.state == "succeeded"
        return job.state == "succeeded"

    def fail(self, job_id: str, *, may_retry: bool) -> bool:
        job = self.jobs[job_id]
        self.renew(job_id)
        if job.is_cancelling:
            self._finish(job, "cancelled")
            return False
        if may_retry and job.attempts < job.max_attempts:
            job.state, job.is_waiting = "queued", False
            job.due_at_ms = self.ms + RETRY_MS * 2 ** (job.attempts - 1)
            job.queue_until_ms = job.due_at_ms + job.queue_ms
        else:
            self._finish(job, "failed", is_dead=may_retry)
        return True

    def give_back(self, job_id: str) -> None:
        job = self.jobs[job_id]
        self.renew(job_id)
        if job.is_cancelling:
            self._finish(job, "cancelled")
        else:
            job.attempts -= 1
            self._queue_again(job)

    def cancel(self, job_id: str) -> None:
        job = self.jobs[job_id]
        if job.state == "queued":
            self._finish(job, "cancelled")
        elif job.state == "running":
            job.is_cancelling = True

    def retry(self, job_id: str) -> None:
        job = self.jobs[job_id]
        job.attempts, job.is_dead, job.queued_at_ms = 0, False, self.ms
        self._queue_again(job)

    def worker_died(self, job_id: str) -> None:
        """As the next sweep sees it."""
        job = self.jobs[job_id]
        if job.is_cancelling:
            self._finish(job, "cancelled")
        elif job.attempts < job.max_attempts:
            self._queue_again(job)
        else:
            self._finish(job, "failed", is_dead=True)

    def sweep(self) -> set[str]:
        """The removed jobs."""
        for job in self.jobs.values():
            if job.state == "queued" and job.queue_until_ms <= self.ms:
                self._finish(job, "expired")
            elif job.state == "queued" and not job.is_waiting and job.due_at_ms <= self.ms:
                self._enter(job)
        removed = {job.id for job in self.jobs.values() if job.state in FINAL_STATES and job.kept_until_ms <= self.ms}
        for job_id in removed:
            del self.jobs[job_id]
        return removed

    def _queue_again(self, job: ModelJob) -> None:
        job.state, job.is_waiting, job.is_cancelling = "queued", False, False
        job.queue_until_ms = self.ms + job.queue_ms
        self._enter(job)

    def _enter(self, job: ModelJob) -> None:
        others = [o for o in self.jobs.values() if o.client == job.client and o.state == "queued" and o.is_waiting]
        if not others:
            self.served[job.client] = max(self.now, self.served[job.client])
        job.is_waiting = True

    def _charge(self, job: ModelJob, cost_ms: int) -> None:
        self.served[job.client] += cost_ms
        job.charged_ms += cost_ms

    def _finish(self, job: ModelJob, state: JobState, *, is_dead: bool = False) -> None:
        job.state, job.is_dead, job.is_cancelling = state, is_dead, False
        job.kept_until_ms = self.ms + job.keep_ms
