"""Deliveries to real servers: what is sent, tried again, given up and replayed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
import redis
import standardwebhooks

from support.processes import until
from support.webhook_receiver import LOOPBACK, Queue, Received, Receiver, is_done, receiving, statuses
from vidlex.service.client.webhooks import verify_webhook
from vidlex.service.errors import NotFound, WebhookConflict, WebhookSecretMissing
from vidlex.service.ids import id_at
from vidlex.service.outbound.policy import UrlPolicy
from vidlex.service.outbound.requests import Outbound, Posted
from vidlex.service.webhooks import keys
from vidlex.service.webhooks import log as delivery_log
from vidlex.service.webhooks.sender import WebhookSender
from vidlex.service.webhooks.store import WebhookStore

Start = Callable[..., WebhookSender]


def verified(received: Received, secret: str) -> Any:
    """By the reference library of the specification, and by this project's client."""
    content = standardwebhooks.Webhook(secret).verify(received.body, received.headers)
    assert verify_webhook(received.body, received.headers, secret) == content
    return content


def test_a_delivery_is_signed_as_the_specification_says(
    store: WebhookStore, queue: Queue, sender: Start, receiver: Receiver
) -> None:
    secret = store.secrets.create("zoo")
    delivery_id = queue(f"{receiver.url}/hook?a=b")
    sender()
    until(lambda: is_done(store, delivery_id))
    (received,) = receiver.received
    content = verified(received, secret.text)
    assert received.id == delivery_id and received.path == "/hook?a=b"
    assert received.headers["content-type"] == "application/json"
    assert set(content) == {"type", "timestamp", "data"}
    assert content["type"] == "job.succeeded" and content["timestamp"].endswith("Z")
    assert content["data"] == {"id": "job_1", "state": "succeeded"}
    delivery = store.log.get("zoo", delivery_id)
    assert delivery.state == "succeeded" and statuses(delivery) == [200]
    assert delivery.attempts[0].answer == "seen"
    changed = Received(received.path, received.headers, received.body + b" ")
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        verified(changed, secret.text)


def test_cloud_events(store: WebhookStore, queue: Queue, sender: Start, receiver: Receiver) -> None:
    secret = store.secrets.create("zoo")
    delivery_id = queue(receiver.url, cloud_events=True)
    sender()
    until(lambda: is_done(store, delivery_id))
    content = verified(receiver.received[0], secret.text)
    assert receiver.received[0].headers["content-type"] == "application/cloudevents+json"
    assert content.pop("time").endswith("Z")
    assert content == {
        "specversion": "1.0",
        "id": delivery_id,
        "source": "/vidlex/zoo",
        "type": "job.succeeded",
        "datacontenttype": "application/json",
        "data": {"id": "job_1", "state": "succeeded"},
    }


def test_all_secrets_sign_while_one_is_replaced(
    store: WebhookStore, queue: Queue, sender: Start, receiver: Receiver
) -> None:
    old = store.secrets.create("zoo")
    store.secrets.create("other")
    new = store.secrets.create("zoo")
    sender()
    first = queue(receiver.url)
    until(lambda: is_done(store, first))
    assert len(receiver.received[0].headers["webhook-signature"].split(" ")) == 2
    for secret in (old, new):
        verified(receiver.received[0], secret.text)
    store.secrets.delete("zoo", old.id)
    second = queue(receiver.url)
    until(lambda: is_done(store, second))
    verified(receiver.received[1], new.text)
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        standardwebhooks.Webhook(old.text).verify(receiver.received[1].body, receiver.received[1].headers)


def test_at_most_four_secrets_and_none_of_another_namespace(store: WebhookStore) -> None:
    with pytest.raises(WebhookSecretMissing):
        store.require_secret("zoo")
    made = [store.secrets.create("zoo") for _ in range(4)]
    assert store.secrets.list("zoo") == sorted(made, key=lambda secret: secret.id) and store.secrets.list("farm") == []
    store.require_secret("zoo")
    with pytest.raises(WebhookConflict):
        store.secrets.create("zoo")
    with pytest.raises(NotFound):
        store.secrets.delete("farm", made[0].id)
    store.secrets.delete("zoo", made[0].id)
    assert len({secret.text for secret in [store.secrets.create("zoo"), *made]}) == 5


def test_what_fails_is_tried_again_with_the_same_id_and_body(
    store: WebhookStore, queue: Queue, sender: Start, receiver: Receiver
) -> None:
    secret = store.secrets.create("zoo")
    answers = iter([(500, {}), (307, {"Location": "/elsewhere"}), (204, {})])
    receiver.answer = lambda received: next(answers)
    delivery_id = queue(receiver.url)
    sender()
    until(lambda: is_done(store, delivery_id))
    assert [received.id for received in receiver.received] == [delivery_id] * 3
    assert {received.path for received in receiver.received} == {"/"}
    assert len({verified(received, secret.text)["timestamp"] for received in receiver.received}) == 1
    delivery = store.log.get("zoo", delivery_id)
    assert delivery.state == "succeeded" and statuses(delivery) == [500, 307, 204]
    assert delivery.attempts[1].error == "Redirects of webhooks are not followed"


