"""Deliveries, and their form in the store."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

DeliveryState = Literal["pending", "succeeded", "failed"]
DELIVERY_STATES: tuple[DeliveryState, ...] = ("pending", "succeeded", "failed")
MESSAGE_PREFIX = "msg"  # of the ids of deliveries, see ids.py
SECRET_ID_PREFIX = "whs"
KEEP_SECONDS = 7 * 86_400
MAX_KEPT_ATTEMPTS = 20
"""Of a delivery that was replayed, the last ones."""


@dataclass(frozen=True)
class Attempt:
    """Without a ``status`` there was no answer, and ``error`` says why."""

    at_ms: int
    duration_ms: int
    status: int | None
    error: str | None
    answer: str | None  # its beginning


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """``tries`` counts those since it was queued or replayed. Times are Unix milliseconds by the clock of the store."""

    id: str  # the same for all tries: the header webhook-id
    namespace: str
    url: str
    type: str
    content_type: str
    body: bytes
    state: DeliveryState
    created_at_ms: int
    due_at_ms: int | None  # of the next try
    tries: int
    attempts: tuple[Attempt, ...]
    lane: str
    num_bytes: int


def new_fields(delivery: Delivery) -> dict[str, str | bytes | int]:
    fixed = {
        "namespace": delivery.namespace,
        "url": delivery.url,
        "type": delivery.type,
        "content_type": delivery.content_type,
        "created_at_ms": delivery.created_at_ms,
        "lane": delivery.lane,
    }
    sent: dict[str, str | bytes | int] = {
        "fixed": json.dumps(fixed),
        "body": delivery.body,
        "num_bytes": delivery.num_bytes,
        "lane": delivery.lane,
    }
    return sent | changed_fields(delivery)


def changed_fields(delivery: Delivery) -> dict[str, str | bytes | int]:
    return {
        "state": delivery.state,
        "due": "" if delivery.due_at_ms is None else delivery.due_at_ms,
        "tries": delivery.tries,
        "attempts": json.dumps([asdict(attempt) for attempt in delivery.attempts[-MAX_KEPT_ATTEMPTS:]]),
    }


def parse_delivery(delivery_id: str, fields: Mapping[bytes, bytes]) -> Delivery | None:
    """None for one that is gone."""
    if b"fixed" not in fields or b"state" not in fields:
        return None
    fixed = json.loads(fields[b"fixed"])
    return Delivery(
        id=delivery_id,
        namespace=fixed["namespace"],
        url=fixed["url"],
        type=fixed["type"],
        content_type=fixed["content_type"],
        body=fields[b"body"],
        state=_state(fields[b"state"]),
        created_at_ms=fixed["created_at_ms"],
        due_at_ms=int(fields[b"due"]) if fields[b"due"] else None,
        tries=int(fields[b"tries"]),
        attempts=tuple(Attempt(**attempt) for attempt in json.loads(fields[b"attempts"])),
        lane=fixed["lane"],
        num_bytes=int(fields[b"num_bytes"]),
    )


def _state(raw: bytes) -> DeliveryState:
    return next(state for state in DELIVERY_STATES if state.encode() == raw)
