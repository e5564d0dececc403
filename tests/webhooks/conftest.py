from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from support.stores import running_store
from support.webhook_receiver import LOOPBACK, Queue, Receiver, receiving
from vidlex.service.outbound.requests import Outbound
from vidlex.service.webhooks.events import WebhookEvent, WebhookTarget
from vidlex.service.webhooks.sender import SenderLimits, WebhookSender
from vidlex.service.webhooks.store import WebhookStore


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[redis.Redis]:
    with running_store(tmp_path_factory.mktemp("webhooks")) as client:
        yield client


@pytest.fixture
def store(client: redis.Redis) -> WebhookStore:
    client.flushall()
    return WebhookStore(client)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture
def queue(store: WebhookStore, client: redis.Redis) -> Queue:
    """Queues an event in a transaction, as a job does, and returns the id of its delivery."""

    def queue(url: str, namespace: str = "zoo", **more: Any) -> str:
        target = WebhookTarget(url, cloud_events=more.get("cloud_events", False), events=more.get("events", ()))
        data = more.get("data", {"id": "job_1", "state": "succeeded"})
        event = WebhookEvent(more.get("type", "job.succeeded"), namespace, data, time.time_ns() // 1_000_000)
        before = {delivery.id for delivery in store.log.page(namespace, limit=1000).data}
        with client.pipeline(transaction=True) as pipe:
            store.queue(pipe, target, event)  # type: ignore[arg-type]
            pipe.execute()
        new = [item.id for item in store.log.page(namespace, limit=1000).data if item.id not in before]
        return new[0] if new else ""

    return queue


@pytest.fixture
def sender(store: WebhookStore) -> Iterator[Callable[..., WebhookSender]]:
    """Starts senders, whose tries follow each other at once."""
    senders: list[WebhookSender] = []

    def start(*, outbound: Outbound | None = None, **more: Any) -> WebhookSender:
        delay = more.pop("delay", lambda tries, retry_after, jitter: 0.0 if tries < 3 else None)
        limits = SenderLimits(**{"poll_seconds": 0.02} | more)
        sender = WebhookSender(store, outbound or Outbound(LOOPBACK), limits, delay=delay)
        sender.start()
        senders.append(sender)
        return sender

    yield start
    for sender in senders:
        sender._cancelled.set()
        sender.close()
