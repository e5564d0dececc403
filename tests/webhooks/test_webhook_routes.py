"""/webhooks of a running service: keys, namespaces, secrets, deliveries."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import standardwebhooks

from support.live import live_service
from support.processes import until
from support.webhook_receiver import Receiver, receiving

PUBLIC = "https://hooks.example/x"


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    allowed = {"VIDLEX_WEBHOOK_HOSTS": '["127.0.0.1", "*.example"]', "VIDLEX_PRIVATE_NETWORKS": '["127.0.0.1/32"]'}
    with live_service(tmp_path_factory.mktemp("data"), **allowed) as url:
        yield url


@pytest.fixture
def http(url: str, request: pytest.FixtureRequest) -> Iterator[httpx.Client]:
    """With a namespace of its own."""
    namespace = hashlib.sha256(request.node.name.encode()).hexdigest()[:16]
    with httpx.Client(base_url=url, headers={"X-Vidlex-Namespace": namespace}, trust_env=False, timeout=60) as client:
        yield client


def code(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    return answer.status_code, answer.json()["code"]


def test_secrets_are_shown_once(http: httpx.Client) -> None:
    made = [http.post("/webhooks/secrets") for _ in range(4)]
    assert [answer.status_code for answer in made] == [201] * 4
    assert all(answer.json()["secret"].startswith("whsec_") for answer in made)
    assert made[0].headers["cache-control"] == "no-store"
    assert code(http.post("/webhooks/secrets")) == (409, "webhook_conflict")
    listed = http.get("/webhooks/secrets").json()["data"]
    assert [item["id"] for item in listed] == sorted(answer.json()["id"] for answer in made)
    assert "whsec_" not in http.get("/webhooks/secrets").text
    assert http.get("/webhooks/secrets", headers={"X-Vidlex-Namespace": "empty"}).json()["data"] == []
    assert code(http.delete("/webhooks/secrets/whs_1")) == (404, "not_found")
    assert http.delete(f"/webhooks/secrets/{listed[0]['id']}").status_code == 204
    assert len(http.get("/webhooks/secrets").json()["data"]) == 3


def test_a_test_event_arrives_and_is_listed(http: httpx.Client, receiver: Receiver) -> None:
    hook = {"url": f"{receiver.url}/test"}
    assert code(http.post("/webhooks:test", json=hook)) == (409, "webhook_secret_missing")
    secret = http.post("/webhooks/secrets").json()["secret"]
    answer = http.post("/webhooks:test", json=hook)
    assert answer.status_code == 202, answer.text
    delivery = answer.json()
    assert delivery["state"] == "pending" and delivery["attempts"] == []
    path = f"/webhooks/deliveries/{delivery['id']}"
    until(lambda: http.get(path).json()["state"] == "succeeded")
    (received,) = [item for item in receiver.received if item.id == delivery["id"]]
    content = standardwebhooks.Webhook(secret).verify(received.body, received.headers)
    assert content["type"] == "webhook.test" and received.body.decode() == delivery["body"]
    done = http.get(path).json()
    assert [(item["status"], item["answer"], item["error"]) for item in done["attempts"]] == [(200, "seen", None)]
    assert done["last_status"] == 200 and done["next_attempt_at_ms"] is None
    page = http.get("/webhooks/deliveries").json()
    assert [item["id"] for item in page["data"]] == [delivery["id"]] == [page["first_id"]] and not page["has_more"]
    assert http.get("/webhooks/deliveries?state=failed").json()["data"] == []
    (endpoint,) = http.get("/webhooks/endpoints").json()["data"]
    assert endpoint["url"] == hook["url"] and endpoint["last_success_at_ms"] and endpoint["disabled_at_ms"] is None
    for other in (http.get(path, headers={"X-Vidlex-Namespace": "other"}), http.get("/webhooks/deliveries/msg_1")):
        assert code(other) == (404, "not_found")
    assert code(http.post(f"{path}:replay", headers={"X-Vidlex-Namespace": "other"})) == (404, "not_found")
    assert http.post(f"{path}:replay").status_code == 202
    until(lambda: len(http.get(path).json()["attempts"]) == 2)
    assert http.get("/webhooks/deliveries?limit=1&after=" + delivery["id"]).json()["data"] == []


def test_an_endpoint_that_is_gone(http: httpx.Client, receiver: Receiver) -> None:
    http.post("/webhooks/secrets")
    receiver.answer = lambda received: (410 if received.path == "/gone" else 200, {})
    hook = {"url": f"{receiver.url}/gone"}
    delivery = http.post("/webhooks:test", json=hook).json()
    until(lambda: http.get(f"/webhooks/deliveries/{delivery['id']}").json()["state"] == "failed")
    assert http.get("/webhooks/endpoints").json()["data"][0]["disabled_at_ms"]
    assert code(http.post("/webhooks/endpoints:enable", json={"url": PUBLIC})) == (404, "not_found")
    assert http.post("/webhooks/endpoints:enable", json=hook).status_code == 204
    receiver.answer = lambda received: (200, {})
    answer = http.post("/webhooks/deliveries:replay", json={"since_ms": 0})
    assert answer.json() == {"object": "webhook.replay", "num_queued": 1, "has_more": False}
    until(lambda: http.get(f"/webhooks/deliveries/{delivery['id']}").json()["state"] == "succeeded")


@pytest.mark.parametrize(
    "refused",
    [
        "http://8.8.8.8/",
        "https://169.254.169.254/",
        "https://127.0.0.2/",
        "http://[::1]/",
        "https://hooks.example@127.0.0.1/",
        "https://2130706433/",
        "file:///etc/passwd",
        "https://elsewhere.test/",
    ],
)
def test_urls_that_are_refused(http: httpx.Client, refused: str) -> None:
    http.post("/webhooks/secrets")
    answer = http.post("/webhooks:test", json={"url": refused})
    assert code(answer) == (422, "url_refused")
    assert http.get("/webhooks/deliveries").json()["data"] == []


@pytest.mark.parametrize("body", [{}, {"url": ""}, {"url": 1}, {"url": PUBLIC, "more": 1}, {"url": "x" * 5000}])
def test_bodies_that_are_refused(http: httpx.Client, body: dict[str, object]) -> None:
    assert code(http.post("/webhooks:test", json=body)) == (422, "invalid_parameter")
    assert code(http.get("/webhooks/deliveries?limit=0")) == (422, "invalid_parameter")
    assert code(http.get("/webhooks/deliveries?state=x")) == (422, "invalid_parameter")


def test_a_service_that_is_not_configured_opens_no_url(tmp_path: Path) -> None:
    with live_service(tmp_path / "data") as url, httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
        assert client.post("/webhooks/secrets").status_code == 201
        answer = client.post("/webhooks:test", json={"url": PUBLIC})
        assert code(answer) == (422, "url_refused")
        assert "not configured" in json.loads(answer.content)["detail"]
