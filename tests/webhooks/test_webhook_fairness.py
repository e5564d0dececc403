"""Endpoints, namespaces and processes that must not harm one another."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from support.processes import until
from support.stores import restart_server, url_of
from support.webhook_receiver import Queue, Received, Receiver, is_done, receiving
from vidlex.service.labels.embedded.server import EmbeddedStore
from vidlex.service.outbound.policy import UrlPolicy
from vidlex.service.outbound.requests import Outbound
from vidlex.service.webhooks.sender import SenderLimits, WebhookSender
from vidlex.service.webhooks.store import WebhookStore

Start = Callable[..., WebhookSender]

_PROCESS = """
    import sys, time, redis
    from vidlex.service.outbound.policy import UrlPolicy
    from vidlex.service.outbound.requests import Outbound
    from vidlex.service.webhooks.due import DueDeliveries
    from vidlex.service.webhooks.sender import SenderLimits, WebhookSender
    from vidlex.service.webhooks.store import WebhookStore

    if sys.argv[2] == "never-records":
        DueDeliveries.record = lambda *_, **__: time.sleep(1000)
    store = WebhookStore(redis.Redis.from_url(sys.argv[1]))
    limits = SenderLimits(lease_seconds=float(sys.argv[3]), poll_seconds=0.02)
    WebhookSender(store, Outbound(UrlPolicy.configured(["*"], ["127.0.0.0/8"])), limits).start()
    print("started", flush=True)
    time.sleep(1000)
