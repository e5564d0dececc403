"""Migrates a store to the newest schema. Imports no other code of the project, so migrations never change with it.

Migrations are the modules ``m001_...``, ``m002_...`` of this package, numbered without gaps and frozen once released.
Each has ``NUMBER`` and ``apply(client)``; one that changes data has ``plan(client)``, which counts the changes.
``apply`` may be interrupted before its number is recorded, so it must be safe to repeat. A lock, which expires and is
renewed by a thread, ensures that one process migrates at a time; only its holder records a number.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import redis

VERSION_KEY = "vidlex-schema:{schema}:version"
HISTORY_KEY = "vidlex-schema:{schema}:history"
LOCK_KEY = "vidlex-schema:{schema}:lock"
LOCK_SECONDS = 30.0
_POLL_SECONDS = 0.1
_RECORD_TRIES = 10
_MODULE = re.compile(r"m(?P<number>\d{3})_\w+")


class MigrationError(RuntimeError):
    """The store was not migrated. Migrations recorded earlier remain."""


class SchemaTooNew(MigrationError):
    """The store was written by a newer version."""


class MigrationLocked(MigrationError):
    """Another process held the lock until the timeout, or took it over."""


@dataclass(frozen=True)
class Migration:
    number: int
    name: str
    apply: Callable[[Any], None]
    plan: Callable[[Any], dict[str, int]] | None = None


def find_migrations() -> tuple[Migration, ...]:
    found = []
    for module_info in pkgutil.iter_modules(importlib.import_module(__package__).__path__):
        match = _MODULE.fullmatch(module_info.name)
        if match is not None:
            module = importlib.import_module(f"{__package__}.{module_info.name}")
            if int(match["number"]) != module.NUMBER:
                raise MigrationError(f"{module_info.name} has NUMBER {module.NUMBER}")
            found.append(Migration(module.NUMBER, module_info.name, module.apply, getattr(module, "plan", None)))
    found.sort(key=lambda migration: migration.number)
    if [m.number for m in found] != list(range(1, len(found) + 1)):
        raise MigrationError(f"migrations must be numbered from 1 without gaps: {[m.name for m in found]}")
    return tuple(found)


def schema_version(client: redis.Redis) -> int:  # 0 if never migrated
    raw: Any = client.get(VERSION_KEY)
    return 0 if raw is None else int(raw)


def migrate(
    client: redis.Redis,
    migrations: tuple[Migration, ...] | None = None,
    *,
    lock_timeout_seconds: float = 60.0,
    lock_seconds: float = LOCK_SECONDS,
) -> list[str]:
    """Apply the missing migrations in order and return their names.

    Raises SchemaTooNew, MigrationLocked, MigrationError (a migration failed), redis.RedisError.
    """
    known = find_migrations() if migrations is None else migrations
    if _check(client, known) == len(known):
        return []
    applied = []
    with _lock(client, lock_timeout_seconds, lock_seconds) as token:
        for migration in known[_check(client, known) :]:
            try:
                migration.apply(client)
            except redis.RedisError:
                raise
            except Exception as error:
                raise MigrationError(f"{migration.name} failed: {error}") from error
            _record(client, migration, token)
            applied.append(migration.name)
    return applied


def pending(client: redis.Redis, migrations: tuple[Migration, ...] | None = None) -> dict[str, dict[str, int]]:
    """The missing migrations, with the counts of each one's changes. Writes nothing.

    Raises SchemaTooNew, redis.RedisError.
    """
    known = find_migrations() if migrations is None else migrations
    missing = known[_check(client, known) :]
    return {migration.name: {} if migration.plan is None else migration.plan(client) for migration in missing}


def _check(client: redis.Redis, known: tuple[Migration, ...]) -> int:
    version = schema_version(client)
    if version > len(known):
        raise SchemaTooNew(f"the store has schema {version}, this version supports {len(known)}: upgrade the service")
    return version


def _record(client: redis.Redis, migration: Migration, token: str) -> None:
    entry = json.dumps({"name": migration.name, "applied_at_ms": time.time_ns() // 1_000_000})
    for _ in range(_RECORD_TRIES):
        with client.pipeline(transaction=True) as any_pipe:
            pipe: Any = any_pipe
            pipe.watch(LOCK_KEY)
            if not _is_token(pipe.get(LOCK_KEY), token):
                raise MigrationLocked(f"another process took the lock during {migration.name}")
            pipe.multi()
            pipe.set(VERSION_KEY, migration.number)
            pipe.hset(HISTORY_KEY, str(migration.number), entry)
            try:
                pipe.execute()
                return
            except redis.WatchError:
                continue  # probably the renewing thread changed the lock
    raise MigrationLocked(f"the lock changed at every attempt to record {migration.name}")


@contextmanager
def _lock(client: redis.Redis, timeout_seconds: float, lock_seconds: float) -> Iterator[str]:
    token = secrets.token_hex(16)
    lock_ms = int(lock_seconds * 1000)
    deadline = time.monotonic() + timeout_seconds
    while not client.set(LOCK_KEY, token, nx=True, px=lock_ms):
        if time.monotonic() > deadline:
            raise MigrationLocked(f"another process has been migrating the store for {timeout_seconds} s")
        time.sleep(_POLL_SECONDS)
    done = threading.Event()
    renewer = threading.Thread(target=_renew_lock, args=(client, token, lock_ms, done), daemon=True)
    renewer.start()
    try:
        yield token
    finally:
        done.set()
        renewer.join()
        _write_if_locked(client, token, lambda pipe: pipe.delete(LOCK_KEY))


def _renew_lock(client: redis.Redis, token: str, lock_ms: int, done: threading.Event) -> None:
    while not done.wait(lock_ms / 3000):  # three times per lifetime
        if not _write_if_locked(client, token, lambda pipe: pipe.pexpire(LOCK_KEY, lock_ms)):
            return


def _write_if_locked(client: redis.Redis, token: str, queue: Callable[[Any], object]) -> bool:
    """Send writes that fail without the lock. False if it was lost or the store is unavailable."""
    try:
        with client.pipeline(transaction=True) as any_pipe:
            pipe: Any = any_pipe
            pipe.watch(LOCK_KEY)
            if not _is_token(pipe.get(LOCK_KEY), token):
                return False
            pipe.multi()
            queue(pipe)
            pipe.execute()
            return True
    except redis.RedisError:
        return False


def _is_token(raw: bytes | str | None, token: str) -> bool:
    return (raw.decode() if isinstance(raw, bytes) else raw) == token
