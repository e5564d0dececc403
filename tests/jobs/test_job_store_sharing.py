"""Clients share the workers by the work that is done for them; the jobs of one client have priorities."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator

import pytest
import redis

from support.job_audit import check_places
from support.job_stores import ALL_KINDS, ERROR, Clock, claim, job_store, kill_worker, submit
from vidlex.service.errors import Overloaded, ShareExceeded
from vidlex.service.jobs import keys
from vidlex.service.jobs.store import JobClaim, JobStore
from vidlex.service.sharing.fair_queue import FairQueue


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def jobs(client: redis.Redis) -> Iterator[JobStore]:
    yield job_store(client, lease_seconds=10.0**6)
    check_places(client)


def work(jobs: JobStore, clock: Clock, seconds: float, *places: str) -> str:
    """The client of the job that was taken and took so long."""
    claimed = claim(jobs, *places)
    clock.advance(seconds)
    assert claimed.succeed(b"1")
    return claimed.job.client


# -- jobs of one client --


def test_priority_comes_first_then_age(jobs: JobStore, clock: Clock) -> None:
    submitted = []
    for priority in ("low", "normal", "high", "normal", "low", "high"):
        clock.advance(0.001)
        submitted.append(submit(jobs, priority=priority).id)
    assert [claim(jobs).job.id for _ in submitted] == [submitted[i] for i in (2, 5, 1, 3, 0, 4)]


def test_priority_and_age_count_across_kinds_and_places(jobs: JobStore, clock: Clock) -> None:
    submitted = []
    for fields in ({"place": "here"}, {"kind": "batch"}, {"priority": "high", "kind": "reencode"}, {}):
        clock.advance(0.001)
        submitted.append(submit(jobs, **fields).id)
    assert [claim(jobs, "here").job.id for _ in submitted] == [submitted[i] for i in (2, 0, 1, 3)]


def test_a_worker_takes_only_jobs_of_its_kinds_and_places(jobs: JobStore) -> None:
    here = submit(jobs, place="here").id
    there = submit(jobs, place="there").id
    batch = submit(jobs, kind="batch").id
    assert jobs.claim("worker", [], ["classify", "reencode"]) is None
    assert jobs.claim("worker", ["elsewhere"], ["classify"]) is None
    found = [jobs.claim("worker", ["there"], ["classify"]), jobs.claim("worker", ["here", "there"], ["classify"])]
    assert [claimed.job.id for claimed in found if claimed is not None] == [there, here]
    assert claim(jobs).job.id == batch


def test_a_job_keeps_its_age_when_its_worker_dies(jobs: JobStore, client: redis.Redis, clock: Clock) -> None:
    first = submit(jobs).id
    clock.advance(1)
    submit(jobs)
    assert claim(jobs).job.id == first
    kill_worker(client, first)
    jobs.sweep()
    assert claim(jobs).job.id == first


# -- clients --


def test_a_client_with_many_jobs_does_not_delay_another(jobs: JobStore, clock: Clock) -> None:
    for _ in range(20):
        submit(jobs, "ada", priority="high")
    for _ in range(5):
        submit(jobs, "eve", priority="low")
    served = [work(jobs, clock, 2.0) for _ in range(25)]
    assert Counter(served[:10]) == {"ada": 5, "eve": 5}


def test_clients_get_the_same_time_not_the_same_number_of_jobs(jobs: JobStore, clock: Clock) -> None:
    for _ in range(40):
        submit(jobs, "ada")
        submit(jobs, "eve")
    seconds: Counter[str] = Counter()
    for _ in range(40):
        claimed = claim(jobs)
        took = 8 if claimed.job.client == "ada" else 2
        clock.advance(took)
        assert claimed.succeed(b"1") if took == 8 else claimed.fail(ERROR, may_retry=False)
        seconds[claimed.job.client] += took
    assert abs(seconds["ada"] - seconds["eve"]) <= 8


def test_all_free_workers_do_not_go_to_one_client(jobs: JobStore) -> None:
    """Before any job has ended, or its time is known."""
    for name in ("ada", "eve", "zoe"):
        for _ in range(4):
            submit(jobs, name)
    assert Counter(claim(jobs).job.client for _ in range(6)) == {"ada": 2, "eve": 2, "zoe": 2}


def test_a_long_job_is_charged_while_it_runs(jobs: JobStore, clock: Clock) -> None:
    for _ in range(3):
        submit(jobs, "ada")
    long = claim(jobs)
    for _ in range(3):
        clock.advance(20)
        assert long.renew() == "held"
    for _ in range(20):
        submit(jobs, "eve")
    assert [work(jobs, clock, 10.0) for _ in range(7)] == [*["eve"] * 6, "ada"]
    before = served_ms(jobs)["ada"]
    assert long.succeed(b"1")
    assert served_ms(jobs)["ada"] - before == 70_000  # what was not charged by a renewal, once


def served_ms(jobs: JobStore) -> dict[str, float]:
    raw = jobs._client.zrange(keys.SERVED, 0, -1, withscores=True)
    return {name.decode(): score for name, score in raw}  # type: ignore[union-attr]


def test_a_client_that_returns_neither_owes_nor_is_owed(jobs: JobStore, clock: Clock) -> None:
    for _ in range(30):
        submit(jobs, "ada")
    for _ in range(10):
        work(jobs, clock, 10.0)
    for _ in range(10):
        submit(jobs, "eve")
    assert Counter(work(jobs, clock, 10.0) for _ in range(10)) == {"ada": 5, "eve": 5}


def test_several_queues_give_no_second_share(jobs: JobStore, clock: Clock) -> None:
    for i in range(40):
        submit(jobs, "ada", kind=ALL_KINDS[i % 4], place=("here", None)[i // 4 % 2])
        submit(jobs, "eve")
    assert Counter(work(jobs, clock, 1.0, "here") for _ in range(20)) == {"ada": 10, "eve": 10}


def test_a_place_that_is_behind_owes_nothing_to_new_clients(jobs: JobStore, clock: Clock) -> None:
    """What clients of one place have used does not count against new clients of another one."""
    for _ in range(30):
        submit(jobs, "ada", place="busy")
        submit(jobs, "eve", place="quiet")
    for _ in range(20):
        assert work(jobs, clock, 10.0, "busy") == "ada"
    assert work(jobs, clock, 10.0, "quiet") == "eve"
    for _ in range(10):
        submit(jobs, "zoe", place="quiet")
    assert Counter(work(jobs, clock, 10.0, "quiet") for _ in range(10)) == {"eve": 5, "zoe": 5}


def test_the_order_is_that_of_the_fair_queue_in_memory(jobs: JobStore, clock: Clock) -> None:
    """With whole seconds of work, clients in the order of their names, and one worker."""
    source = random.Random(7)
    for _ in range(5):
        queue: FairQueue[str] = FairQueue()
        names = sorted(f"{source.randrange(10**6):06}" for _ in range(6))
        for name in names:
            for _ in range(source.randrange(1, 8)):
                clock.advance(0.001)
                queue.push(name, submit(jobs, name).id)
        while (expected := queue.take()) is not None:
            claimed = claim(jobs)
            assert claimed.job.id == expected
            seconds = source.choice([0.05, 1.0, 3.0])
            clock.advance(seconds)
            queue.charge(claimed.job.client, max(100, int(seconds * 1000)))
            if source.random() < 0.3:
                claimed.renew()
            assert claimed.succeed(b"1")
        jobs._client.delete(keys.SERVED, keys.NOW)


def test_idle_clients_are_forgotten(jobs: JobStore, client: redis.Redis, clock: Clock) -> None:
    submit(jobs, "active")
    client.zadd(keys.SERVED, {f"idle {i}": i for i in range(1500)})
    client.hset(keys.NOW, mapping={f"classify:place {i}": i for i in range(1500)})
    for _ in range(3):
        jobs.sweep()
    assert client.zcard(keys.SERVED) == 1025 and client.zscore(keys.SERVED, "active") is not None
    assert client.zscore(keys.SERVED, "idle 1499") == 1499  # ahead of the others: it would jump the queue
    assert client.hlen(keys.NOW) == 0
    assert claim(jobs).job.client == "active"


# -- room in the queue --


def test_a_client_has_at_most_half_of_the_queue(client: redis.Redis, clock: Clock) -> None:
    jobs = job_store(client, max_queued=8)
    for _ in range(4):
        submit(jobs, "ada")
    with pytest.raises(ShareExceeded) as refused:
        submit(jobs, "ada")
    assert refused.value.extra == {"limit": "queued_jobs"}
    submit(jobs, "eve")
    submit(jobs, "eve")
    with pytest.raises(ShareExceeded):
        submit(jobs, "eve")
    submit(jobs, "zoe")
    submit(jobs, "max")
    with pytest.raises(Overloaded) as full:
        submit(jobs, "new")
    assert full.value.code == "overloaded"
    held = claim(jobs)
    submit(jobs, "new")
    assert held.fail(ERROR, may_retry=True)  # what is queued again is never refused
    assert jobs.counts()["queued"] == 9
    with pytest.raises(Overloaded):
        submit(jobs, "other")
    cancelled = jobs.page("default", limit=2, states=["queued"]).data
    for job in cancelled:
        jobs.cancel("default", job.id)
    jobs.retry("default", cancelled[0].id)
    with pytest.raises(Overloaded):
        jobs.retry("default", cancelled[1].id)
    check_places(client)


def test_jobs_that_run_take_no_room(client: redis.Redis) -> None:
    jobs = job_store(client, max_queued=2)
    held: list[JobClaim] = []
    for _ in range(10):
        submit(jobs)
        held.append(claim(jobs))
    assert jobs.counts() == {"queued": 0, "running": 10}
    check_places(client)
