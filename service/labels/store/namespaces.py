"""The namespaces of a store, those with at least one write. Every function raises StoreUnavailable."""

from __future__ import annotations

import redis

from vidlex.service.labels.store.connection import store_errors
from vidlex.service.labels.store.redis_keys import CHANGES_KEY_PATTERN, Keys, parse_key
from vidlex.service.labels.store.redis_types import typed_client

_SCAN_COUNT = 1000


def list_namespaces(client: redis.Redis) -> list[str]:
    with store_errors():
        keys = [parse_key(key) for key in typed_client(client).scan_iter(match=CHANGES_KEY_PATTERN, count=_SCAN_COUNT)]
    return sorted({key.namespace for key in keys if key is not None})


def count_labels(client: redis.Redis, namespace: str = "default") -> int:
    with store_errors():
        return typed_client(client).zcard(Keys(namespace).order)


def count_vectors(client: redis.Redis, namespace: str = "default") -> dict[str, int]:
    commands, keys = typed_client(client), Keys(namespace)
    with store_errors():
        fingerprints = [key.decode() for key in commands.hgetall(keys.generations)]
        return {f: commands.hlen(keys.vectors(f)) for f in sorted(fingerprints)}
