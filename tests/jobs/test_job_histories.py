"""Several processes that share a queue of jobs, and are killed or stopped while they use it."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.job_audit import check_places
from support.job_nursery import LEASE_SECONDS, Nursery
from support.job_stores import claim, deliveries, job_store, submit
from support.processes import until, wait_for_end
from vidlex.service.errors import StoreUnavailable
from vidlex.service.labels.embedded.server import EmbeddedStore

NUM_KILLS = 120
NUM_STORE_KILLS = 4
_PROCESSES = [("worker", str(i)) for i in range(4)] + [("service", str(i)) for i in range(2)]


@pytest.fixture
def embedded(short_folder: Path) -> Iterator[EmbeddedStore]:
    with EmbeddedStore(short_folder) as store:
        yield store


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    wait_for_end(pid)


def test_kills_of_workers_services_and_the_store_lose_nothing(embedded: EmbeddedStore, tmp_path: Path) -> None:
    source = random.Random(1)
    with Nursery(embedded.socket_path, tmp_path / "logs") as nursery:
        processes = {name: nursery.start(*name) for name in _PROCESSES}
        for number in range(NUM_KILLS):
            time.sleep(source.uniform(0.02, 0.2))
            name = source.choice(_PROCESSES)
            kill(processes[name])
            processes[name] = nursery.start(*name)
            if number % (NUM_KILLS // NUM_STORE_KILLS) == 10:
                pid = embedded.pid
                assert pid is not None
                os.kill(pid, signal.SIGKILL)
                until(lambda pid=pid: embedded.pid not in (None, pid))  # type: ignore[misc]
        for name in _PROCESSES:
            if name[0] == "service":
                kill(processes.pop(name))
        jobs = job_store(embedded.client(), lease_seconds=LEASE_SECONDS)

        def is_done() -> bool:
            try:
                jobs.sweep()
                return not any(jobs.counts().values())
            except StoreUnavailable:
                return False

        until(is_done)
        for pid in processes.values():
            kill(pid)
        check_outcome(embedded, nursery)


def check_outcome(embedded: EmbeddedStore, nursery: Nursery) -> None:
    client = embedded.client()
    jobs = job_store(client)
    entries = check_places(client)
    acknowledged = [job_id for (job_id,) in nursery.lines("acknowledged-*")]
    cancelled = {job_id for (job_id,) in nursery.lines("cancels")}
    assert len(acknowledged) > NUM_KILLS
    assert len(set(acknowledged)) == len(acknowledged) and set(acknowledged) <= entries.keys()
    assert len(entries) <= len(acknowledged) + 2  # one that each service had not recorded

    counted = deliveries(client)
    assert set(counted.values()) == {1}
    ends = Counter(key.split()[0] for key in counted)
    assert ends.keys() == entries.keys() and set(ends.values()) == {1}

    stored, refused = defaultdict(list), defaultdict(list)
    for job_id, token, outcome in nursery.lines("results"):
        (stored if outcome == "stored" else refused)[job_id].append(token)
    for job_id, entry in entries.items():
        job = entry.job
        if job.state == "cancelled":
            assert job_id in cancelled
        elif job.state == "failed":
            assert job.is_dead and job.attempts == job.max_attempts == 3
        else:
            assert job.state == "succeeded"
        events = jobs.events("default", job_id)
        states = [event.data["state"] for event in events if event.type == "state"]
        assert states.count("succeeded") == (job.state == "succeeded")
        assert states.count("running") >= job.attempts
        result = jobs.result("default", job_id)
        if result is None:
            assert not stored[job_id]
        else:
            # The log lacks what was stored just before its worker was killed.
            token = json.loads(result)["token"]
            assert stored[job_id] in ([], [token]) and token not in refused[job_id]
    tried_again = sum(entry.job.attempts > 1 for entry in entries.values())
    assert tried_again > 5, "the kills have not met jobs at work"


def test_processes_that_race_take_every_job_once(embedded: EmbeddedStore, tmp_path: Path) -> None:
    client = embedded.client()
    jobs = job_store(client)
    with Nursery(embedded.socket_path, tmp_path / "logs") as nursery:
        racers = [nursery.start("racer") for _ in range(3)]
        submitted = [submit(jobs, f"client {i % 7}", max_attempts=1).id for i in range(120)]
        until(lambda: not any(jobs.counts().values()))
        for pid in racers:
            kill(pid)
        taken = [job_id for (job_id,) in nursery.lines("claims")]
        assert sorted(taken) == sorted(submitted)
        assert len([path for path in nursery.folder.glob("claims.*") if path.stat().st_size]) > 1
    assert {entry.job.state for entry in check_places(client).values()} == {"succeeded"}


def test_a_worker_that_was_stopped_for_longer_than_its_lease_comes_too_late(
    embedded: EmbeddedStore, tmp_path: Path
) -> None:
    client = embedded.client()
    jobs = job_store(client, lease_seconds=LEASE_SECONDS)
    job_id = submit(jobs).id
    with Nursery(embedded.socket_path, tmp_path / "logs") as nursery:
        pid = nursery.start("sleeper")
        until(lambda: nursery.lines("sleeper") == [["taken", job_id]])
        os.kill(pid, signal.SIGSTOP)

        def is_queued() -> bool:
            jobs.sweep()
            return jobs.get("default", job_id).state == "queued"

        until(is_queued)
        (nursery.folder / "go").touch()
        second = claim(jobs)
        os.kill(pid, signal.SIGCONT)
        until(lambda: len(nursery.lines("sleeper")) == 2)
        assert nursery.lines("sleeper")[1] == ["refused", "lost"]
        assert second.succeed(b'"in time"')
    assert jobs.result("default", job_id) == b'"in time"'
    check_places(client)
