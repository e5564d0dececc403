"""What has become of the deliveries of a namespace, and sending them again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import redis

from vidlex.service import audit
from vidlex.service.errors import NotFound, StoreUnavailable
from vidlex.service.ids import id_at, is_id
from vidlex.service.labels.store.clock import store_now_ms
from vidlex.service.labels.store.connection import store_errors
from vidlex.service.labels.store.redis_types import Guard
from vidlex.service.webhooks import keys
from vidlex.service.webhooks.records import (
    DELIVERY_STATES,
    KEEP_SECONDS,
    MESSAGE_PREFIX,
    Delivery,
    DeliveryState,
    parse_delivery,
)

MAX_DELIVERIES = 10_000
"""Per namespace, and half as many again until the next sweep, which removes the oldest: first those that are done."""
MAX_BYTES = 64 << 20
MAX_REPLAYED = 1000
"""By one request."""
_REMOVED_AT_ONCE = 200
_MAX_CONFLICTS = 20


@dataclass(frozen=True)
class DeliveryPage:
    data: list[Delivery]  # newest first
    has_more: bool


class DeliveryLog:
    def __init__(self, client: redis.Redis, guard: Guard) -> None:
        self._client: Any = client
        self._guard = guard

    def get(self, namespace: str, delivery_id: str) -> Delivery:
        """Raises NotFound."""
        if is_id(delivery_id, MESSAGE_PREFIX):
            with store_errors():
                found = parse_delivery(delivery_id, self._client.hgetall(keys.delivery(delivery_id)))
            if found is not None and found.namespace == namespace:
                return found
        raise NotFound("There is no such delivery")

    def page(
        self, namespace: str, *, limit: int, after_id: str | None = None, state: DeliveryState | None = None
    ) -> DeliveryPage:
        highest = "+" if after_id is None else f"({after_id}"
        with store_errors():
            ids = self._client.zrevrangebylex(keys.log(namespace, state), highest, "-", 0, limit + 1)
        return DeliveryPage(self._read(ids[:limit]), len(ids) > limit)

    def replay(self, namespace: str, delivery_id: str) -> Delivery:
        """Due at once, with all its tries before it; its id stays the same. Raises NotFound."""
        self.get(namespace, delivery_id)
        for _ in range(_MAX_CONFLICTS):
            with store_errors(), self._client.pipeline(transaction=True) as pipe:
                key = keys.delivery(delivery_id)
                pipe.watch(key)
                self._guard(pipe)
                delivery = parse_delivery(delivery_id, pipe.hgetall(key))
                if delivery is None:
                    raise NotFound("There is no such delivery")
                now = store_now_ms(pipe)
                pipe.multi()
                pipe.hset(key, mapping={"state": "pending", "tries": 0, "due": now})
                pipe.hdel(key, "lease")  # what is being sent is not recorded: it is sent again
                pipe.zrem(keys.log(namespace, delivery.state), delivery_id)
                pipe.zadd(keys.log(namespace, "pending"), {delivery_id: 0})
                pipe.zadd(keys.lane(delivery.lane), {delivery_id: now})
                pipe.zadd(keys.LANES, {delivery.lane: now}, lt=True)
                try:
                    pipe.execute()
                except redis.WatchError:
                    continue
            audit.record("webhook.replay", delivery_id, namespace=namespace)
            return self.get(namespace, delivery_id)
        raise StoreUnavailable("The store is too busy", internal="conflicts over a webhook delivery")

    def replay_failed(self, namespace: str, since_ms: int) -> tuple[int, bool]:
        """The number that is due again, and whether there are more; oldest first."""
        lowest = f"[{id_at(MESSAGE_PREFIX, since_ms)}"
        with store_errors():
            ids = self._client.zrangebylex(keys.log(namespace, "failed"), lowest, "+", 0, MAX_REPLAYED + 1)
        num_replayed = 0
        for delivery_id in ids[:MAX_REPLAYED]:
            try:
                self.replay(namespace, delivery_id.decode())
                num_replayed += 1
            except NotFound:
                continue
        return num_replayed, len(ids) > MAX_REPLAYED

    def is_full(self, namespace: str) -> bool:
        """More than 1.5 times what the next sweep leaves."""
        with store_errors():
            num_bytes = int(self._client.get(keys.num_bytes(namespace)) or 0)
            return num_bytes > 1.5 * MAX_BYTES or self._client.zcard(keys.log(namespace)) > 1.5 * MAX_DELIVERIES

    def sweep(self, *, period_ms: int) -> list[str]:
        """Removes deliveries that are older than seven days, or too many; once per period, in one process.

        The namespaces that were looked at.
        """
        with store_errors():
            self._guard(self._client)
            if not self._client.set(keys.SWEEP, 1, nx=True, px=period_ms):
                return []
            expired = f"({id_at(MESSAGE_PREFIX, max(0, store_now_ms(self._client) - KEEP_SECONDS * 1000))}"
            namespaces = [raw.decode() for raw in self._client.smembers(keys.NAMESPACES)]
            for namespace in namespaces:
                self._sweep(namespace, expired)
            return namespaces

    def _sweep(self, namespace: str, expired: str) -> None:
        log = keys.log(namespace)
        while ids := self._client.zrangebylex(log, "-", expired, 0, _REMOVED_AT_ONCE):
            self._remove(namespace, ids)
        while excess := self._excess(namespace):
            order: tuple[DeliveryState, ...] = ("succeeded", "failed", "pending")
            for state in order:
                ids = self._client.zrange(keys.log(namespace, state), 0, min(excess, _REMOVED_AT_ONCE) - 1)
                if ids:
                    self._remove(namespace, ids)
                    break
            else:
                return
        if not self._client.zcard(log):
            self._client.delete(keys.num_bytes(namespace), keys.dropped(namespace), keys.endpoints(namespace))
            self._client.srem(keys.NAMESPACES, namespace)
            if self._client.zcard(log):  # one was queued in between
                self._client.sadd(keys.NAMESPACES, namespace)

    def _excess(self, namespace: str) -> int:
        too_many = int(self._client.zcard(keys.log(namespace))) - MAX_DELIVERIES
        if too_many > 0:
            return too_many
        return 1 if int(self._client.get(keys.num_bytes(namespace)) or 0) > MAX_BYTES else 0

    def _remove(self, namespace: str, ids: Iterable[bytes]) -> None:
        for delivery_id in ids:
            name = delivery_id.decode()
            num_bytes, lane = self._client.hmget(keys.delivery(name), ["num_bytes", "lane"])
            with self._client.pipeline(transaction=True) as pipe:
                for state in (None, *DELIVERY_STATES):
                    pipe.zrem(keys.log(namespace, state), name)
                pipe.delete(keys.delivery(name))
                if lane is not None:
                    pipe.zrem(keys.lane(lane.decode()), name)
                    pipe.decrby(keys.num_bytes(namespace), int(num_bytes))
                pipe.execute()

    def _read(self, ids: Iterable[bytes]) -> list[Delivery]:
        names = [delivery_id.decode() for delivery_id in ids]
        with store_errors(), self._client.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.hgetall(keys.delivery(name))
            parsed = [parse_delivery(name, fields) for name, fields in zip(names, pipe.execute(), strict=True)]
        return [delivery for delivery in parsed if delivery is not None]
