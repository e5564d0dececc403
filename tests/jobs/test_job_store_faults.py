"""Damaged records, other stores, restricted rights, a store that stops."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from support.job_audit import check_places
from support.job_stores import (
    WEBHOOK,
    Clock,
    claim,
    count_delivery,
    job_store,
    new_job,
    submit,
)
from support.redis_process import RedisProcess
from support.stores import restart_server
from vidlex.service.errors import (
    InvalidParameter,
    StoreUnavailable,
)
from vidlex.service.jobs import keys
from vidlex.service.jobs.records import JobError, JobProgress
from vidlex.service.jobs.store import JobClaim, JobLimits, JobStore
from vidlex.service.labels.embedded.server import EmbeddedStore
from vidlex.service.labels.store.connection import connect_url
from vidlex.service.labels.store.redis_types import RedisReads


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def jobs(client: redis.Redis) -> Iterator[JobStore]:
    yield job_store(client)
    check_places(client)


def test_a_damaged_record_stops_no_other_job(client: redis.Redis) -> None:
    jobs = job_store(client)
    damaged, gone, removed, whole = (submit(jobs).id for _ in range(4))
    client.hset(keys.job(damaged), "state", "{")
    client.delete(keys.job(gone))
    jobs.cancel("default", removed)
    client.hset(keys.job(removed), "new", "[]")
    client.zadd(keys.FINISHED, {removed: 0})
    assert claim(jobs).job.id == whole
    assert jobs.sweep() == []
    assert [job.id for job in jobs.page("default", limit=9).data] == [whole]
    with pytest.raises(StoreUnavailable, match="damaged"):
        jobs.get("default", damaged)


def test_a_queue_that_disagrees_with_a_record_is_corrected(client: redis.Redis) -> None:
    jobs = job_store(client)
    running = submit(jobs).id
    claimed, waiting = claim(jobs), submit(jobs).id
    client.zadd(keys.queue(keys.QueueName("classify", ""), "ada"), {running: 0})
    assert claim(jobs).job.id == waiting
    assert claimed.succeed(b"1")


def test_fields_of_a_later_version_are_ignored(client: redis.Redis) -> None:
    """While replicas of two versions share the queue."""
    jobs = job_store(client)
    job_id = submit(jobs, webhook=WEBHOOK, place="here").id
    key = keys.job(job_id)
    for name in ("new", "state"):
        record = json.loads(client.hget(key, name) or b"")
        nested = {part: record[part] | {"later": 1} for part in ("input", "webhook") if part in record}
        client.hset(key, name, json.dumps(record | {"later": [1]} | nested))
    client.hset(key, "progress", json.dumps({"stage": "decode", "unit": "frames", "done": 1, "later": 2}))
    claimed = claim(jobs, "here")
    assert claimed.job.id == job_id and claimed.succeed(b"1")


def test_an_error_of_any_text_ends_a_job(client: redis.Redis) -> None:
    jobs = job_store(client)
    job_id = submit(jobs).id
    assert claim(jobs).fail(JobError("fetch_failed", "\udcff\0" + "\U0001f9a6" * 100_000), may_retry=False)
    error = jobs.get("default", job_id).error
    assert error is not None and error.detail.startswith("\udcff\0\U0001f9a6") and len(error.detail) == 1000
    assert jobs.events("default", job_id)[-1].data["error"]["detail"] == error.detail
    with pytest.raises(InvalidParameter):
        submit(jobs, params={"name": "\ud800"})


def test_nothing_is_written_to_another_store(client: redis.Redis) -> None:
    jobs = job_store(client)
    job_id = submit(jobs).id

    def refuse(reads: RedisReads) -> None:
        raise StoreUnavailable("refused")

    guarded = JobStore(client, JobLimits(), count_delivery, guard=refuse)
    before = {key: client.dump(key) for key in client.scan_iter()}
    for call in (
        lambda: guarded.submit(new_job()),
        lambda: guarded.cancel("default", job_id),
        lambda: guarded.claim("worker", [], ["classify"]),
    ):
        with pytest.raises(StoreUnavailable, match="refused"):
            call()
    assert {key: client.dump(key) for key in client.scan_iter()} == before


def test_no_lua_is_needed(tmp_path: Path) -> None:
    """An ACL that forbids scripts, dangerous commands and all keys but those of the service."""
    with RedisProcess(tmp_path) as server:
        server.client().acl_setuser(
            "app",
            enabled=True,
            passwords=["+secret"],
            keys=["vidlex-jobs:*"],
            categories=["+@all", "-@scripting", "-@dangerous", "-@admin"],
        )
        limited = redis.Redis(unix_socket_path=str(server.socket), username="app", password="secret")
        jobs = job_store(limited)
        job_id = submit(jobs).id
        claimed = claim(jobs)
        claimed.report(JobProgress("decode", "frames", 1))
        assert jobs.sweep() == [] and claimed.renew() == "held" and claimed.succeed(b"1")
        jobs.cancel("default", submit(jobs).id)
        assert len(jobs.page("default", limit=9).data) == 2 and len(jobs.events("default", job_id)) == 4


def test_acknowledged_jobs_survive_the_store_s_restart(short_folder: Path) -> None:
    with EmbeddedStore(short_folder) as embedded:
        client = embedded.client()
        jobs = job_store(client)
        finished = submit(jobs).id
        assert claim(jobs).succeed(b"1")
        running = submit(jobs).id
        held = claim(jobs)
        queued = [submit(jobs, f"client {i}").id for i in range(5)]
        before = check_places(client)
        restart_server(embedded)
        assert check_places(client) == before
        assert jobs.result("default", finished) == b"1"
        assert held.renew() == "held" and held.succeed(b"2")
        assert {claim(jobs).job.id for _ in queued} == set(queued)
        assert jobs.result("default", running) == b"2"


def test_while_the_store_is_away_nothing_is_acknowledged(tmp_path: Path) -> None:
    with RedisProcess(tmp_path) as server:
        client = connect_url(server.url)
        jobs = job_store(client)
        submit(jobs)
        claimed: JobClaim = claim(jobs)
        server.kill()
        for call in (
            lambda: jobs.submit(new_job()),
            lambda: claimed.succeed(b"1"),
            claimed.renew,
            jobs.sweep,
            jobs.counts,
            lambda: jobs.claim("worker", [], ["classify"]),
        ):
            with pytest.raises(StoreUnavailable):
                call()
        server.start()
        assert claimed.succeed(b"1")
        assert not claimed.succeed(b"1")
        assert len(check_places(client)) == 1
