"""Random histories of one process against a model of the queue in plain Python."""

from __future__ import annotations

from collections.abc import Iterator

import hypothesis.strategies as st
import pytest
import redis
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from support.job_audit import check_places
from support.job_model import JobModel
from support.job_stores import ALL_KINDS, ERROR, WEBHOOK, Clock, deliveries, job_store, kill_worker, new_job
from vidlex.service.errors import JobConflict, NotFound
from vidlex.service.jobs.store import JobClaim, JobStore

LONG_LEASE = 10.0**6  # the clock is moved: leases end only where the test ends them


class JobHistory(RuleBasedStateMachine):
    client: redis.Redis
    clock: Clock

    def __init__(self) -> None:
        super().__init__()
        self.client.flushall()
        # Two, as in two processes; what one writes the other must read.
        self.stores = [job_store(self.client, lease_seconds=LONG_LEASE) for _ in range(2)]
        self.turn = 0
        self.model = JobModel(self.clock.ms)
        self.claims: list[JobClaim] = []
        self.ids: list[str] = []
        self.store.sweep()

    @property
    def store(self) -> JobStore:
        self.turn += 1
        return self.stores[self.turn % 2]

    @rule(
        client=st.sampled_from("abc"),
        kind=st.sampled_from(ALL_KINDS[:2]),
        place=st.sampled_from([None, "here"]),
        priority=st.sampled_from(["high", "normal", "low"]),
        max_attempts=st.integers(1, 3),
        keep_seconds=st.sampled_from([5.0, 10_000.0]),
        queue_seconds=st.sampled_from([20.0, 10_000.0]),
    )
    def submit(self, **fields: object) -> None:
        self.clock.advance(0.001)  # no two are as old: ids are random
        self.model.ms = self.clock.ms
        job, _ = self.store.submit(new_job(webhook=WEBHOOK, **fields))
        self.ids.append(job.id)
        self.model.submit(job)

    @rule()
    def claim(self) -> None:
        claimed = self.store.claim("worker", ["here"], ALL_KINDS)
        assert (claimed.job.id if claimed else None) == self.model.next()
        if claimed is not None:
            self.model.claim(claimed.job.id, claimed)
            self.claims.append(claimed)

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), end=st.sampled_from(["renew", "succeed", "fail", "retry", "give_back", "die"]))
    def work(self, data: st.DataObject, end: str) -> None:
        """The claims of earlier attempts remain, and must not have an effect."""
        claimed = data.draw(st.sampled_from(self.claims))
        job_id = claimed.job.id
        if not self.model.holds(job_id, claimed):
            assert claimed.renew() == "lost"
            assert not claimed.succeed(b"late") and not claimed.fail(ERROR, may_retry=True)
            claimed.give_back()
        elif end == "renew":
            assert claimed.renew() == ("cancelled" if self.model.jobs[job_id].is_cancelling else "held")
            self.model.renew(job_id)
        elif end == "succeed":
            assert claimed.succeed(b"1") == self.model.succeed(job_id)
        elif end == "give_back":
            claimed.give_back()
            self.model.give_back(job_id)
        elif end == "die":
            kill_worker(self.client, job_id)
            self.model.worker_died(job_id)
            self.sweep()
        else:
            assert claimed.fail(ERROR, may_retry=end == "retry") == self.model.fail(job_id, may_retry=end == "retry")

    @precondition(lambda self: self.ids)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job_id = data.draw(st.sampled_from(self.ids))
        if job_id in self.model.jobs:
            self.model.cancel(job_id)
            assert self.store.cancel("default", job_id).state == self.model.jobs[job_id].state
        else:
            with pytest.raises(NotFound):
                self.store.cancel("default", job_id)

    @precondition(lambda self: self.ids)
    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        job_id = data.draw(st.sampled_from(self.ids))
        job = self.model.jobs.get(job_id)
        if job is None or job.state not in ("failed", "cancelled", "expired"):
            with pytest.raises(NotFound if job is None else JobConflict):
                self.store.retry("default", job_id)
        else:
            self.model.retry(job_id)
            self.store.retry("default", job_id)

    @rule(seconds=st.sampled_from([0.01, 0.5, 1.999, 2.0, 7.0, 25.0]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.model.ms = self.clock.ms
        self.sweep()

    def sweep(self) -> None:
        assert {job.id for job in self.store.sweep()} == self.model.sweep()

    @invariant()
    def states_agree(self) -> None:
        page = self.store.page("default", limit=1000)
        assert [job.id for job in page.data] == sorted(self.model.jobs, reverse=True)
        for job in page.data:
            expected = self.model.jobs[job.id]
            assert (job.state, job.attempts, job.is_dead, job.is_cancelling) == (
                expected.state,
                expected.attempts,
                expected.is_dead,
                expected.is_cancelling,
            )
            assert job.kept_until_ms == (expected.kept_until_ms if job.finished_at_ms is not None else None)

    def teardown(self) -> None:
        check_places(self.client)
        counted = deliveries(self.client)
        for job in self.model.jobs.values():
            assert counted.get(f"{job.id} job.succeeded", 0) == job.num_results <= 1


@pytest.fixture
def clock() -> Iterator[Clock]:
    with pytest.MonkeyPatch.context() as patch:
        yield Clock(patch)


def test_random_histories_agree_with_the_model(server: redis.Redis, clock: Clock) -> None:
    server.config_set("appendfsync", "no")  # nothing is killed here
    JobHistory.client, JobHistory.clock = server, clock
    run_state_machine_as_test(JobHistory, settings=settings(max_examples=30, stateful_step_count=40, deadline=None))