"""


def process(client: redis.Redis, how: str, lease_seconds: float = 30.0) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(_PROCESS), url_of(client), how, str(lease_seconds)]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None and started.stdout.readline() == "started\n"
    return started


def test_a_sender_that_is_killed_before_it_records_is_followed_by_another_with_the_same_id(
    store: WebhookStore, queue: Queue, client: redis.Redis, receiver: Receiver
) -> None:
    store.secrets.create("zoo")
    ids = [queue(f"{receiver.url}/{number}") for number in range(3)]
    first = process(client, "never-records", lease_seconds=1.0)
    until(lambda: {received.id for received in receiver.received} == set(ids))
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    assert not any(is_done(store, delivery_id) for delivery_id in ids)
    num_lost = len(receiver.received)
    second = process(client, "records")
    try:
        until(lambda: all(is_done(store, delivery_id) for delivery_id in ids))
    finally:
        second.kill()
        second.communicate()
    assert {received.id for received in receiver.received[num_lost:]} == set(ids)
    bodies = {(received.id, received.body) for received in receiver.received}
    assert len(bodies) == len(ids)  # the same bytes each time


def test_two_processes_send_each_try_once(
    store: WebhookStore, queue: Queue, client: redis.Redis, receiver: Receiver
) -> None:
    store.secrets.create("zoo")
    ids = [queue(f"http://127.0.0.{2 + number % 4}:{receiver.port}/") for number in range(60)]
    both = [process(client, "records") for _ in range(2)]
    try:
        until(lambda: all(is_done(store, delivery_id) for delivery_id in ids))
    finally:
        for one in both:
            one.kill()
            one.communicate()
    assert Counter(received.id for received in receiver.received) == Counter(ids)


def test_an_endpoint_that_hangs_does_not_delay_another(
    store: WebhookStore, queue: Queue, sender: Start, receiver: Receiver
) -> None:
    store.secrets.create("zoo")
    receiver.answer = receiver.hang
    for _ in range(40):
        queue(receiver.url)
    with receiving() as alive:
        sender(num_threads=4, max_per_namespace=4, max_per_lane=3, timeout_seconds=60.0, lease_seconds=90.0)
        until(lambda: len(receiver.received) == 3)
        ids = [queue(alive.url) for _ in range(10)]
        until(lambda: all(is_done(store, delivery_id) for delivery_id in ids))
    assert len(receiver.received) == 3  # the others still wait


def test_a_namespace_whose_endpoints_hang_does_not_delay_another(
    store: WebhookStore, queue: Queue, sender: Start, receiver: Receiver
) -> None:
    for namespace in ("zoo", "farm"):
        store.secrets.create(namespace)
    receiver.answer = receiver.hang
    for number in range(30):
        queue(f"http://127.0.1.{number + 1}:{receiver.port}/")
    with receiving() as alive:
        sender(num_threads=6, max_per_namespace=5, max_per_lane=3, timeout_seconds=60.0, lease_seconds=90.0)
        until(lambda: len(receiver.received) == 5)
        ids = [queue(alive.url, "farm") for _ in range(5)]
        until(lambda: all(is_done(store, delivery_id, "farm") for delivery_id in ids))
    assert len(receiver.received) == 5


def test_lanes_have_their_turns(store: WebhookStore, queue: Queue, sender: Start, receiver: Receiver) -> None:
    """One thread, a long queue first: the short ones behind it do not wait for its end."""
    store.secrets.create("zoo")
    for _ in range(20):
        queue(receiver.url)
    short = [queue(f"http://127.0.0.{number}:{receiver.port}/short") for number in (2, 3)]
    sender(num_threads=1, max_per_lane=1)
    until(lambda: all(is_done(store, delivery_id) for delivery_id in short))
    until(lambda: not store.log.page("zoo", limit=1, state="pending").data)
    places = [number for number, received in enumerate(receiver.received) if received.path == "/short"]
    assert len(places) == 2 and max(places) < 8, places


def test_what_is_being_sent_at_the_stop_is_sent_by_the_next_process(
    store: WebhookStore, queue: Queue, sender: Start, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vidlex.service.webhooks.sender._STOP_SECONDS", 0.2)
    store.secrets.create("zoo")
    release = threading.Event()

    def answer(received: Received) -> tuple[int, dict[str, str]]:
        release.wait()
        return 200, {}

    receiver.answer = answer
    delivery_id = queue(receiver.url)
    first = sender(timeout_seconds=60.0, lease_seconds=90.0)
    until(lambda: len(receiver.received) == 1)
    first.close()
    assert store.log.get("zoo", delivery_id).attempts == ()  # cut by the stop: no try that failed
    release.set()
    sender()
    until(lambda: is_done(store, delivery_id))
    assert [received.id for received in receiver.received] == [delivery_id] * 2


def test_deliveries_wait_for_a_store_that_restarts(tmp_path: Path, receiver: Receiver) -> None:
    with EmbeddedStore(tmp_path) as embedded:
        store = WebhookStore(embedded.client())
        store.secrets.create("zoo")
        outbound = Outbound(UrlPolicy.configured(["*"], ["127.0.0.0/8"]))
        sender = WebhookSender(store, outbound, SenderLimits(poll_seconds=0.02))
        sender.start()
        try:
            restart_server(embedded)
            from vidlex.service.webhooks.events import WebhookEvent, WebhookTarget

            event = WebhookEvent("job.succeeded", "zoo", {"id": "job_1"}, 1)
            queued: list[str] = []

            def queue() -> bool:
                try:
                    queued.append(store.queue_now(WebhookTarget(receiver.url), event).id)
                except Exception:
                    return False
                return True

            until(queue)
            until(lambda: bool(receiver.received))
            assert receiver.received[0].id == queued[0]
        finally:
            sender.close()


def test_many_kills_lose_no_delivery(
    store: WebhookStore, queue: Queue, client: redis.Redis, receiver: Receiver
) -> None:
    store.secrets.create("zoo")
    ids = [queue(f"http://127.0.0.{2 + number % 5}:{receiver.port}/{number}") for number in range(120)]
    chance = random.Random(3)
    num_kills = 0
    while not all(is_done(store, delivery_id) for delivery_id in ids):
        sender = process(client, "records", lease_seconds=1.0)
        seen = len(receiver.received)
        goal = seen + chance.randrange(15, 50)
        until(lambda goal=goal: len(receiver.received) >= goal or all(is_done(store, name) for name in ids))  # type: ignore[misc]
        os.kill(sender.pid, signal.SIGKILL)
        sender.communicate()
        num_kills += 1
    assert num_kills > 2
    times = Counter(received.id for received in receiver.received)
    assert set(times) == set(ids)
    assert {item.state for item in store.log.page("zoo", limit=1000).data} == {"succeeded"}
    # Twice only what was under way at a kill: three at a time to each of five origins, eight of the namespace.
    assert sum(times.values()) - len(ids) <= 8 * num_kills
