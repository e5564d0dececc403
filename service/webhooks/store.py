"""Secrets of namespaces, and deliveries that are due, done or given up."""

from __future__ import annotations

import redis

from vidlex.service.labels.store.redis_types import Guard, RedisWrites, accept_any
from vidlex.service.webhooks.events import WebhookEvent, WebhookTarget


class WebhookStore:
    """Thread-safe. Every method raises StoreUnavailable."""

    def __init__(self, client: redis.Redis, *, guard: Guard = accept_any) -> None:
        raise NotImplementedError

    def queue(self, pipe: RedisWrites, target: WebhookTarget, event: WebhookEvent) -> None:
        """See ``QueueWebhook``. Does nothing if the target does not want the event."""
        raise NotImplementedError
