"""Deliveries that are due, each taken by one process at a time.

Every lane has its turn: after one delivery was taken from it, it stands behind all other lanes that wait. What is taken
is due again when its lease ends, so that the delivery of a process that was killed is sent again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import redis

from vidlex.service.labels.store.clock import store_now_ms
from vidlex.service.labels.store.connection import store_errors
from vidlex.service.labels.store.redis_keys import random_token
from vidlex.service.labels.store.redis_types import Guard
from vidlex.service.webhooks import keys
from vidlex.service.webhooks.endpoints import Endpoints
from vidlex.service.webhooks.records import Attempt, Delivery, DeliveryState, changed_fields, parse_delivery

_LANES_AT_ONCE = 256
_MAX_LANES = 4096  # that are looked at in one go; the next one continues
_MAX_CONFLICTS = 10


@dataclass(frozen=True)
class TakenDelivery:
    delivery: Delivery
    token: str


class DueDeliveries:
    """Thread-safe. Every method raises StoreUnavailable."""

    def __init__(self, client: redis.Redis, endpoints: Endpoints, guard: Guard) -> None:
        self._client: Any = client
        self._endpoints = endpoints
        self._guard = guard
        self._start = 0

    def lanes(self) -> Iterator[str]:
        """Those with something due, the longest waiting first."""
        with store_errors():
            now = store_now_ms(self._client)
        start = self._start
        for offset in range(start, start + _MAX_LANES, _LANES_AT_ONCE):
            with store_errors():
                found = self._client.zrangebyscore(keys.LANES, 0, now, start=offset, num=_LANES_AT_ONCE)
            self._start = 0 if len(found) < _LANES_AT_ONCE else offset + _LANES_AT_ONCE
            for lane in found:
                yield lane.decode()
            if not self._start:
                return

    def restart(self) -> None:
        """The next ``lanes`` begins with the longest waiting one."""
        self._start = 0

    def take(self, lane: str, lease_ms: int) -> TakenDelivery | None:
        """The one that is due first. None if there is none, or another process is faster."""
        for _ in range(_MAX_CONFLICTS):
            with store_errors(), self._client.pipeline(transaction=True) as pipe:
                try:
                    taken, is_done = self._take(pipe, lane, lease_ms)
                except redis.WatchError:
                    continue
                if is_done:
                    return taken
        return None

    def _take(self, pipe: Any, lane: str, lease_ms: int) -> tuple[TakenDelivery | None, bool]:
        pipe.watch(keys.lane(lane))
        self._guard(pipe)
        now = store_now_ms(pipe)
        waiting = pipe.zrange(keys.lane(lane), 0, 1, withscores=True)
        if not waiting or waiting[0][1] > now:
            pipe.multi()
            if waiting:
                pipe.zadd(keys.LANES, {lane: waiting[0][1]})
            else:
                pipe.zrem(keys.LANES, lane)
            pipe.execute()
            return None, True
        delivery_id = waiting[0][0].decode()
        delivery = parse_delivery(delivery_id, pipe.hgetall(keys.delivery(delivery_id)))
        if delivery is None or delivery.state != "pending":
            pipe.multi()
            pipe.zrem(keys.lane(lane), delivery_id)
            pipe.execute()
            return None, False
        token, lease_until = random_token(), now + lease_ms
        turns = [lease_until] + [max(now, int(score)) for _, score in waiting[1:]]
        pipe.multi()
        pipe.zadd(keys.lane(lane), {delivery_id: lease_until})
        pipe.zadd(keys.LANES, {lane: min(turns)})
        pipe.hset(keys.delivery(delivery_id), "lease", token)
        pipe.execute()
        return TakenDelivery(delivery, token), True

    def record(
        self,
        taken: TakenDelivery,
        attempt: Attempt,
        state: DeliveryState,
        delay_ms: int | None,
        *,
        is_gone: bool = False,
    ) -> bool:
        """What a try has shown; ``delay_ms`` to the next one, if it is ``pending``. ``is_gone``: the URL is disabled.

        False, and nothing is recorded, if the lease was lost.
        """
        delivery = taken.delivery
        has_succeeded = state == "succeeded"

        def changed(now: int) -> Delivery:
            due = now + delay_ms if state == "pending" and delay_ms is not None else None
            attempts = (*delivery.attempts, attempt)
            return replace(delivery, state=state, due_at_ms=due, tries=delivery.tries + 1, attempts=attempts)

        def note(pipe: Any, now: int) -> None:
            self._endpoints.note(
                pipe, delivery.namespace, delivery.url, now, has_succeeded=has_succeeded, is_gone=is_gone
            )

        return self._finish(taken, changed, note)

    def give_back(self, taken: TakenDelivery) -> bool:
        """Due at once, as if it had not been taken."""
        return self._finish(taken, lambda now: replace(taken.delivery, due_at_ms=now), lambda pipe, now: None)

    def _finish(self, taken: TakenDelivery, changed: Any, note: Any) -> bool:
        delivery_id, lane = taken.delivery.id, taken.delivery.lane
        key = keys.delivery(delivery_id)
        for _ in range(_MAX_CONFLICTS):
            with store_errors(), self._client.pipeline(transaction=True) as pipe:
                pipe.watch(key)
                self._guard(pipe)
                if pipe.hget(key, "lease") != taken.token.encode():
                    return False
                now = store_now_ms(pipe)
                delivery: Delivery = changed(now)
                pipe.multi()
                pipe.hset(key, mapping=changed_fields(delivery))
                pipe.hdel(key, "lease")
                if delivery.due_at_ms is None:
                    pipe.zrem(keys.lane(lane), delivery_id)  # a lane that is empty then goes at its next turn
                    pipe.zrem(keys.log(delivery.namespace, "pending"), delivery_id)
                    pipe.zadd(keys.log(delivery.namespace, delivery.state), {delivery_id: 0})
                else:
                    pipe.zadd(keys.lane(lane), {delivery_id: delivery.due_at_ms})
                    pipe.zadd(keys.LANES, {lane: delivery.due_at_ms}, lt=True)
                note(pipe, now)
                try:
                    pipe.execute()
                    return True
                except redis.WatchError:
                    continue
        return False
