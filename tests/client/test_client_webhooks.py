"""Verification of webhooks."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import vidlex
from vidlex.service.client.errors import VidlexClientError
from vidlex.service.client.webhooks import WebhookInvalid, verify_webhook

# The example of the specification's own libraries (standard-webhooks/libraries, test vectors).
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
BODY = b'{"test": 2432232314}'
AT = 1614265330
HEADERS = {
    "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
    "webhook-timestamp": str(AT),
    "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
}
OTHER = "whsec_" + base64.b64encode(b"another secret of 24 byt").decode()


def signed(secret: str, body: bytes = BODY, *, at: int = AT, message_id: str = "msg_1") -> str:
    key = base64.b64decode(secret.removeprefix("whsec_"))
    digest = hmac.new(key, f"{message_id}.{at}.".encode() + body, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"


def refused(code: str, *arguments: Any, **options: Any) -> str:
    with pytest.raises(WebhookInvalid) as caught:
        verify_webhook(*arguments, **options)
    assert caught.value.code == code and isinstance(caught.value, VidlexClientError)
    return caught.value.detail


def test_the_example_of_the_specification() -> None:
    assert verify_webhook(BODY, HEADERS, SECRET, now=AT) == {"test": 2432232314}
    assert vidlex.verify_webhook(BODY.decode(), HEADERS, [SECRET], now=AT + 300) == {"test": 2432232314}


def test_headers_of_any_case() -> None:
    for change in (str.title, str.upper):
        assert verify_webhook(BODY, {change(name): value for name, value in HEADERS.items()}, SECRET, now=AT)


def test_secrets_and_signatures_while_they_are_replaced() -> None:
    old = HEADERS["webhook-signature"]
    unknown = f"v2,abc v1a,{old[3:]} v1,!!! v1, {signed(OTHER, message_id=HEADERS['webhook-id'])} {old}"
    for secrets in ([SECRET], [OTHER], [OTHER, SECRET]):
        assert verify_webhook(BODY, HEADERS | {"webhook-signature": unknown}, secrets, now=AT)
    assert verify_webhook(BODY, HEADERS, [OTHER, SECRET], now=AT)
    refused("webhook_signature", BODY, HEADERS, OTHER, now=AT)


@pytest.mark.parametrize("name", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_a_missing_header_is_named(name: str) -> None:
    without = {key: value for key, value in HEADERS.items() if key != name}
    assert name in refused("webhook_header", BODY, without, SECRET, now=AT)
    assert name in refused("webhook_header", BODY, HEADERS | {name: "x" * 10_000}, SECRET, now=AT)


@pytest.mark.parametrize("late", [-301, 301, 10**9])
def test_an_old_message_is_refused(late: int) -> None:
    text = refused("webhook_timestamp", BODY, HEADERS, SECRET, now=AT + late)
    assert ("old" in text) == (late > 0)
    assert verify_webhook(BODY, HEADERS, SECRET, now=AT + late, tolerance_seconds=2e9)


def test_the_clock_of_this_machine_is_the_default() -> None:
    refused("webhook_timestamp", BODY, HEADERS, SECRET)


@pytest.mark.parametrize("text", ["now", "-1", "1e9", " 1", "1.0", "\u0661", "9" * 20])
def test_a_timestamp_that_is_none(text: str) -> None:
    refused("webhook_timestamp", BODY, HEADERS | {"webhook-timestamp": text}, SECRET, now=AT)


def test_a_signed_body_that_is_no_json() -> None:
    headers = HEADERS | {"webhook-id": "msg_1"}
    for body in (b"", b"\xff", b"[" * 100_000):
        refused("webhook_body", body, headers | {"webhook-signature": signed(SECRET, body)}, SECRET, now=AT)


@given(st.integers(0, len(BODY) - 1), st.integers(1, 255))
def test_a_changed_byte_is_found(place: int, change: int) -> None:
    body = bytearray(BODY)
    body[place] ^= change
    refused("webhook_signature", bytes(body), HEADERS, SECRET, now=AT)


@given(st.dictionaries(st.sampled_from(sorted(HEADERS)), st.text()), st.binary())
def test_foreign_headers_are_never_another_error(headers: dict[str, str], body: bytes) -> None:
    with pytest.raises(WebhookInvalid):
        verify_webhook(body, HEADERS | headers if headers else {}, SECRET, now=AT + 10_000)


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_!!", SECRET.removeprefix("whsec_"), "whsec_YQ==", "whsk_x"])
def test_a_secret_that_is_none(secret: str) -> None:
    with pytest.raises(ValueError, match="webhook secret"):
        verify_webhook(BODY, HEADERS, secret, now=AT)
    with pytest.raises(ValueError, match="no secret"):
        verify_webhook(BODY, HEADERS, [], now=AT)


def test_round_trip() -> None:
    body = json.dumps({"type": "job.done", "text": "\u00e9"}, ensure_ascii=False).encode()
    headers = {"webhook-id": "msg_1", "webhook-timestamp": str(AT), "webhook-signature": signed(OTHER, body)}
    assert verify_webhook(body, headers, OTHER, now=AT)["text"] == "\u00e9"
