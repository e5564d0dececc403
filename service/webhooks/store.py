"""Secrets of namespaces, and deliveries that are due, done or given up."""

from __future__ import annotations

import time
from typing import Any, cast

import redis
import structlog

from vidlex.service.errors import WebhookConflict
from vidlex.service.ids import new_id
from vidlex.service.labels.store.connection import store_errors
from vidlex.service.labels.store.redis_types import Guard, RedisWrites, accept_any
from vidlex.service.webhooks import keys
from vidlex.service.webhooks.due import DueDeliveries
from vidlex.service.webhooks.endpoints import Endpoints
from vidlex.service.webhooks.events import WebhookEvent, WebhookTarget
from vidlex.service.webhooks.log import DeliveryLog
from vidlex.service.webhooks.messages import message_body
from vidlex.service.webhooks.records import KEEP_SECONDS, MESSAGE_PREFIX, Delivery, new_fields
from vidlex.service.webhooks.secrets import WebhookSecrets

_ATTEMPTS_BYTES = 2048  # of a delivery in addition to its body, estimated
_SWEPT_AFTER_SECONDS = 3600  # a sweep removes a delivery with its entries in the logs before its key expires
_log = structlog.get_logger("vidlex.webhooks")


class WebhookStore:
    """Thread-safe. Every method raises StoreUnavailable."""

    def __init__(self, client: redis.Redis, *, guard: Guard = accept_any) -> None:
        self._client = client
        self._guard = guard
        self.secrets = WebhookSecrets(client, guard)
        self.endpoints = Endpoints(client, guard)
        self.log = DeliveryLog(client, guard)
        self.due = DueDeliveries(client, self.endpoints, guard)

    def require_secret(self, namespace: str) -> None:
        """Raises WebhookSecretMissing."""
        self.secrets.require(namespace)

    def queue(self, pipe: RedisWrites, target: WebhookTarget, event: WebhookEvent) -> None:
        """See ``QueueWebhook``. Does nothing if the target does not want the event.

        Drops it, with a warning in the log, if the namespace has too many deliveries: see ``DeliveryLog.is_full``.
        """
        if not target.wants(event.type):
            return
        if self.log.is_full(event.namespace):
            pipe.incrby(keys.dropped(event.namespace), 1)
            _log.warning("webhook_dropped", namespace=event.namespace, type=event.type)
            return
        _queue(cast(Any, pipe), target, event)

    def queue_now(self, target: WebhookTarget, event: WebhookEvent) -> Delivery:
        """In a transaction of its own. Raises WebhookConflict if the namespace has too many."""
        if self.log.is_full(event.namespace):
            raise WebhookConflict("The namespace has too many deliveries; those that are done go within a minute")
        with store_errors(), self._client.pipeline(transaction=True) as pipe:
            self._guard(cast(Any, self._client))
            delivery = _queue(pipe, target, event)
            pipe.execute()
        return delivery

    def sweep(self, *, period_seconds: float) -> None:
        """See ``DeliveryLog.sweep``."""
        for namespace in self.log.sweep(period_ms=int(period_seconds * 1000)):
            self.endpoints.forget_old(namespace, time.time_ns() // 1_000_000 - KEEP_SECONDS * 1000)


def _queue(pipe: Any, target: WebhookTarget, event: WebhookEvent) -> Delivery:
    message_id = new_id(MESSAGE_PREFIX)
    body, content_type = message_body(message_id, event, cloud_events=target.cloud_events)
    due = min(event.occurred_at_ms, time.time_ns() // 1_000_000)
    delivery = Delivery(
        id=message_id,
        namespace=event.namespace,
        url=target.url,
        type=event.type,
        content_type=content_type,
        body=body,
        state="pending",
        created_at_ms=event.occurred_at_ms,
        due_at_ms=due,
        tries=0,
        attempts=(),
        lane=keys.lane_of(event.namespace, target.url),
        num_bytes=len(body) + len(target.url) + _ATTEMPTS_BYTES,
    )
    key = keys.delivery(message_id)
    pipe.hset(key, mapping=new_fields(delivery))
    pipe.expire(key, KEEP_SECONDS + _SWEPT_AFTER_SECONDS)
    pipe.zadd(keys.log(event.namespace), {message_id: 0})
    pipe.zadd(keys.log(event.namespace, "pending"), {message_id: 0})
    pipe.incrby(keys.num_bytes(event.namespace), delivery.num_bytes)
    pipe.sadd(keys.NAMESPACES, event.namespace)
    pipe.zadd(keys.lane(delivery.lane), {message_id: due})
    pipe.zadd(keys.LANES, {delivery.lane: due}, lt=True)
    return delivery
