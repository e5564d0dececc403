"""The runner against a real store: leases, errors, cancellation, timeouts, outages, a stop."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import redis

from support.job_audit import check_places
from support.job_stores import job_store, kill_worker, submit
from support.processes import PATIENCE_SECONDS, until
from support.stores import restart_server
from vidlex.service.errors import EncodeFailed, StoreUnavailable, UndecodableVideo
from vidlex.service.jobs import attempt as attempts
from vidlex.service.jobs import runner as runners
from vidlex.service.jobs.handlers import JobHandler, JobWork
from vidlex.service.jobs.records import FINAL_STATES, Job, JobProgress
from vidlex.service.jobs.runner import JobRunner, RunnerOptions
from vidlex.service.jobs.store import JobStore
from vidlex.service.labels.embedded.server import EmbeddedStore
from vidlex.service.telemetry.metrics import Metrics


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedStore]:
    with EmbeddedStore(tmp_path_factory.mktemp("store")) as server:
        yield server


@pytest.fixture
def client(embedded: EmbeddedStore) -> Iterator[redis.Redis]:
    client = embedded.client()
    client.flushall()
    yield client
    client.close()


@pytest.fixture
def jobs(client: redis.Redis) -> Iterator[JobStore]:
    yield job_store(client, lease_seconds=2.0, retry_seconds=0.01)
    check_places(client)


@contextmanager
def running(jobs: JobStore, handler: JobHandler, *, num_workers: int = 2, **hooks: Any) -> Iterator[JobRunner]:
    changes = {name: hooks.pop(name) for name in ("stop_seconds", "turn_kinds", "turn_seconds") if name in hooks}
    own_places = hooks.pop("own_places", {"batch": 1})
    options = RunnerOptions(num_workers, own_places, (), lease_seconds=2.0, **changes)
    runner = JobRunner(jobs, {"classify": handler, "batch": handler}, options, Metrics(), **hooks)
    runner.start()
    try:
        yield runner
    finally:
        runner.close()


def finished(jobs: JobStore, job_id: str) -> Job:
    until(lambda: jobs.get("default", job_id).state in FINAL_STATES)
    return jobs.get("default", job_id)


def wait_until_given_up(work: JobWork) -> Mapping[str, Any]:
    assert work.cancelled.wait(PATIENCE_SECONDS)
    raise UndecodableVideo("of no use any more")


def test_a_job_runs_and_its_result_is_stored(jobs: JobStore) -> None:
    succeeded: list[str] = []
    with running(jobs, lambda job, work: {"of": job.params["n"]}, on_succeeded=lambda job: succeeded.append(job.id)):
        ids = [submit(jobs, params={"n": n}).id for n in range(20)]
        for n, job_id in enumerate(ids):
            job = finished(jobs, job_id)
            assert (job.state, job.attempts, job.error) == ("succeeded", 1, None)
            assert jobs.result("default", job_id) == f'{{"of":{n}}}'.encode()
        until(lambda: sorted(succeeded) == sorted(ids))


def test_progress_is_throttled_and_the_last_one_is_stored(jobs: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    num_stored = 0
    report = jobs_claim().report

    def counted(self: Any, progress: JobProgress) -> None:
        nonlocal num_stored
        num_stored += 1
        report(self, progress)

    monkeypatch.setattr(jobs_claim(), "report", counted)
    may_end = threading.Event()

    def handler(job: Job, work: JobWork) -> Mapping[str, Any]:
        number = 0
        while not may_end.is_set():
            number += 1
            work.report(JobProgress("encode", "frames", number))
            time.sleep(0.001)
        work.report(JobProgress("encode", "frames", 10**6, 10**6))
        work.emit("labels", {"labels": ["red"]})
        return {}

    with running(jobs, handler):
        started = time.monotonic()
        job_id = submit(jobs).id
        until(lambda: jobs.get("default", job_id).progress is not None)
        may_end.set()
        job = finished(jobs, job_id)
        assert num_stored <= 2 + (time.monotonic() - started) / 0.5
    assert job.progress == JobProgress("encode", "frames", 10**6, 10**6)
    events = jobs.events("default", job_id)
    assert [event.data for event in events if event.type == "labels"] == [{"labels": ["red"]}]


def jobs_claim() -> Any:
    from vidlex.service.jobs.queue.claims import Claim

    return Claim


def test_errors_of_the_video_fail_the_job_and_those_of_the_service_are_tried_again(jobs: JobStore) -> None:
    def handler(job: Job, work: JobWork) -> Mapping[str, Any]:
        if job.params["error"] == "video":
            raise UndecodableVideo("The video cannot be decoded", internal="/secret/path")
        if job.params["error"] == "busy":
            raise EncodeFailed("The encoder failed")
        if job.params["error"] == "first" and job.attempts > 1:
            return {"attempt": job.attempts}
        raise RuntimeError("/secret/path")

    with running(jobs, handler):
        ids = {name: submit(jobs, params={"error": name}).id for name in ("video", "busy", "crash", "first")}
        found = {name: finished(jobs, job_id) for name, job_id in ids.items()}
    assert {name: (job.state, job.attempts, job.is_dead) for name, job in found.items()} == {
        "video": ("failed", 1, False),
        "busy": ("failed", 3, True),
        "crash": ("failed", 3, True),
        "first": ("succeeded", 2, False),
    }
    codes = {name: job.error.code for name, job in found.items() if job.error is not None}
    assert codes == {"video": "undecodable_video", "busy": "encode_failed", "crash": "internal_error"}
    assert not any("secret" in str(job.error) for job in found.values())


def test_a_result_that_is_too_large_fails_the_job(client: redis.Redis) -> None:
    jobs = job_store(client, max_result_bytes=100)
    with running(jobs, lambda job, work: {"text": "x" * 200}):
        job = finished(jobs, submit(jobs).id)
    assert job.state == "failed" and job.error is not None and job.error.code == "invalid_parameter"


def test_a_running_job_is_cancelled(jobs: JobStore) -> None:
    started, ended = threading.Event(), threading.Event()

    def handler(job: Job, work: JobWork) -> Mapping[str, Any]:
        started.set()
        try:
            return wait_until_given_up(work)
        finally:
            ended.set()

    with running(jobs, handler) as runner:
        job_id = submit(jobs).id
        assert started.wait(PATIENCE_SECONDS)
        assert jobs.cancel("default", job_id).is_cancelling
        runner.wake()
        assert finished(jobs, job_id).state == "cancelled"
        assert ended.is_set()


def test_a_job_that_was_cancelled_has_no_result_even_if_its_handler_ends(jobs: JobStore) -> None:
    def handler(job: Job, work: JobWork) -> Mapping[str, Any]:
        jobs.cancel("default", job.id)
        return {}

    with running(jobs, handler):
        job = finished(jobs, submit(jobs).id)
    assert job.state == "cancelled" and jobs.result("default", job.id) is None


def test_an_attempt_that_takes_too_long_ends(jobs: JobStore) -> None:
    with running(jobs, lambda job, work: wait_until_given_up(work)):
        job = finished(jobs, submit(jobs, timeout_seconds=0.2, max_attempts=2).id)
    assert (job.state, job.attempts, job.is_dead) == ("failed", 2, True)
    assert job.error is not None and job.error.code == "job_timeout"


def test_an_attempt_whose_handler_does_not_notice_its_timeout_is_decided_without_it(
    jobs: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "_TIMEOUT_GRACE_SECONDS", 0.1)
    may_end = threading.Event()

    def handler(job: Job, work: JobWork) -> Mapping[str, Any]:
        may_end.wait(PATIENCE_SECONDS)
        return {"late": True}

    with running(jobs, handler) as runner:
        job = finished(jobs, submit(jobs, timeout_seconds=0.2, max_attempts=1).id)
        assert job.error is not None and job.error.code == "job_timeout"
        assert runner.num_running == 1, "its place is taken until it ends"
        may_end.set()
        until(lambda: runner.num_running == 0)
        assert jobs.get("default", job.id) == job and jobs.result("default", job.id) is None


def test_a_lost_job_is_stopped_and_stores_nothing(jobs: JobStore, client: redis.Redis) -> None:
    def handler(job: Job, work: JobWork) -> Mapping[str, Any]:
        if job.attempts == 1:
            # As if this process had been paused: others see no sign of life, and take the job away.
            while jobs.get("default", job.id).attempts == 1 and jobs.get("default", job.id).state == "running":
                kill_worker(client, job.id)
                jobs.sweep()
            wait_until_given_up(work)
        return {"attempt": job.attempts}

    with running(jobs, handler):
        job = finished(jobs, submit(jobs).id)
    assert (job.state, job.attempts) == ("succeeded", 2)
    assert jobs.result("default", job.id) == b'{"attempt":2}'


def test_a_stop_gives_jobs_back(jobs: JobStore) -> None:
    started = threading.Semaphore(0)

    def handler(job: Job, work: JobWork) -> Mapping[str, Any]:
        started.release()
        return wait_until_given_up(work)

    with running(jobs, handler):
        ids = [submit(jobs, max_attempts=1).id for _ in range(2)]
        assert all(started.acquire(timeout=PATIENCE_SECONDS) for _ in ids)
    assert [jobs.get("default", job_id).state for job_id in ids] == ["queued"] * 2
    with running(jobs, lambda job, work: {}):
        assert {finished(jobs, job_id).attempts for job_id in ids} == {1}


def test_a_stop_does_not_wait_for_a_handler_that_does_not_notice(jobs: JobStore) -> None:
    started, may_end = threading.Event(), threading.Event()

    def handler(job: Job, work: JobWork) -> Mapping[str, Any]:
        started.set()
        may_end.wait(PATIENCE_SECONDS)
        return {"late": True}

    with running(jobs, handler, stop_seconds=0.1):
        job_id = submit(jobs).id
        assert started.wait(PATIENCE_SECONDS)
    assert jobs.get("default", job_id).state == "queued"
    may_end.set()
    with running(jobs, lambda job, work: {"late": False}):
        finished(jobs, job_id)
    assert jobs.result("default", job_id) == b'{"late":false}'


def test_no_job_is_taken_while_the_process_drains(jobs: JobStore) -> None:
    is_draining = threading.Event()
    is_draining.set()
    with running(jobs, lambda job, work: {}, is_draining=is_draining.is_set):
        job_id = submit(jobs).id
        time.sleep(0.6)
        assert jobs.get("default", job_id).state == "queued"
        is_draining.clear()
        assert finished(jobs, job_id).state == "succeeded"


def test_a_long_batch_does_not_hold_up_other_jobs(jobs: JobStore) -> None:
    started, may_end = threading.Event(), threading.Event()

    def handler(job: Job, work: JobWork) -> Mapping[str, Any]:
        if job.kind == "batch":
            started.set()
            may_end.wait(PATIENCE_SECONDS)
        return {}

    with running(jobs, handler, num_workers=1):
        batches = [submit(jobs, kind="batch").id for _ in range(2)]
        assert started.wait(PATIENCE_SECONDS)
        assert finished(jobs, submit(jobs).id).state == "succeeded"
        assert sorted(jobs.get("default", job_id).state for job_id in batches) == ["queued", "running"]
        may_end.set()
        assert {finished(jobs, job_id).state for job_id in batches} == {"succeeded"}


def test_a_free_place_and_a_new_job_are_noticed_at_once(jobs: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runners, "_POLL_SECONDS", 10 * PATIENCE_SECONDS)
    ids = [submit(jobs).id for _ in range(10)]
    with running(jobs, lambda job, work: {}, num_workers=1) as runner:
        for job_id in ids:
            assert finished(jobs, job_id).state == "succeeded"
        job_id = submit(jobs).id
        runner.wake()
        assert finished(jobs, job_id).state == "succeeded"


def test_a_process_without_workers_only_sweeps(jobs: JobStore) -> None:
    removed: list[str] = []
    with running(jobs, lambda job, work: {}, num_workers=0, on_removed=lambda job: removed.append(job.id)) as runner:
        job_id = submit(jobs, queue_seconds=0.1, keep_seconds=0.1).id
        until(lambda: removed == [job_id])  # expired, then removed
        until(lambda: runner.counts.get("queued") == 0)


def test_an_outage_of_the_store_ends_no_job(embedded: EmbeddedStore, jobs: JobStore) -> None:
    started, may_end = threading.Event(), threading.Event()

    def handler(job: Job, work: JobWork) -> Mapping[str, Any]:
        started.set()
        may_end.wait(PATIENCE_SECONDS)
        return {"attempt": job.attempts}

    with running(jobs, handler) as runner:
        job_id = submit(jobs).id
        assert started.wait(PATIENCE_SECONDS)
        restart_server(embedded)
        may_end.set()
        until(lambda: _state(jobs, job_id) == "succeeded")
        assert jobs.result("default", job_id) == b'{"attempt":1}'
        assert runner.num_running == 0 or _state(jobs, job_id) == "succeeded"
        assert finished(jobs, submit(jobs).id).state == "succeeded", "the runner goes on"


def _state(jobs: JobStore, job_id: str) -> str:
    try:
        return jobs.get("default", job_id).state
    except StoreUnavailable:
        return "unknown"


def test_clients_take_turns(jobs: JobStore) -> None:
    order: list[str] = []

    def handler(job: Job, work: JobWork) -> Mapping[str, Any]:
        order.append(job.client)
        return {}

    ids = [submit(jobs, "ada").id for _ in range(10)] + [submit(jobs, "bob").id for _ in range(3)]
    with running(jobs, handler, num_workers=1):
        for job_id in ids:
            finished(jobs, job_id)
    assert "bob" in order[:3] and order.index("bob") < 3
    assert [i for i, client in enumerate(order) if client == "bob"][-1] <= 8


def test_a_job_for_which_there_is_no_thread_is_given_back(jobs: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    start, num_failed = threading.Thread.start, 0

    def fails_twice(self: threading.Thread) -> None:
        nonlocal num_failed
        if self.name == "vidlex-classify" and num_failed < 2:
            num_failed += 1
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(threading.Thread, "start", fails_twice)
    with running(jobs, lambda job, work: {}, num_workers=1):
        job = finished(jobs, submit(jobs, max_attempts=1).id)
        assert (job.state, job.attempts, num_failed) == ("succeeded", 1, 2)
        assert finished(jobs, submit(jobs).id).state == "succeeded", "its place is free again"


def test_a_client_with_many_places_gives_some_to_another_that_waits(
    jobs: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runners, "_TURNS_SECONDS", 0.05)
    may_end, done = threading.Event(), threading.Semaphore(0)
    given_back: list[str] = []

    def handler(job: Job, work: JobWork) -> Mapping[str, Any]:
        work.report(JobProgress("classify", "videos", 0, 9))
        if job.params.get("may_advance"):
            work.report(JobProgress("classify", "videos", 1, 9))
        done.release()
        while not may_end.is_set():
            if work.cancelled.wait(0.01):
                given_back.append(job.id)
                raise UndecodableVideo("of no use any more")
        return {}

    turns: dict[str, Any] = {"turn_kinds": frozenset({"batch"}), "turn_seconds": 0.2, "own_places": {"batch": 3}}
    with running(jobs, handler, **turns):
        stuck = [submit(jobs, "ada", kind="batch").id for _ in range(2)]
        long = submit(jobs, "ada", kind="batch", params={"may_advance": True}, max_attempts=1).id
        for _ in range(3):
            assert done.acquire(timeout=PATIENCE_SECONDS)
        more = submit(jobs, "ada", kind="batch").id
        time.sleep(0.6)
        assert given_back == [], "no other client waits"
        other = submit(jobs, "bob", kind="batch", params={"may_advance": True}).id
        until(lambda: jobs.get("default", other).state == "running")
        assert given_back == [long], "the others would have to begin again"
        time.sleep(0.6)
        assert given_back == [long] and jobs.get("default", other).state == "running"
        may_end.set()
        found = [finished(jobs, job_id) for job_id in (*stuck, more, other, long)]
    assert [(job.state, job.attempts) for job in found] == [("succeeded", 1)] * 5
