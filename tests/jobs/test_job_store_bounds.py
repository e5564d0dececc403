"""What jobs of different namespaces see of one another, quotas, and keys that make a request idempotent."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator

import pytest
import redis

from support.job_audit import check_places
from support.job_stores import (
    ERROR,
    Clock,
    claim,
    job_store,
    new_job,
    submit,
)
from vidlex.service.errors import (
    ByteQuotaExceeded,
    IdempotencyKeyReused,
    InvalidParameter,
    NotFound,
)
from vidlex.service.jobs import keys
from vidlex.service.jobs.store import IdempotencyOf, JobStore


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def jobs(client: redis.Redis) -> Iterator[JobStore]:
    yield job_store(client)
    check_places(client)


def test_another_namespace_sees_nothing_of_a_job(jobs: JobStore) -> None:
    job_id = submit(jobs).id
    for call in (jobs.get, jobs.result, jobs.cancel, jobs.retry, jobs.events):
        with pytest.raises(NotFound):
            call("other", job_id)
        with pytest.raises(NotFound):
            call("default", "job_nothing")
    assert jobs.page("other", limit=9).data == []
    assert jobs.get("default", job_id).state == "queued"


def test_bodies_are_bounded(jobs: JobStore) -> None:
    for fields in (
        {"params": {"text": "x" * (1 << 20)}},
        {"params": {"number": float("nan")}},
        {"params": {"value": object()}},
        {"metadata": {"text": "x" * 16_384}},
        {"metadata": {str(i): i for i in range(1001)}},
    ):
        with pytest.raises(InvalidParameter):
            submit(jobs, **fields)
    assert jobs.counts() == {"queued": 0, "running": 0}


def test_a_result_that_is_too_large_is_refused_and_the_job_is_still_held(client: redis.Redis) -> None:
    jobs = job_store(client, max_result_bytes=100)
    submit(jobs)
    claimed = claim(jobs)
    with pytest.raises(InvalidParameter):
        claimed.succeed(b"x" * 101)
    with pytest.raises(InvalidParameter):
        claimed.emit("labels", {"text": "x" * 20_000})
    assert claimed.renew() == "held" and claimed.fail(ERROR, may_retry=False)


def test_a_namespace_has_a_quota_of_bytes(client: redis.Redis, clock: Clock) -> None:
    jobs = job_store(client, max_namespace_bytes=20_000)
    submit(jobs, keep_seconds=10.0)
    assert claim(jobs).succeed(json.dumps(list(range(20_000))).encode())
    with pytest.raises(ByteQuotaExceeded):
        submit(jobs)
    submit(jobs, namespace="other")
    clock.advance(10)
    jobs.sweep()
    submit(jobs)
    check_places(client)


def test_an_idempotency_key_makes_one_job(jobs: JobStore, client: redis.Redis, clock: Clock) -> None:
    same = IdempotencyOf("key 1", "digest")
    job, is_new = jobs.submit(new_job(keep_seconds=10.0), idempotency=same)
    assert is_new
    assert jobs.submit(new_job("eve"), idempotency=same) == (job, False)
    with pytest.raises(IdempotencyKeyReused):
        jobs.submit(new_job(), idempotency=IdempotencyOf("key 1", "another"))
    elsewhere, is_new = jobs.submit(new_job(namespace="other"), idempotency=same)
    assert is_new and elsewhere.id != job.id
    for _ in range(2):
        assert claim(jobs).succeed(b"1")
    again, is_new = jobs.submit(new_job(), idempotency=same)
    assert not is_new and again.state == "succeeded"
    stored = keys.request("default", "key 1")
    assert client.ttl(stored) == -1, "it is kept as long as its job, which may be retried again and again"
    clock.advance(10)
    jobs.sweep()
    assert not client.exists(stored)
    afterwards, is_new = jobs.submit(new_job(), idempotency=same)
    assert is_new and afterwards.id != job.id
    for key in ("", "x" * 256, "ä", "a\nb"):
        with pytest.raises(InvalidParameter):
            jobs.submit(new_job(), idempotency=IdempotencyOf(key, "digest"))


def test_one_key_from_many_threads_makes_one_job(jobs: JobStore) -> None:
    found: list[tuple[str, bool]] = []

    def run() -> None:
        job, is_new = jobs.submit(new_job(), idempotency=IdempotencyOf("key", "digest"))
        found.append((job.id, is_new))

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and len({job_id for job_id, _ in found}) == 1
    assert sum(is_new for _, is_new in found) == 1
    assert jobs.counts()["queued"] == 1