@pytest.mark.parametrize("status", [200, 503])
def test_a_retry_after_that_is_no_date_does_no_harm(
    store: WebhookStore, queue: Queue, sender: Start, receiver: Receiver, status: int
) -> None:
    store.secrets.create("zoo")
    receiver.answer = lambda received: (status, {"Retry-After": "Mon, 01 Jan 99999999999999999999 00:00:00 GMT"})
    delivery_id = queue(receiver.url)
    sender()
    until(lambda: is_done(store, delivery_id))
    assert statuses(store.log.get("zoo", delivery_id)) == ([200] if status == 200 else [503] * 3)


def test_an_unexpected_error_is_a_failed_try(
    store: WebhookStore, queue: Queue, sender: Start, receiver: Receiver
) -> None:
    class Faulty(Outbound):
        def post(self, *_: Any, **__: Any) -> Posted:
            raise RuntimeError("secret detail")

    store.secrets.create("zoo")
    delivery_id = queue(receiver.url)
    sender(outbound=Faulty(LOOPBACK))
    until(lambda: is_done(store, delivery_id))
    delivery = store.log.get("zoo", delivery_id)
    assert delivery.state == "failed" and statuses(delivery) == [None] * 3
    assert {attempt.error for attempt in delivery.attempts} == {"An internal error of the service"}


def test_servers_that_hang_or_do_not_exist(
    store: WebhookStore, queue: Queue, sender: Start, receiver: Receiver
) -> None:
    store.secrets.create("zoo")
    receiver.answer = receiver.hang
    hanging = queue(receiver.url)
    with receiving() as gone:
        pass
    missing = queue(gone.url)
    refused = queue("https://localhost/")
    sender(timeout_seconds=0.3)
    until(lambda: all(is_done(store, delivery_id) for delivery_id in (hanging, missing, refused)))
    for delivery_id in (hanging, missing, refused):
        delivery = store.log.get("zoo", delivery_id)
        assert delivery.state == "failed" and statuses(delivery) == [None] * 3
    errors = [store.log.get("zoo", name).attempts[-1].error for name in (hanging, missing)]
    assert errors == ["The URL was not read in time", "The server cannot be reached"]
    (endpoint,) = [item for item in store.endpoints.list("zoo") if item.url == receiver.url]
    assert endpoint.num_failures == 3 and endpoint.last_success_at_ms is None and endpoint.disabled_at_ms is None


def test_a_url_that_the_policy_no_longer_allows_is_not_opened(
    store: WebhookStore, queue: Queue, sender: Start, receiver: Receiver
) -> None:
    store.secrets.create("zoo")
    delivery_id = queue(receiver.url)
    sender(outbound=Outbound(UrlPolicy(hosts=("*",))))
    until(lambda: is_done(store, delivery_id))
    assert store.log.get("zoo", delivery_id).state == "failed" and not receiver.received


def test_an_endpoint_that_is_gone_is_disabled_until_it_is_enabled(
    store: WebhookStore, queue: Queue, sender: Start, receiver: Receiver
) -> None:
    for namespace in ("zoo", "farm"):
        store.secrets.create(namespace)
    gone = [True]
    receiver.answer = lambda received: (410 if gone[0] else 200, {})
    first = queue(receiver.url)
    sender()
    until(lambda: is_done(store, first))
    assert statuses(store.log.get("zoo", first)) == [410]
    second = queue(receiver.url)
    until(lambda: is_done(store, second))
    assert len(receiver.received) == 1
    assert store.log.get("zoo", second).attempts[0].error == "The endpoint is disabled"
    gone[0] = False
    other = queue(f"{receiver.url}/other")  # another URL, and another namespace, are not disabled
    until(lambda: is_done(store, other))
    foreign = queue(receiver.url, "farm")
    until(lambda: is_done(store, foreign, "farm"))
    assert len(receiver.received) == 3
    (endpoint,) = [item for item in store.endpoints.list("zoo") if item.disabled_at_ms is not None]
    assert endpoint.url == receiver.url
    with pytest.raises(NotFound):
        store.endpoints.enable("farm", receiver.url)
    store.endpoints.enable("zoo", receiver.url)
    assert store.log.replay_failed("zoo", 0) == (2, False)
    until(lambda: all(is_done(store, delivery_id) for delivery_id in (first, second)))
    for delivery_id in (first, second):
        assert store.log.get("zoo", delivery_id).state == "succeeded"


