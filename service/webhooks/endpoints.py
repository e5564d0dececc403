"""URLs to which deliveries are sent."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import redis

from vidlex.service import audit
from vidlex.service.errors import NotFound
from vidlex.service.labels.store.connection import store_errors
from vidlex.service.labels.store.redis_types import Guard
from vidlex.service.webhooks import keys


@dataclass(frozen=True)
class Endpoint:
    """A URL to which deliveries were sent, or that is disabled."""

    url: str
    last_attempt_at_ms: int | None
    last_success_at_ms: int | None
    num_failures: int  # since the last success
    disabled_at_ms: int | None


class Endpoints:
    """URLs of a namespace, by what became of their deliveries. The counts are not exact under concurrency."""

    MAX = 1000

    def __init__(self, client: redis.Redis, guard: Guard) -> None:
        self._client: Any = client
        self._guard = guard

    def list(self, namespace: str) -> list[Endpoint]:
        """By URL."""
        with store_errors():
            known = self._client.hgetall(keys.endpoints(namespace))
            disabled = self._client.hgetall(keys.disabled(namespace))
        found = []
        for url in sorted({*known, *disabled}):
            item = json.loads(known.get(url, b"{}"))
            at = json.loads(disabled[url])["at_ms"] if url in disabled else None
            last, success, failures = item.get("last"), item.get("success"), item.get("failures", 0)
            found.append(Endpoint(url.decode(), last, success, failures, at))
        return found

    def is_disabled(self, namespace: str, url: str) -> bool:
        with store_errors():
            return bool(self._client.hexists(keys.disabled(namespace), url))

    def enable(self, namespace: str, url: str) -> None:
        """Raises NotFound if it is not disabled."""
        with store_errors():
            self._guard(self._client)
            if not self._client.hdel(keys.disabled(namespace), url):
                raise NotFound("There is no disabled endpoint with this URL")
        audit.record("webhook.endpoint.enable", url.partition("?")[0], namespace=namespace)

    def note(self, pipe: Any, namespace: str, url: str, at_ms: int, *, has_succeeded: bool, is_gone: bool) -> None:
        """Adds to a transaction what a try has shown."""
        known = self._client.hget(keys.endpoints(namespace), url)
        if known is not None or self._client.hlen(keys.endpoints(namespace)) < self.MAX:
            item = json.loads(known or b"{}") | {"last": at_ms}
            item |= {"success": at_ms, "failures": 0} if has_succeeded else {"failures": item.get("failures", 0) + 1}
            pipe.hset(keys.endpoints(namespace), url, json.dumps(item))
        if is_gone and self._client.hlen(keys.disabled(namespace)) < self.MAX:
            pipe.hset(keys.disabled(namespace), url, json.dumps({"at_ms": at_ms}))

    def forget_old(self, namespace: str, before_ms: int) -> None:
        with store_errors():
            for url, raw in self._client.hgetall(keys.endpoints(namespace)).items():
                if json.loads(raw)["last"] < before_ms:
                    self._client.hdel(keys.endpoints(namespace), url)
