"""API keys in the label store, so that every replica has the same ones.

    vidlex-access:{access}:keys      hash    key id -> JSON record (a digest, never a secret)
    vidlex-access:{access}:used      hash    key id -> when it was last used, ms, to the minute
    vidlex-access:{access}:revision  string  counts the changes; its presence says that keys have been in use here

The braces are a hash tag of their own: in a cluster the three lie together, apart from every namespace.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import redis

from vidlex.service.access.api_keys import KeyRecord, record_from_json
from vidlex.service.errors import NotFound
from vidlex.service.labels.store.connection import store_errors

KEYS = "vidlex-access:{access}:keys"
USED = "vidlex-access:{access}:used"
REVISION = "vidlex-access:{access}:revision"


class KeyStore:
    """Thread-safe. Every method raises StoreUnavailable when the store does not answer."""

    def __init__(self, client: redis.Redis) -> None:
        self._client: Any = client

    def revision(self) -> int:
        """0 where no key was ever made."""
        with store_errors():
            return int(self._client.get(REVISION) or 0)

    def load(self) -> tuple[int, dict[str, KeyRecord]]:
        """The revision, and all keys as they are then or later. Records that cannot be read are left out: no entry."""
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

    def revoke(self, key_id: str) -> None:
        """Raises NotFound, having changed nothing: a revision where no key was ever made would lock everybody out."""
        with store_errors():
            num_removed = 0
            if self._client.hexists(KEYS, key_id):
                with self._client.pipeline(transaction=True) as pipe:
                    pipe.hdel(KEYS, key_id)
                    pipe.hdel(USED, key_id)
                    pipe.incr(REVISION)
                    num_removed, *_ = pipe.execute()
        if not num_removed:
            raise NotFound("There is no such API key")

    def list(self) -> list[tuple[KeyRecord, int | None]]:
        """Records with when each was last used (ms), oldest first."""
        with store_errors(), self._client.pipeline(transaction=True) as pipe:
            pipe.hgetall(KEYS)
            pipe.hgetall(USED)
            raw, used = pipe.execute()
        records = sorted(_records(raw).values(), key=lambda record: (record.created_at_ms, record.id))
        return [(record, int(used[record.id.encode()]) if record.id.encode() in used else None) for record in records]

    def note_used(self, used_at_ms: Mapping[str, int]) -> None:
        """Only of keys that are still there, so that a revoked one leaves nothing behind for long."""
        with store_errors():
            there = self._client.hmget(KEYS, list(used_at_ms)) if used_at_ms else []
            kept = {key_id: str(ms) for (key_id, ms), raw in zip(used_at_ms.items(), there, strict=True) if raw}
            if kept:
                self._client.hset(USED, mapping=kept)


def _records(raw: Mapping[bytes, bytes]) -> dict[str, KeyRecord]:
    found = {}
    for key_id, text in raw.items():
        try:
            record = record_from_json(text)
        except ValueError:
            continue
        if record.id == key_id.decode("ascii", "replace"):
            found[record.id] = record
    return found
