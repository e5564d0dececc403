"""What is sent: body, headers and signatures (Standard Webhooks 1.0; CloudEvents 1.0 in structured mode)."""

from __future__ import annotations

import base64
import datetime
import hashlib
import hmac
import json
import secrets
from collections.abc import Iterable, Mapping
from typing import Any

from vidlex.service.webhooks.events import WebhookEvent

SECRET_PREFIX = "whsec_"
_SECRET_BYTES = 32  # the specification: 24 to 64
MAX_BODY_BYTES = 20_000
_MAX_THIN_CHARS = 200


def new_secret() -> str:
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def message_body(message_id: str, event: WebhookEvent, *, cloud_events: bool) -> tuple[bytes, str]:
    """The body and its content type. Data that are not thin are reduced to their short members."""
    body = _encoded(message_id, event, event.data, cloud_events)
    if len(body) > MAX_BODY_BYTES:
        body = _encoded(message_id, event, _thin(event.data), cloud_events)
    return body, "application/cloudevents+json" if cloud_events else "application/json"


def signed_headers(message_id: str, timestamp: int, body: bytes, keys: Iterable[str]) -> dict[str, str]:
    """``timestamp`` of this try, in seconds. Every one of ``keys`` (whsec_...) signs."""
    signed = f"{message_id}.{timestamp}.".encode() + body
    signatures = [
        f"v1,{base64.b64encode(hmac.new(_key(secret), signed, hashlib.sha256).digest()).decode()}" for secret in keys
    ]
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(signatures),
    }


def _encoded(message_id: str, event: WebhookEvent, data: Mapping[str, Any], cloud_events: bool) -> bytes:
    moment = datetime.datetime.fromtimestamp(event.occurred_at_ms / 1000, datetime.UTC)
    time = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    content: dict[str, Any] = {"type": event.type, "timestamp": time, "data": data}
    if cloud_events:
        content = {
            "specversion": "1.0",
            "id": message_id,
            "source": f"/vidlex/{event.namespace}",
            "type": event.type,
            "time": time,
            "datacontenttype": "application/json",
            "data": data,
        }
    return json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")


def _thin(data: Mapping[str, Any]) -> dict[str, Any]:
    short = {
        key: value
        for key, value in data.items()
        if len(key) <= _MAX_THIN_CHARS
        and isinstance(value, str | int | float | None)
        and len(str(value)) <= _MAX_THIN_CHARS
    }
    return dict(list(short.items())[:16])


def _key(secret: str) -> bytes:
    return base64.b64decode(secret.removeprefix(SECRET_PREFIX))
