"""What the service reports to clients without being asked (Standard Webhooks 1.0: standardwebhooks.com)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

JOB_EVENTS = ("job.succeeded", "job.failed", "job.cancelled", "job.expired")
TEST_EVENT = "webhook.test"
LABEL_CHANGE_EVENTS = ("video.labels_changed",)  # by a backfill


@dataclass(frozen=True)
class WebhookTarget:
    """``url`` has passed ``UrlPolicy.check``. ``events``: empty for all."""

    url: str
    events: tuple[str, ...] = ()
    cloud_events: bool = False  # the body is a CloudEvents 1.0 envelope

    def wants(self, event_type: str) -> bool:
        return not self.events or event_type in self.events


@dataclass(frozen=True)
class WebhookEvent:
    """``data`` is thin: ids and states, at most 16 KiB as JSON, from which the receiver asks for more."""

    type: str
    namespace: str
    data: Mapping[str, Any]
    occurred_at_ms: int
