"""What is stored beside the labels of one namespace: which model serves, and which namespaces there are."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import redis

from vidlex.service.labels.store.connection import store_errors
from vidlex.service.labels.store.redis_keys import ALL_CHANGES, MODEL_POINTER_KEY, Keys, parse_key


@dataclass(frozen=True)
class ModelName:
    """``spec`` is what loads it, ``id`` what people call it, ``fingerprint`` what its vectors carry."""

    spec: str
    id: str
    fingerprint: str


@dataclass(frozen=True)
class Pointer:
    """Which models the replicas load, and which one of them serves.

    The rule of who wins: a replica obeys a pointer that was set while its own VIDLEX_MODEL was configured, and ignores
    any other. So what was activated stays through restarts, and an operator who edits VIDLEX_MODEL wins over an older
    pointer; the first change that is made then replaces it.
    """

    configured: str
    """VIDLEX_MODEL of the replica that set it."""
    served: ModelName
    previous: ModelName | None = None
    """Served before: stays loaded, so that a rollback is immediate."""
    prepared: ModelName | None = None
    """Loaded beside, its labels being encoded; an activation makes it the served one."""

    def rules(self, configured: str) -> bool:
        """Whether a replica with this VIDLEX_MODEL obeys."""
        return self.configured == configured

    def names(self) -> list[ModelName]:
        return [name for name in (self.served, self.previous, self.prepared) if name is not None]


class Catalogue:
    """Thread-safe; every method raises StoreUnavailable when the store does not answer."""

    def __init__(self, client: redis.Redis) -> None:
        self._client: Any = client

    def pointer(self) -> Pointer | None:
        with store_errors():
            return _parse(self._client.get(MODEL_POINTER_KEY))

    def exchange(self, expected: Pointer | None, new: Pointer) -> bool:
        """Store ``new`` if ``expected`` still stands, in one atomic step; else False and nothing is changed."""
        with store_errors(), self._client.pipeline(transaction=True) as pipe:
            pipe.watch(MODEL_POINTER_KEY)
            if _parse(pipe.get(MODEL_POINTER_KEY)) != expected:
                return False
            pipe.multi()
            pipe.set(MODEL_POINTER_KEY, json.dumps(asdict(new)))
            try:
                pipe.execute()
            except redis.WatchError:
                return False
            return True

    def namespaces(self) -> list[str]:
        """Those that were ever written to, sorted."""
        with store_errors():
            keys = [parse_key(key) for key in self._client.scan_iter(match=ALL_CHANGES, count=1000)]
        return sorted({key.namespace for key in keys if key is not None})

    def count_labels(self, namespace: str) -> int:
        with store_errors():
            return int(self._client.zcard(Keys(namespace).order))

    def count_vectors(self, namespace: str) -> dict[str, int]:
        """Encoder fingerprint to the number of labels that have its vector."""
        keys = Keys(namespace)
        with store_errors():
            fingerprints = [key.decode() for key in self._client.hgetall(keys.generations)]
            return {f: int(self._client.hlen(keys.vectors(f))) for f in sorted(fingerprints)}


def _parse(raw: bytes | None) -> Pointer | None:
    if raw is None:
        return None
    data = json.loads(raw)
    names = {role: ModelName(**data[role]) if data[role] else None for role in ("previous", "prepared")}
    return Pointer(data["configured"], ModelName(**data["served"]), **names)
