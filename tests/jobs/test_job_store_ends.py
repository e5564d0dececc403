"""Jobs that are cancelled, expire, are removed or retried."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from support.job_audit import check_places
from support.job_stores import (
    ERROR,
    WEBHOOK,
    Clock,
    brought_to,
    claim,
    deliveries,
    job_store,
    kill_worker,
    submit,
)
from vidlex.service.errors import (
    JobConflict,
    NotFound,
)
from vidlex.service.jobs import keys
from vidlex.service.jobs.records import JobState
from vidlex.service.jobs.store import JobStore


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def jobs(client: redis.Redis) -> Iterator[JobStore]:
    yield job_store(client)
    check_places(client)


def test_cancel_of_a_queued_job(jobs: JobStore, client: redis.Redis) -> None:
    job_id = submit(jobs, webhook=WEBHOOK).id
    assert jobs.cancel("default", job_id).state == "cancelled"
    assert jobs.claim("worker", [], ["classify"]) is None
    assert deliveries(client) == {f"{job_id} job.cancelled": 1}
    assert jobs.cancel("default", job_id).state == "cancelled"
    assert deliveries(client) == {f"{job_id} job.cancelled": 1}


def test_cancel_of_a_job_that_waits_for_its_next_attempt(jobs: JobStore) -> None:
    job_id = submit(jobs).id
    claim(jobs).fail(ERROR, may_retry=True)
    assert jobs.cancel("default", job_id).state == "cancelled"
    assert jobs.counts() == {"queued": 0, "running": 0}


@pytest.mark.parametrize("end", ["succeed", "fail", "retry", "give_back", "die"])
def test_cancel_of_a_running_job(jobs: JobStore, client: redis.Redis, end: str) -> None:
    job_id = submit(jobs, webhook=WEBHOOK).id
    claimed = claim(jobs)
    assert jobs.cancel("default", job_id).is_cancelling
    job = jobs.get("default", job_id)
    assert job.state == "running" and job.is_cancelling
    assert claimed.renew() == "cancelled"
    jobs.sweep()
    assert jobs.get("default", job_id).state == "running"
    if end == "succeed":
        assert not claimed.succeed(b"1")
    elif end == "give_back":
        claimed.give_back()
    elif end == "die":
        kill_worker(client, job_id)
        jobs.sweep()
    else:
        assert not claimed.fail(ERROR, may_retry=end == "retry")
    job = jobs.get("default", job_id)
    assert job.state == "cancelled" and not job.is_cancelling
    assert jobs.result("default", job_id) is None
    assert deliveries(client) == {f"{job_id} job.cancelled": 1}


@pytest.mark.parametrize("state", ["succeeded", "failed", "expired"])
def test_cancel_changes_no_finished_job(jobs: JobStore, clock: Clock, state: JobState) -> None:
    job_id = brought_to(jobs, state, clock)
    before = jobs.get("default", job_id)
    assert jobs.cancel("default", job_id) == before == jobs.get("default", job_id)


def test_a_job_that_no_worker_takes_expires(jobs: JobStore, client: redis.Redis, clock: Clock) -> None:
    job_id = submit(jobs, queue_seconds=10.0, webhook=WEBHOOK).id
    running = submit(jobs, "eve", queue_seconds=10.0)
    assert claim(jobs).job.id == job_id
    clock.advance(60)
    jobs.sweep()
    assert jobs.get("default", job_id).state == "running"
    job = jobs.get("default", running.id)
    assert job.state == "expired" and job.finished_at_ms == clock.ms
    assert not deliveries(client)
    kill_worker(client, job_id)
    jobs.sweep()  # the sweep before was long ago: another lease
    kill_worker(client, job_id)
    jobs.sweep()
    clock.advance(9.999)
    jobs.sweep()
    assert jobs.get("default", job_id).state == "queued"  # its time began again
    clock.advance(0.001)
    jobs.sweep()
    assert jobs.get("default", job_id).state == "expired"
    assert deliveries(client) == {f"{job_id} job.expired": 1}


@pytest.mark.parametrize("state", ["succeeded", "failed", "cancelled", "expired"])
def test_a_finished_job_is_removed_after_its_time(
    jobs: JobStore, client: redis.Redis, clock: Clock, state: JobState
) -> None:
    job_id = brought_to(jobs, state, clock, keep_seconds=30.0)
    jobs.events("default", job_id)
    clock.advance(29.999)
    assert jobs.sweep() == []
    job = jobs.get("default", job_id)
    assert jobs.existing([job_id, "job_x"]) == {job_id}
    clock.advance(0.001)
    assert jobs.sweep() == [job]
    assert jobs.sweep() == []
    with pytest.raises(NotFound):
        jobs.get("default", job_id)
    assert not jobs.page("default", limit=9).data and not jobs.existing([job_id])
    left = {key.decode().removeprefix(f"{keys.PREFIX}:") for key in client.scan_iter()}
    assert left <= {"served", "now", "swept", "clients:classify:"}


@pytest.mark.parametrize("state", ["failed", "cancelled", "expired"])
def test_retry_starts_again(jobs: JobStore, clock: Clock, state: JobState) -> None:
    job_id = brought_to(jobs, state, clock)
    waiting = submit(jobs).id
    clock.advance(1)
    job = jobs.retry("default", job_id)
    assert job == jobs.get("default", job_id)
    assert job.state == "queued" and job.attempts == 0 and not job.is_dead
    assert job.finished_at_ms is None and job.kept_until_ms is None and job.progress is None
    assert job.queue_until_ms == clock.ms + 86_400_000
    assert claim(jobs).job.id == waiting  # it has lost its place
    claimed = claim(jobs)
    assert claimed.job.id == job_id and claimed.succeed(b"1")
    assert jobs.get("default", job_id).error is None
    clock.advance(7 * 86_400)
    assert job_id in [job.id for job in jobs.sweep()]


def test_a_dead_letter_is_retried(jobs: JobStore, clock: Clock) -> None:
    job_id = brought_to(jobs, "failed", clock, is_dead=True, max_attempts=1)
    assert jobs.get("default", job_id).is_dead
    jobs.retry("default", job_id)
    assert not jobs.page("default", limit=9, is_dead=True).data
    assert claim(jobs).succeed(b"1")


@pytest.mark.parametrize("state", ["queued", "running", "succeeded"])
def test_other_jobs_cannot_be_retried(jobs: JobStore, clock: Clock, state: JobState) -> None:
    job_id = brought_to(jobs, state, clock)
    with pytest.raises(JobConflict, match=state):
        jobs.retry("default", job_id)
    assert jobs.get("default", job_id).state == state
