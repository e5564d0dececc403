"""API keys in the label store, shared by all replicas.

    vidlex-access:{access}:keys      hash    key id -> JSON record (a digest, never a secret)
    vidlex-access:{access}:used      hash    key id -> last use in Unix ms, rounded down to the minute
    vidlex-access:{access}:revision  string  number of changes; absent if no key was ever created

The braces are a hash tag: in a cluster the three keys share one slot.
"""

from __future__ import annotations

from collections.abc import Mapping

import redis
from redis.typing import EncodableT, FieldT

from vidlex.service.access.api_keys import KeyRecord, record_from_json
from vidlex.service.errors import NotFound
from vidlex.service.labels.store.connection import store_errors

KEYS = "vidlex-access:{access}:keys"
USED = "vidlex-access:{access}:used"
REVISION = "vidlex-access:{access}:revision"


class KeyStore:
    """Thread-safe. Every method raises StoreUnavailable if the store does not answer."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client

    def revision(self) -> int:
        with store_errors():
            return int(self._client.get(REVISION) or 0)

    def load(self) -> tuple[int, dict[str, KeyRecord]]:
        with store_errors(), self._client.pipeline(transaction=True) as pipe:
            pipe.get(REVISION)
            pipe.hgetall(KEYS)
            revision, raw = pipe.execute()
        return int(revision or 0), _records(raw)

    def add(self, record: KeyRecord) -> None:
        with store_errors(), self._client.pipeline(transaction=True) as pipe:
            pipe.hset(KEYS, record.id, record.to_json())
            pipe.incr(REVISION)
            pipe.execute()

    def revoke(self, key_id: str, *, namespace: str | None = None) -> None:
        """Revoke a key, with ``namespace`` only if the key is bound to it.

        Raises NotFound without writing: a first revision without keys would lock out every client.
        """
        with store_errors():
            num_removed = 0
            raw = self._client.hget(KEYS, key_id)
            if raw is not None and namespace is not None:
                record = _records({key_id.encode(): raw}).get(key_id)
                raw = raw if record is not None and record.namespace == namespace else None
            if raw is not None:
                with self._client.pipeline(transaction=True) as pipe:
                    pipe.hdel(KEYS, key_id)
                    pipe.hdel(USED, key_id)
                    pipe.incr(REVISION)
                    num_removed, *_ = pipe.execute()
        if not num_removed:
            raise NotFound("No API key has this id")

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
