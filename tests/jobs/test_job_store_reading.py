"""Pages of jobs, and their events."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import redis

from support.job_audit import check_places
from support.job_stores import (
    ERROR,
    Clock,
    brought_to,
    claim,
    job_store,
    kill_worker,
    submit,
)
from support.processes import until
from vidlex.service.bounds import MAX_PAGE_BYTES
from vidlex.service.errors import InvalidParameter, StoreUnavailable, VidlexError
from vidlex.service.jobs import keys
from vidlex.service.jobs.event_reader import EventReader
from vidlex.service.jobs.records import JobEvent, JobProgress
from vidlex.service.jobs.store import JobStore


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def jobs(client: redis.Redis) -> Iterator[JobStore]:
    yield job_store(client)
    check_places(client)


def test_pages_select_and_continue(jobs: JobStore, clock: Clock) -> None:
    wanted: dict[str, list[str]] = {}
    for state in ("succeeded", "failed", "cancelled"):
        for kind in ("classify", "batch"):
            wanted.setdefault(state, []).append(brought_to(jobs, state, clock, kind=kind))
    wanted["dead"] = [brought_to(jobs, "failed", clock, is_dead=True, max_attempts=1)]
    wanted["running"] = [brought_to(jobs, "running", clock)]
    wanted["queued"] = [submit(jobs, kind="backfill").id, submit(jobs).id]
    submit(jobs, namespace="other")
    everything = sorted((job_id for ids in wanted.values() for job_id in ids), reverse=True)

    def ids_of(**options: object) -> list[str]:
        found, after = [], None
        while True:
            page = jobs.page("default", limit=2, after_id=after, **options)
            assert len(page.data) == 2 or not page.has_more
            found += [job.id for job in page.data]
            if not page.has_more:
                return found
            after = page.data[-1].id

    assert ids_of() == everything
    assert ids_of(states=["queued", "running"]) == sorted(wanted["queued"] + wanted["running"], reverse=True)
    assert ids_of(states=["failed"]) == sorted(wanted["failed"] + wanted["dead"], reverse=True)
    assert ids_of(is_dead=True) == wanted["dead"] == ids_of(states=["failed"], is_dead=True)
    assert ids_of(states=["succeeded"], is_dead=True) == []
    assert ids_of(is_dead=False) == [job_id for job_id in everything if job_id not in wanted["dead"]]
    assert ids_of(kinds=["backfill"]) == wanted["queued"][:1]
    batches = [job for job in jobs.page("default", limit=99).data if job.kind == "batch"]
    assert ids_of(kinds=["batch"]) == [job.id for job in batches] and len(batches) == 3
    assert ids_of(states=["expired"]) == []
    with pytest.raises(InvalidParameter):
        jobs.page("default", limit=2, after_id="(x")


def kinds_of(jobs: JobStore, job_id: str, after: str = "0-0") -> list[str]:
    return [
        str(event.data.get("state", event.data.get("done", event.type)))
        for event in jobs.events("default", job_id, after)
    ]


def test_events_can_be_read_from_any_point(jobs: JobStore) -> None:
    job_id = submit(jobs).id
    assert kinds_of(jobs, job_id) == ["queued"]
    claimed = claim(jobs)
    for done in range(5):
        claimed.report(JobProgress("decode", "frames", done, total=9))
    claimed.emit("labels", {"labels": []})
    for done in range(5, 8):
        claimed.report(JobProgress("decode", "frames", done, total=9))
    assert jobs.get("default", job_id).progress == JobProgress("decode", "frames", 7, total=9)
    claimed.fail(ERROR, may_retry=False)
    events = jobs.events("default", job_id)
    assert kinds_of(jobs, job_id) == ["queued", "running", "4", "labels", "7", "failed"]
    assert events[-1].data == {"state": "failed", "attempts": 1, "error": vars(ERROR)}
    for i, event in enumerate(events):
        assert jobs.events("default", job_id, event.id) == events[i + 1 :]
    assert jobs.events("default", job_id, events[-1].id, block_seconds=60.0) == []  # there will be none
    assert jobs.read_events({job_id: events[1].id, "job_gone": "0-0"}) == {job_id: events[2:]}
    for after in ("x", "1-2-3", "$", "-1", f"{2**64}-0", ""):
        with pytest.raises(InvalidParameter):
            jobs.events("default", job_id, after)


def test_every_change_of_state_is_an_event(jobs: JobStore, client: redis.Redis, clock: Clock) -> None:
    job_id = submit(jobs).id
    claim(jobs).give_back()
    claim(jobs)
    kill_worker(client, job_id)
    jobs.sweep()
    claim(jobs)
    jobs.cancel("default", job_id)
    assert jobs.events("default", job_id)[-1].data == {"state": "running", "attempts": 2, "cancelling": True}
    kill_worker(client, job_id)
    jobs.sweep()
    jobs.retry("default", job_id)
    clock.advance(86_400)
    jobs.sweep()
    states = ["queued", "running", "queued", "running", "queued", "running", "running", "cancelled", "queued"]
    assert kinds_of(jobs, job_id) == [*states, "expired"]


def test_the_last_state_outlives_the_stream(jobs: JobStore, client: redis.Redis) -> None:
    job_id = submit(jobs).id
    claim(jobs).succeed(b"1")
    assert 0 < client.pttl(keys.events(job_id)) <= 600_000
    client.delete(keys.events(job_id))
    events = jobs.events("default", job_id)
    assert [event.data["state"] for event in events] == ["queued", "succeeded"]
    assert jobs.events("default", job_id, events[-1].id) == []


def test_events_are_waited_for(jobs: JobStore) -> None:
    job_id = submit(jobs).id
    claimed = claim(jobs)
    last = jobs.events("default", job_id)[-1].id
    assert jobs.events("default", job_id, last, block_seconds=0.05) == []
    found: list[str] = []

    def wait() -> None:
        while not found:
            found.extend(event.data["state"] for event in jobs.events("default", job_id, last, block_seconds=2.5))

    threads = [threading.Thread(target=wait) for _ in range(40)]  # more than may be blocked at once
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    claimed.succeed(b"1")
    for thread in threads:
        thread.join()
    assert set(found) == {"succeeded"}


def test_the_number_of_events_is_bounded(client: redis.Redis) -> None:
    jobs = job_store(client, max_events=10)
    job_id = submit(jobs).id
    claimed = claim(jobs)
    for i in range(30):
        claimed.emit("labels", {"number": i})
    events = jobs.events("default", job_id, "1-0")
    assert [event.data["number"] for event in events] == list(range(20, 30))


def test_a_page_is_bounded_in_bytes_and_has_no_params(jobs: JobStore) -> None:
    ids = [submit(jobs, params={"x": "y" * 100_000}, metadata={"x": "z" * 15_000}).id for _ in range(200)]
    found: list[str] = []
    after: str | None = None
    num_pages = 0
    while True:
        page = jobs.page("default", limit=1000, after_id=after)
        assert sum(15_000 + len(job.params) for job in page.data) <= MAX_PAGE_BYTES and page.data
        assert not any(job.params for job in page.data)
        found += [job.id for job in page.data]
        num_pages += 1
        if not page.has_more:
            break
        after = page.data[-1].id
    assert found == sorted(ids, reverse=True) and num_pages == 2


def test_a_damaged_job_and_a_wrong_id_hide_no_events_of_other_jobs(jobs: JobStore, client: redis.Redis) -> None:
    good, damaged, wrong = (submit(jobs).id for _ in range(3))
    commands: Any = client
    state = commands.hget(keys.job(damaged), "state")
    commands.hset(keys.job(damaged), "state", "{")
    found: dict[str, list[JobEvent] | VidlexError] = {}
    reader = EventReader(jobs.read_events, jobs.poll_events)
    try:
        for at_once in (True, False):
            found.clear()
            after = {good: "0-0", damaged: "0-0", wrong: f"{2**64}-0"}
            if not at_once:
                claimed = claim(jobs)
                after[claimed.job.id] = "0-1"
                del after[damaged]  # only its record is
            for job_id, event_id in after.items():
                reader.watch(job_id, event_id, partial(found.__setitem__, job_id), at_once=at_once)
            until(lambda expected=after: found.keys() == expected.keys())  # type: ignore[misc]
            assert isinstance(found[good], list) and isinstance(found[wrong], InvalidParameter)
            assert at_once is isinstance(found.get(damaged), StoreUnavailable)
    finally:
        reader.close()
        commands.hset(keys.job(damaged), "state", state)
