"""Verification of webhooks (Standard Webhooks 1.0: standardwebhooks.com)."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from vidlex.service.client.errors import VidlexClientError

SECRET_PREFIX = "whsec_"
TOLERANCE_SECONDS = 300.0
MAX_SIGNATURES = 32
_MAX_HEADER_CHARS = 8192
_MIN_SECRET_BYTES = 16


class WebhookInvalid(VidlexClientError):
    """The message is not to be trusted. ``code``: `webhook_header`, `webhook_timestamp`, `webhook_signature`,
    `webhook_body`."""

    default_code = "webhook_signature"


def verify_webhook(
    body: bytes | str,
    headers: Mapping[str, str],
    secrets: str | Sequence[str],
    *,
    tolerance_seconds: float = TOLERANCE_SECONDS,
    now: float | None = None,
) -> Any:
    """The JSON of a webhook's body, which must be that of the request, byte for byte.

    ``secrets``: one, or while they are being replaced several (``whsec_...``). The same message may arrive more than
    once: the header ``webhook-id`` identifies it. Raises WebhookInvalid; ValueError for a secret that is none.
    """
    keys = [_key(secret) for secret in ([secrets] if isinstance(secrets, str) else secrets)]
    if not keys:
        raise ValueError("there is no secret")
    content = body.encode() if isinstance(body, str) else bytes(body)
    given = {name.lower(): value for name, value in headers.items()}
    message_id, timestamp, signatures = (_header(given, f"webhook-{name}") for name in ("id", "timestamp", "signature"))
    if not (timestamp.isascii() and timestamp.isdecimal() and len(timestamp) <= 15):
        raise WebhookInvalid("webhook-timestamp is no Unix time in seconds", code="webhook_timestamp")
    sent = [_signature(text) for text in signatures.split(" ")[:MAX_SIGNATURES] if text.startswith("v1,")]
    signed = f"{message_id}.{timestamp}.".encode() + content
    # All are compared, whichever matches.
    matches = [
        hmac.compare_digest(hmac.new(key, signed, hashlib.sha256).digest(), signature)
        for key in keys
        for signature in sent
    ]
    if not any(matches):
        raise WebhookInvalid("no signature of this message is by a known secret")
    age = (time.time() if now is None else now) - int(timestamp)
    if abs(age) > tolerance_seconds:
        when = f"{age:.0f} s old" if age > 0 else f"{-age:.0f} s ahead of this machine's clock"
        raise WebhookInvalid(f"the message is {when}", code="webhook_timestamp")
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        raise WebhookInvalid("the body is no JSON", code="webhook_body") from None


def _header(headers: Mapping[str, str], name: str) -> str:
    value = headers.get(name, "")
    if not value or len(value) > _MAX_HEADER_CHARS:
        raise WebhookInvalid(f"the header {name} is {'too long' if value else 'missing'}", code="webhook_header")
    return value


def _signature(text: str) -> bytes:
    """Empty if it is none, which equals no digest."""
    try:
        return base64.b64decode(text.removeprefix("v1,").encode("ascii", "replace"), validate=True)
    except (ValueError, binascii.Error):
        return b""


def _key(secret: str) -> bytes:
    try:
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except (ValueError, binascii.Error):
        key = b""
    if not secret.startswith(SECRET_PREFIX) or len(key) < _MIN_SECRET_BYTES:
        raise ValueError(f"a webhook secret is {SECRET_PREFIX} and at least {_MIN_SECRET_BYTES} bytes in base64")
    return key
