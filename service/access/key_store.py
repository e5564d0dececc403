"""API keys in the label store, shared by all replicas.

    vidlex-access:{access}:keys      hash    key id -> JSON record (a digest, never a secret)
    vidlex-access:{access}:used      hash    key id -> last use in Unix ms, rounded down to the minute
    vidlex-access:{access}:revision  string  number of changes; absent if no key was ever created

The braces are a hash tag: in a cluster the three keys share one slot.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import redis
from redis.typing import EncodableT, FieldT

from vidlex.service import audit
from vidlex.service.access.api_keys import KeyRecord, record_from_json
from vidlex.service.errors import LastAdminKey, NotFound
from vidlex.service.labels.store.connection import store_errors
from vidlex.service.labels.store.redis_types import Guard, accept_any, typed_client

KEYS = "vidlex-access:{access}:keys"
USED = "vidlex-access:{access}:used"
REVISION = "vidlex-access:{access}:revision"


class KeyStore:
    """Thread-safe. Every method raises StoreUnavailable if the store does not answer."""

    def __init__(self, client: redis.Redis, *, guard: Guard = accept_any) -> None:
        self._client = client
        self._guard = guard

    def revision(self) -> int:
        with store_errors():
            return _revision_of(self._client.get(REVISION))

    def load(self) -> tuple[int, dict[str, KeyRecord]]:
        with store_errors(), self._client.pipeline(transaction=True) as pipe:
            pipe.get(REVISION)
            pipe.hgetall(KEYS)
            revision, raw = pipe.execute()
        return _revision_of(revision), _records(raw)

    def add(self, record: KeyRecord) -> None:
        with store_errors():
            self._guard(typed_client(self._client))
        with store_errors(), self._client.pipeline(transaction=True) as pipe:
            pipe.hset(KEYS, record.id, record.to_json())
            pipe.incr(REVISION)
            pipe.execute()
        audit.record("key.create", record.id, after=_facts(record), namespace=record.namespace)

    def revoke(self, key_id: str, *, namespace: str | None = None, keep_admin: bool = False) -> None:
        """Revoke a key, with ``namespace`` only if the key is bound to it.

        Raises NotFound without writing: a first revision without keys would lock out every client. Raises LastAdminKey
        with ``keep_admin``, if no other key could create a key again.
        """
        with store_errors(), self._client.pipeline(transaction=True) as pipe:
            while True:
                pipe.watch(KEYS)  # type: ignore[no-untyped-call]  # two administrators may revoke each other
                stored: Any = pipe.hgetall(KEYS)
                records = _records(stored)
                revoked = records.pop(key_id, None)
                if key_id.encode() not in stored or (namespace is not None and _namespace_of(revoked) != namespace):
                    raise NotFound("No API key has this id")
                is_admin = revoked is not None and revoked.can_manage_keys
                if keep_admin and is_admin and not any(record.can_manage_keys for record in records.values()):
                    raise LastAdminKey(
                        "No other key has the scope admin, all namespaces and no expiry; create one before"
                    )
                pipe.multi()
                pipe.hdel(KEYS, key_id)
                pipe.hdel(USED, key_id)
                pipe.incr(REVISION)
                try:
                    pipe.execute()
                    break
                except redis.WatchError:
                    continue
        before, bound = (None, namespace) if revoked is None else (_facts(revoked), revoked.namespace)
        audit.record("key.revoke", key_id, before=before, namespace=bound)

    def list(self) -> list[tuple[KeyRecord, int | None]]:  # with the last use in Unix ms, oldest record first
        with store_errors(), self._client.pipeline(transaction=True) as pipe:
            pipe.hgetall(KEYS)
            pipe.hgetall(USED)
            raw, used = pipe.execute()
        records = sorted(_records(raw).values(), key=lambda record: (record.created_at_ms, record.id))
        return [(record, int(used[record.id.encode()]) if record.id.encode() in used else None) for record in records]

    def note_used(self, used_at_ms: Mapping[str, int]) -> None:
        with store_errors():
            stored = self._client.hmget(KEYS, list(used_at_ms)) if used_at_ms else []  # None for revoked keys
            used: dict[FieldT, EncodableT] = {
                key_id: str(ms) for (key_id, ms), raw in zip(used_at_ms.items(), stored, strict=True) if raw
            }
            if used:
                self._client.hset(USED, mapping=used)


def _facts(record: KeyRecord) -> dict[str, Any]:
    """Without the digest."""
    return {name: value for name, value in vars(record).items() if name != "digest" and value is not None}


def _namespace_of(record: KeyRecord | None) -> str | None:
    return None if record is None else record.namespace


def _revision_of(raw: Any) -> int:
    try:
        return int(raw or 0)
    except ValueError:
        return -1  # damaged: not 0, which would mean that no key was ever created


def _records(raw: Mapping[bytes, bytes | str]) -> dict[str, KeyRecord]:
    records = {}
    for key_id, text in raw.items():
        try:
            record = record_from_json(text)
        except ValueError:
            continue
        if record.id == key_id.decode("ascii", "replace"):
            records[record.id] = record
    return records