def test_replays_keep_the_id_and_get_all_their_tries(
    store: WebhookStore, queue: Queue, sender: Start, receiver: Receiver
) -> None:
    store.secrets.create("zoo")
    receiver.answer = lambda received: (503, {})
    ids = [queue(receiver.url) for _ in range(3)]
    sender()
    until(lambda: all(is_done(store, delivery_id) for delivery_id in ids))
    assert store.log.replay_failed("farm", 0) == (0, False)
    assert store.log.replay_failed("zoo", time.time_ns() // 1_000_000 + 60_000) == (0, False)
    receiver.answer = lambda received: (200, {})
    assert store.log.replay("zoo", ids[0]).tries == 0
    until(lambda: is_done(store, ids[0]))
    assert store.log.replay_failed("zoo", 0) == (2, False)
    until(lambda: all(is_done(store, delivery_id) for delivery_id in ids))
    assert statuses(store.log.get("zoo", ids[0])) == [503, 503, 503, 200]
    assert {store.log.get("zoo", delivery_id).state for delivery_id in ids} == {"succeeded"}
    store.log.replay("zoo", ids[1])  # one that has succeeded, too
    until(lambda: sum(received.id == ids[1] for received in receiver.received) == 5)


def test_pages_by_state_and_namespace(store: WebhookStore, queue: Queue, client: redis.Redis) -> None:
    ids = [queue("http://127.0.0.1:9999/") for _ in range(5)]
    foreign = queue("http://127.0.0.1:9999/", "farm")
    page = store.log.page("zoo", limit=2)
    assert [item.id for item in page.data] == sorted(ids)[:-3:-1] and page.has_more
    page = store.log.page("zoo", limit=10, after_id=page.data[-1].id)
    assert [item.id for item in page.data] == sorted(ids)[2::-1] and not page.has_more
    assert store.log.page("zoo", limit=10, state="failed").data == []
    assert len(store.log.page("zoo", limit=10, state="pending").data) == 5
    for wrong in (foreign, "msg_x", "job_01m8sa92dpz006bms3r0pj6t", ""):
        with pytest.raises(NotFound):
            store.log.get("zoo", wrong)
        with pytest.raises(NotFound):
            store.log.replay("zoo", wrong)


def test_events_that_are_not_wanted_are_not_queued(store: WebhookStore, queue: Queue) -> None:
    assert queue("http://127.0.0.1:9999/", events=("job.failed",)) == ""
    assert queue("http://127.0.0.1:9999/", events=("job.failed", "job.succeeded"))


def test_bodies_stay_thin(store: WebhookStore, queue: Queue) -> None:
    delivery_id = queue("http://127.0.0.1:9999/", data={"id": "job_1", "labels": ["x" * 100] * 1000, "n": 3})
    body = store.log.get("zoo", delivery_id).body
    assert len(body) < 20_000 and json.loads(body)["data"] == {"id": "job_1", "n": 3}


def test_without_a_secret_nothing_is_sent(store: WebhookStore, queue: Queue, sender: Start, receiver: Receiver) -> None:
    delivery_id = queue(receiver.url)
    sender()
    until(lambda: is_done(store, delivery_id))
    assert not receiver.received
    assert store.log.get("zoo", delivery_id).attempts[0].error == "The namespace has no webhook secret"


def test_too_many_deliveries_and_old_ones_go(
    store: WebhookStore, queue: Queue, sender: Start, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery_log, "MAX_DELIVERIES", 4)
    store.secrets.create("zoo")
    sender()
    with receiving() as receiver:
        done = [queue(receiver.url) for _ in range(3)]
        until(lambda: all(is_done(store, delivery_id) for delivery_id in done))
    gone = receiver
    waiting = [queue(gone.url) for _ in range(6)]
    assert waiting[4:] == ["", ""]  # 7 of 4 with half as many again
    assert client.get(keys.dropped("zoo")) == b"2"
    until(lambda: all(is_done(store, delivery_id) for delivery_id in waiting[:4]))
    assert store.log.sweep(period_ms=60_000) == []  # the sender has begun with one
    client.delete(keys.SWEEP)
    assert store.log.sweep(period_ms=60_000) == ["zoo"]
    assert {item.id for item in store.log.page("zoo", limit=10).data} == set(
        waiting[:4]
    )  # those that are done go first
    with pytest.raises(NotFound):
        store.log.get("zoo", done[0])
    monkeypatch.setattr(delivery_log, "KEEP_SECONDS", -60)
    client.delete(keys.SWEEP)
    store.log.sweep(period_ms=60_000)
    client.delete(keys.SWEEP, keys.secrets("zoo"))
    assert sorted(client.scan_iter("*webhook*")) in ([], [keys.LANES.encode()])


def test_a_full_namespace_by_bytes(store: WebhookStore, queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery_log, "MAX_BYTES", 10_000)
    ids = [queue("http://127.0.0.1:9999/", data={"x": "y" * 3000}) for _ in range(5)]
    assert ids[3:] == ["", ""]
    assert queue("http://127.0.0.1:9999/", "farm")
    store.log.sweep(period_ms=1)
    assert [item.id for item in store.log.page("zoo", limit=10).data] == [ids[2]]


def test_ids_sort_by_time() -> None:
    assert id_at("msg", 1) < id_at("msg", 2) < id_at("msg", 2**40)
    assert LOOPBACK.private_networks
