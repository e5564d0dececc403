"""Whether the store is still the one that this service has used.

A store that was emptied, or replaced by an empty one, answers like a new one: without this check API keys would no
longer be required, and writes would be acknowledged into a store that the next start refuses.

STORE_ID_KEY is a random string, made once and lost with the data; REPLACED_KEY is a set of the ids of earlier stores
that an operator has replaced with this one. The data folder remembers the id of every store that it was used with
(``KnownStores``).
"""

from __future__ import annotations

import json
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import redis

from vidlex.service.errors import StoreLost, StoreUnavailable
from vidlex.service.labels.store.connection import StoreReplaced, store_errors
from vidlex.service.labels.store.redis_keys import (
    CHANGES_KEY_PATTERN,
    REPLACED_KEY,
    SCHEMA_VERSION_KEY,
    STORE_ID_KEY,
)
from vidlex.service.labels.store.redis_types import RedisReads, typed_client

SHOWN_ID_CHARS = 8
HOW_TO_RETURN = (
    "start it with its data, or restore a backup; to go on with this store as it is, run `vidlex store accept` and "
    "restart the services"
)


class StoreGuard:
    """Refuses writes to another store than the one that was opened. Thread-safe.

    Before ``store_id`` is set, every store is accepted.
    """

    def __init__(self) -> None:
        self.store_id: bytes | None = None
        self.is_answering = True  # while False, new connections fail at once instead of waiting for a timeout
        self.refusal: StoreUnavailable | None = None  # of writes, for another reason

    @property
    def shown_id(self) -> str:
        return "" if self.store_id is None else self.store_id.decode()[:SHOWN_ID_CHARS]

    def check(self, reads: RedisReads) -> None:
        """For the body of a write, with an own connection. Raises StoreLost, or the refusal."""
        if self.store_id is not None and reads.get(STORE_ID_KEY) != self.store_id:
            raise StoreLost(internal=f"the store has no or another id than {self.store_id.decode()}")
        if self.refusal is not None:
            raise self.refusal

    def on_connect(self, connection: Any) -> None:
        """The handshake of each connection, after a restart or a failover too."""
        if not self.is_answering:
            raise redis.ConnectionError("the store does not answer pings")
        connection.on_connect()
        if self.store_id is not None:
            connection.send_command("GET", STORE_ID_KEY)
            found = connection.read_response()
            if found != self.store_id:
                raise StoreReplaced(f"the store has the id {found!r}, expected {self.store_id!r}")


class KnownStores:
    """The file ``known-stores.json`` of a data folder: ids of stores by their location."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / "known-stores.json"

    def get(self, location: str) -> str | None:
        found = self._read().get(location)
        return found if isinstance(found, str) else None

    def put(self, location: str, store_id: str) -> None:
        """Raises OSError."""
        known = self._read()
        if known.get(location) == store_id:
            return
        temporary = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        try:
            with temporary.open("w", encoding="utf-8") as file:
                json.dump(known | {location: store_id}, file, indent=1, sort_keys=True)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._path)
        except OSError:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise

    def _read(self) -> dict[str, Any]:
        try:
            known = json.loads(self._path.read_bytes())
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}


def location_of(url: str | None) -> str:
    """Where a store is, without its user and password."""
    if url is None:
        return "embedded"
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return f"unix://{parts.path}"
    return f"{parts.scheme}://{parts.hostname or 'localhost'}:{parts.port or 6379}{parts.path.rstrip('/') or '/0'}"


def read_store_id(client: redis.Redis) -> str | None:
    """Raises StoreUnavailable."""
    commands: Any = client
    with store_errors():
        raw: bytes | None = commands.get(STORE_ID_KEY)
    return None if raw is None else raw.decode("ascii", "replace")


def ensure_store_id(client: redis.Redis) -> str:
    """The id, which is made if a migrated store has none. Raises StoreUnavailable."""
    with store_errors():
        client.set(STORE_ID_KEY, secrets.token_hex(16), nx=True)
    found = read_store_id(client)
    if found is None:
        raise StoreUnavailable(internal="the id of the store disappeared")
    return found


def is_expected_store(client: redis.Redis, known: str | None) -> bool:
    """Whether the store is ``known``, or an operator has replaced that one with it, and its data have a schema.

    Raises StoreUnavailable.
    """
    if _has_data_without_schema(client):
        return False
    if known is None or read_store_id(client) == known:
        return True
    with store_errors():
        return bool(client.sismember(REPLACED_KEY, known))


def accept_store(client: redis.Redis, known: str | None) -> None:
    """Go on with this store instead of ``known``; the migrations must follow. Raises StoreUnavailable.

    Data without a schema number, as written to an emptied store, is taken for that of the first schema: all migrations
    after it add what is missing, and nothing else.
    """
    has_no_schema = _has_data_without_schema(client)
    with store_errors():
        if has_no_schema:
            client.set(SCHEMA_VERSION_KEY, 1, nx=True)
        if known is not None:
            client.sadd(REPLACED_KEY, known)


def _has_data_without_schema(client: redis.Redis) -> bool:
    commands = typed_client(client)
    with store_errors():
        if commands.get(SCHEMA_VERSION_KEY) is not None:
            return False
        return next(iter(commands.scan_iter(match=CHANGES_KEY_PATTERN, count=1000)), None) is not None
