"""The times of the tries, by a clock of the test."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.webhook_receiver import LOOPBACK, Queue, Receiver
from vidlex.service.outbound.requests import Outbound
from vidlex.service.webhooks import due, keys
from vidlex.service.webhooks.records import Attempt
from vidlex.service.webhooks.schedule import MAX_RETRY_AFTER_SECONDS, MAX_TRIES, RETRY_SECONDS, delay_seconds
from vidlex.service.webhooks.sender import WebhookSender
from vidlex.service.webhooks.store import WebhookStore

DAY = 86_400.0


def test_ten_tries_over_about_three_days(
    store: WebhookStore, queue: Queue, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.secrets.create("zoo")
    receiver.answer = lambda received: (500, {})
    delivery_id = queue(receiver.url)
    lane = store.log.get("zoo", delivery_id).lane
    sender = WebhookSender(store, Outbound(LOOPBACK))
    clock = [store.log.get("zoo", delivery_id).created_at_ms + 1000]
    monkeypatch.setattr(due, "store_now_ms", lambda client: clock[0])
    times = []
    for number in range(MAX_TRIES):
        assert list(store.due.lanes()) == [lane]
        taken = store.due.take(lane, 30_000)
        assert taken is not None
        assert store.due.take(lane, 30_000) is None  # leased
        sender._send_once(taken)
        times.append(clock[0])
        delivery = store.log.get("zoo", delivery_id)
        assert delivery.tries == number + 1
        if delivery.due_at_ms is None:
            break
        clock[0] = delivery.due_at_ms - 1
        assert store.due.take(lane, 30_000) is None
        clock[0] = delivery.due_at_ms
    assert delivery.state == "failed" and len(times) == MAX_TRIES == 10
    assert 2.5 * DAY < (times[-1] - times[0]) / 1000 < 3.9 * DAY
    clock[0] += int(30 * DAY * 1000)
    assert store.due.take(lane, 30_000) is None and list(store.due.lanes()) == []
    assert store.log.get("zoo", delivery_id).state == "failed"
    sender._pool.shutdown()


def test_a_lease_that_has_ended_is_of_no_use(
    store: WebhookStore, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    delivery_id = queue("http://127.0.0.1:9999/")
    lane = keys.lane_of("zoo", "http://127.0.0.1:9999/")
    clock = [store.log.get("zoo", delivery_id).created_at_ms]
    monkeypatch.setattr(due, "store_now_ms", lambda client: clock[0])
    attempt = Attempt(clock[0], 1, 200, None, "")
    first = store.due.take(lane, 1000)
    clock[0] += 1000
    second = store.due.take(lane, 1000)
    assert first is not None and second is not None and first.delivery.id == second.delivery.id
    assert not store.due.record(first, attempt, "failed", None)
    assert not store.due.give_back(first)
    assert store.log.get("zoo", delivery_id).state == "pending"
    assert store.due.record(second, attempt, "succeeded", None)
    assert not store.due.record(second, attempt, "failed", None)
    assert store.log.get("zoo", delivery_id).state == "succeeded"


def test_a_replay_during_a_try_wins(store: WebhookStore, queue: Queue) -> None:
    delivery_id = queue("http://127.0.0.1:9999/")
    taken = store.due.take(keys.lane_of("zoo", "http://127.0.0.1:9999/"), 60_000)
    assert taken is not None
    store.log.replay("zoo", delivery_id)
    assert not store.due.record(taken, Attempt(0, 1, 500, None, ""), "failed", None)
    assert store.due.take(taken.delivery.lane, 60_000) is not None


@given(st.integers(1, MAX_TRIES - 1), st.none() | st.floats(0, 1e9), st.integers())
def test_delays_are_within_their_bounds(tries: int, retry_after: float | None, seed: int) -> None:
    delay = delay_seconds(tries, retry_after, random.Random(seed))
    assert delay is not None
    planned = RETRY_SECONDS[tries - 1]
    assert 0.8 * planned <= delay <= max(1.2 * planned, MAX_RETRY_AFTER_SECONDS)
    if retry_after is not None:
        assert delay >= min(retry_after, MAX_RETRY_AFTER_SECONDS)
    if retry_after is None:
        assert delay <= 1.2 * planned


def test_delays_are_spread_and_the_last_try_has_none() -> None:
    jitter = random.Random(1)
    delays = {delay_seconds(2, None, jitter) for _ in range(100)}
    assert len(delays) == 100
    assert delay_seconds(MAX_TRIES, 5.0, jitter) is None


def test_origins_share_a_lane() -> None:
    same = {keys.lane_of("zoo", url) for url in ("https://a.example/x", "https://A.example:443/y?z")}
    assert len(same) == 1
    others = {
        keys.lane_of("zoo", "https://a.example:8443/"),
        keys.lane_of("zoo", "https://b.example/"),
        keys.lane_of("farm", "https://a.example/"),
    }
    assert len(others | same) == 4
    assert {keys.namespace_of_lane(lane) for lane in others} == {"zoo", "farm"}
