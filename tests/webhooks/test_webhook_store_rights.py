"""Webhooks with the rights that the deployment gives to the service's user of the store."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.paths import ROOT
from support.processes import until
from support.redis_process import RedisProcess
from support.webhook_receiver import LOOPBACK, Receiver
from vidlex.service.outbound.requests import Outbound
from vidlex.service.webhooks import keys
from vidlex.service.webhooks.events import WebhookEvent, WebhookTarget
from vidlex.service.webhooks.sender import SenderLimits, WebhookSender
from vidlex.service.webhooks.store import WebhookStore


@pytest.fixture
def restricted(tmp_path: Path) -> Iterator[WebhookStore]:
    rules = (ROOT / "docker" / "valkey-start.sh").read_text().split("user vidlex on ")[1].splitlines()[0]
    users = tmp_path / "users.acl"
    users.write_text(f"user default off\nuser vidlex on {rules.replace('#$digest', '>sesame')}\n")
    with RedisProcess(tmp_path / "store", user="vidlex", password="sesame", aclfile=str(users)) as store:
        client = store.client()
        client.get_connection_kwargs().update(username="vidlex", password="sesame")
        yield WebhookStore(client)


def test_every_command_is_allowed(restricted: WebhookStore, receiver: Receiver) -> None:
    store, event = restricted, WebhookEvent("job.succeeded", "zoo", {"id": "job_1"}, time.time_ns() // 1_000_000)
    first, second = store.secrets.create("zoo"), store.secrets.create("zoo")
    store.secrets.delete("zoo", first.id)
    assert [secret.id for secret in store.secrets.list("zoo")] == [second.id]
    receiver.answer = lambda received: (
        410 if received.path == "/gone" else 503 if len(receiver.received) < 4 else 200,
        {},
    )
    ids = [store.queue_now(WebhookTarget(f"{receiver.url}/{path}"), event).id for path in ("gone", "x", "y")]
    sender = WebhookSender(store, Outbound(LOOPBACK), SenderLimits(poll_seconds=0.02), delay=lambda *_: 0.0)
    sender.start()
    try:
        until(lambda: not store.log.page("zoo", limit=5, state="pending").data)
        assert [store.log.get("zoo", name).state for name in ids] == ["failed", "succeeded", "succeeded"]
        store.endpoints.enable("zoo", f"{receiver.url}/gone")
        assert store.log.replay_failed("zoo", 0) == (1, False)
        until(lambda: not store.log.page("zoo", limit=5, state="pending").data)
    finally:
        sender.close()
    store._client.delete(keys.SWEEP)
    store.sweep(period_seconds=60)
    assert len(store.endpoints.list("zoo")) == 3
