"""Examples of the bodies of webhooks."""

from __future__ import annotations

from typing import Any

_TIME_MS = 1796145973690
_URL = "https://hooks.example/vidlex"
_DELIVERY: dict[str, Any] = {
    "object": "webhook.delivery",
    "id": "msg_01m8sa92dpz006bms3r0pj6t",
    "type": "job.succeeded",
    "url": _URL,
    "state": "pending",
    "created_at_ms": _TIME_MS,
    "next_attempt_at_ms": _TIME_MS + 5120,
    "num_attempts": 1,
    "last_status": 503,
}
_DETAILS = _DELIVERY | {
    "body": '{"type":"job.succeeded","timestamp":"2026-12-01T17:26:13.690Z","data":{"id":"job_01m8"}}',
    "attempts": [{"at_ms": _TIME_MS + 90, "duration_ms": 31, "status": 503, "error": None, "answer": "later"}],
}
_DUE = _DETAILS | {"next_attempt_at_ms": _TIME_MS, "num_attempts": 0}
_TEST = _DELIVERY | {
    "type": "webhook.test",
    "next_attempt_at_ms": _TIME_MS,
    "num_attempts": 0,
    "last_status": None,
    "body": '{"type":"webhook.test","timestamp":"2026-12-01T17:26:13.690Z","data":{}}',
    "attempts": [],
}
_SECRET = {"object": "webhook.secret", "id": "whs_01m8sa92d3m5n8w4x6zqk2vh", "created_at_ms": _TIME_MS}
_ENDPOINT = {
    "object": "webhook.endpoint",
    "url": _URL,
    "disabled_at_ms": None,
    "last_attempt_at_ms": _TIME_MS,
    "last_success_at_ms": _TIME_MS,
    "num_failures": 0,
}

WEBHOOK_REQUESTS: dict[str, dict[str, Any]] = {
    "replay_deliveries": {"since": {"since_ms": _TIME_MS}},
    "enable_endpoint": {"endpoint": {"url": _URL}},
    "test_webhook": {"test": {"url": _URL}},
}
WEBHOOK_RESPONSES: dict[tuple[str, str], dict[str, Any]] = {
    ("create_webhook_secret", "201"): {
        "secret": _SECRET | {"secret": "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="}
    },
    ("list_webhook_secrets", "200"): {"secrets": {"object": "list", "data": [_SECRET]}},
    ("list_deliveries", "200"): {
        "page": {
            "object": "list",
            "data": [_DELIVERY],
            "has_more": False,
            "first_id": _DELIVERY["id"],
            "last_id": _DELIVERY["id"],
        }
    },
    ("get_delivery", "200"): {"delivery": _DETAILS},
    ("replay_delivery", "202"): {"due": _DUE},
    ("replay_deliveries", "202"): {"queued": {"object": "webhook.replay", "num_queued": 12, "has_more": False}},
    ("list_endpoints", "200"): {"endpoints": {"object": "list", "data": [_ENDPOINT]}},
    ("test_webhook", "202"): {"queued": _TEST},
}
