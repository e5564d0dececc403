"""Secrets with which the deliveries of a namespace are signed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import redis

from vidlex.service import audit
from vidlex.service.errors import NotFound, StoreUnavailable, WebhookConflict, WebhookSecretMissing
from vidlex.service.ids import new_id
from vidlex.service.labels.store.clock import store_now_ms
from vidlex.service.labels.store.connection import store_errors
from vidlex.service.labels.store.redis_types import Guard
from vidlex.service.webhooks import keys
from vidlex.service.webhooks.messages import new_secret
from vidlex.service.webhooks.records import SECRET_ID_PREFIX

MAX_SECRETS = 4
_MAX_CONFLICTS = 20


@dataclass(frozen=True)
class WebhookSecret:
    id: str
    text: str
    created_at_ms: int


class WebhookSecrets:
    """They are stored as they are, since signing needs them: who reads the store can sign."""

    def __init__(self, client: redis.Redis, guard: Guard) -> None:
        self._client: Any = client
        self._guard = guard

    def create(self, namespace: str) -> WebhookSecret:
        """Raises WebhookConflict if there are four already."""
        key, secret_id, text = keys.secrets(namespace), new_id(SECRET_ID_PREFIX), new_secret()
        for _ in range(_MAX_CONFLICTS):
            with store_errors(), self._client.pipeline(transaction=True) as pipe:
                pipe.watch(key)
                self._guard(pipe)
                # redis-py reports the lost reply of a transaction that was stored as a conflict, too.
                stored = pipe.hget(key, secret_id)
                if stored is None:
                    if pipe.hlen(key) >= MAX_SECRETS:
                        raise WebhookConflict(f"The namespace has {MAX_SECRETS} webhook secrets; delete one first")
                    stored = json.dumps({"secret": text, "created_at_ms": store_now_ms(pipe)})
                    pipe.multi()
                    pipe.hset(key, secret_id, stored)
                    try:
                        pipe.execute()
                    except redis.WatchError:
                        continue
            audit.record("webhook.secret.create", secret_id, namespace=namespace)
            return WebhookSecret(secret_id, text, json.loads(stored)["created_at_ms"])
        raise StoreUnavailable("The store is too busy", internal="conflicts over webhook secrets")

    def list(self, namespace: str) -> list[WebhookSecret]:
        """Oldest first."""
        with store_errors():
            found: dict[bytes, bytes] = self._client.hgetall(keys.secrets(namespace))
        parsed = [(secret_id.decode(), json.loads(raw)) for secret_id, raw in found.items()]
        return [WebhookSecret(name, item["secret"], item["created_at_ms"]) for name, item in sorted(parsed)]

    def delete(self, namespace: str, secret_id: str) -> None:
        """Raises NotFound."""
        with store_errors():
            self._guard(self._client)
            if not self._client.hdel(keys.secrets(namespace), secret_id):
                raise NotFound("There is no such webhook secret")
        audit.record("webhook.secret.delete", secret_id, namespace=namespace)

    def require(self, namespace: str) -> None:
        """Raises WebhookSecretMissing."""
        with store_errors():
            if not self._client.exists(keys.secrets(namespace)):
                raise WebhookSecretMissing()
