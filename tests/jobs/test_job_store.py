"""Jobs from their submission to their end, on a real store."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest
import redis

from support.job_audit import check_places
from support.job_stores import (
    ERROR,
    WEBHOOK,
    Clock,
    claim,
    deliveries,
    job_store,
    kill_worker,
    submit,
)
from vidlex.service.jobs import keys
from vidlex.service.jobs.records import JobInput, JobProgress, NewJob
from vidlex.service.jobs.store import JobStore


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def jobs(client: redis.Redis) -> Iterator[JobStore]:
    yield job_store(client)
    check_places(client)


def test_everything_of_a_new_job_is_read_back(jobs: JobStore) -> None:
    new = NewJob(
        kind="batch",
        namespace="default",
        client="2001:db8::1",
        params={"top_k": 3, "labels": ["hund", "犬"]},
        input=JobInput("upload", "ref-1", place="rack 1:{a}", sha256="ab", num_bytes=12),
        priority="high",
        metadata={"order": 17, "nested": [{"ä": None}]},
        webhook=WEBHOOK,
        max_attempts=5,
        timeout_seconds=12.5,
        queue_seconds=60.0,
        keep_seconds=120.0,
    )
    job, is_new = jobs.submit(new)
    assert is_new and job.state == "queued" and job.attempts == 0
    assert job.queue_until_ms == job.created_at_ms + 60_000
    for field, value in vars(new).items():
        assert getattr(job, field) == value
    assert jobs.get("default", job.id) == job
    assert jobs.page("default", limit=1).data == [replace(job, params={})]  # which may be large
    assert claim(jobs, "rack 1:{a}").job.id == job.id


def test_a_job_succeeds_once(jobs: JobStore, client: redis.Redis) -> None:
    job_id = submit(jobs, webhook=WEBHOOK).id
    claimed = claim(jobs)
    assert claimed.job.id == job_id and claimed.job.state == "running" and claimed.job.attempts == 1
    assert jobs.get("default", job_id) == claimed.job
    assert jobs.counts() == {"queued": 0, "running": 1}
    assert claimed.renew() == "held"
    assert jobs.result("default", job_id) is None
    result = json.dumps({"labels": list(range(1000))}).encode()
    assert claimed.succeed(result)
    job = jobs.get("default", job_id)
    assert job.state == "succeeded" and job.error is None
    assert job.finished_at_ms is not None and job.kept_until_ms == job.finished_at_ms + 7 * 86_400_000
    assert jobs.result("default", job_id) == result
    assert len(client.get(keys.result(job_id)) or b"") < len(result)
    assert not claimed.succeed(b"2") and not claimed.fail(ERROR, may_retry=True)
    claimed.give_back()
    claimed.report(JobProgress("late", "frames", 1))
    assert claimed.renew() == "lost"
    assert jobs.get("default", job_id) == job and jobs.result("default", job_id) == result
    assert deliveries(client) == {f"{job_id} job.succeeded": 1}
    assert jobs.counts() == {"queued": 0, "running": 0}


def test_a_failure_that_is_final(jobs: JobStore, client: redis.Redis) -> None:
    job_id = submit(jobs, webhook=WEBHOOK).id
    assert claim(jobs).fail(ERROR, may_retry=False)
    job = jobs.get("default", job_id)
    assert job.state == "failed" and job.error == ERROR and not job.is_dead
    assert deliveries(client) == {f"{job_id} job.failed": 1}


def test_failures_are_tried_again_after_growing_pauses_until_the_job_is_dead(
    jobs: JobStore, client: redis.Redis, clock: Clock
) -> None:
    job_id = submit(jobs, webhook=WEBHOOK, max_attempts=3).id
    for attempt, pause_seconds in ((1, 2.0), (2, 4.0)):
        assert claim(jobs).fail(ERROR, may_retry=True)
        job = jobs.get("default", job_id)
        assert job.state == "queued" and job.error == ERROR and job.attempts == attempt
        clock.advance(pause_seconds - 0.001)
        jobs.sweep()
        assert jobs.claim("worker", [], ["classify"]) is None
        clock.advance(0.001)
        jobs.sweep()
    assert not deliveries(client)
    assert claim(jobs).fail(ERROR, may_retry=True)
    job = jobs.get("default", job_id)
    assert job.state == "failed" and job.is_dead and job.error == ERROR and job.attempts == 3
    assert deliveries(client) == {f"{job_id} job.failed": 1}


def test_a_job_whose_workers_die_becomes_a_dead_letter(jobs: JobStore, client: redis.Redis) -> None:
    job_id = submit(jobs, max_attempts=2, webhook=WEBHOOK).id
    first = claim(jobs)
    jobs.sweep()
    assert jobs.get("default", job_id).state == "running"
    kill_worker(client, job_id)
    jobs.sweep()
    assert jobs.get("default", job_id).state == "queued"
    assert first.renew() == "lost" and not first.succeed(b"1")
    second = claim(jobs)
    assert second.job.id == job_id and second.job.attempts == 2
    assert not first.succeed(b"1") and second.renew() == "held"
    kill_worker(client, job_id)
    jobs.sweep()
    job = jobs.get("default", job_id)
    assert job.state == "failed" and job.is_dead and job.error is not None and job.error.code == "job_dead"
    assert [found.id for found in jobs.page("default", limit=9, is_dead=True).data] == [job_id]
    assert deliveries(client) == {f"{job_id} job.failed": 1}


def test_a_result_after_the_lease_counts_unless_the_job_was_taken_away(jobs: JobStore, client: redis.Redis) -> None:
    job_id = submit(jobs).id
    claimed = claim(jobs)
    kill_worker(client, job_id)
    assert claimed.renew() == "held" and client.exists(keys.lease(job_id))
    kill_worker(client, job_id)
    assert claimed.succeed(b"1")


def test_a_job_that_is_given_back_has_not_been_attempted(jobs: JobStore) -> None:
    first, second = submit(jobs), submit(jobs)
    claimed = claim(jobs)
    claimed.give_back()
    job = jobs.get("default", first.id)
    assert job.state == "queued" and job.attempts == 0
    assert [claim(jobs).job.id, claim(jobs).job.id] == [first.id, second.id]


def test_running_jobs_keep_their_leases_after_a_time_without_sweeps(
    jobs: JobStore, client: redis.Redis, clock: Clock
) -> None:
    """As after a stop of the store, in which no worker could renew."""
    job_id = submit(jobs).id
    claim(jobs)
    jobs.sweep()
    clock.advance(15.001)
    kill_worker(client, job_id)
    jobs.sweep()
    assert jobs.get("default", job_id).state == "running" and client.exists(keys.lease(job_id))
    clock.advance(15)
    kill_worker(client, job_id)
    jobs.sweep()
    assert jobs.get("default", job_id).state == "queued"
