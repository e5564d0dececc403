"""Restores a backup into a store.

1. The whole file is read and checked; nothing is written.
2. Everything is written under another prefix, checked and counted. The store is as before.
3. Keys and namespaces take their places, each in one transaction.

From 2 on the store says that it is being restored (RESTORE_STATE_KEY), and no service starts with it. A restore that
was killed is repeated, or abandoned while it was in 2.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import BinaryIO, Literal

import redis

from vidlex.migrations.runner import MigrationError, migrate
from vidlex.service.access.key_store import KEYS, REVISION, USED
from vidlex.service.backup.entries import (
    AccessEntry,
    AgainEntry,
    HeaderEntry,
    KeyEntry,
    LabelEntry,
    ModelEntry,
    NamespaceEnd,
    NamespaceEntry,
    RemovedEntry,
    RequestEntry,
    read_entries,
)
from vidlex.service.backup.lines import BackupError
from vidlex.service.backup.staging import StagedNamespace, delete_keys, delete_matching, matching
from vidlex.service.labels.store.connection import store_errors
from vidlex.service.labels.store.identity import accept_store
from vidlex.service.labels.store.redis_keys import (
    MODEL_POINTER_KEY,
    PREFIX,
    REPLACED_KEY,
    RESTORE_LOCK_KEY,
    RESTORE_STATE_KEY,
    STAGING_PREFIX,
    STORE_ID_KEY,
    parse_key,
    random_token,
)
from vidlex.service.labels.store.redis_types import typed_client

_LOCK_MS = 15_000
_RENEW_SECONDS = 2.0
_POLL_SECONDS = 0.2
_MAX_KEYS = 100_000

Phase = Literal["staging", "publishing"]


@dataclass
class Content:
    """Of a backup. ``notes`` are lines about what the service will repair by itself."""

    labels: dict[str, int] = field(default_factory=dict)  # by namespace
    num_keys: int = 0
    has_model: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def num_labels(self) -> int:
        return sum(self.labels.values())


def check_file(file: BinaryIO) -> Content:
    """Read the whole file from its start. Raises BackupError, OSError."""
    file.seek(0)
    content = Content()
    name = ""
    for entry in read_entries(file):
        if isinstance(entry, NamespaceEntry):
            name = entry.name
        elif isinstance(entry, NamespaceEnd):
            content.labels[name] = entry.num_labels
        elif isinstance(entry, KeyEntry):
            content.num_keys += 1
        elif isinstance(entry, ModelEntry):
            content.has_model = True
    if content.num_keys > _MAX_KEYS:
        raise BackupError(f"the backup has more than {_MAX_KEYS} API keys")
    return content


def interrupted_restore(client: redis.Redis) -> Phase | None:
    with store_errors():
        raw = typed_client(client).get(RESTORE_STATE_KEY)
    if raw is None:
        return None
    try:
        return "staging" if json.loads(raw)["phase"] == "staging" else "publishing"
    except (ValueError, KeyError, TypeError):
        return "publishing"


def restore(
    client: redis.Redis, file: BinaryIO, *, force: bool = False, on_labels: Callable[[int], object] = lambda _: None
) -> Content:
    """Raises BackupError, StoreUnavailable, OSError. After a failure in step 2 the store is as before."""
    content = check_file(file)
    with store_errors(), _Lock(client) as lock:
        phase = interrupted_restore(client)
        replace = force or phase == "publishing"
        if not replace and not _is_empty(client):
            raise BackupError("the store is not empty; --force replaces everything in it")
        accept_store(client, None)  # with data but no schema, as in a store that was emptied under a running service
        try:
            migrate(client)
        except MigrationError as error:
            raise BackupError(f"the store cannot be prepared: {error}") from None
        _Restore(client, file, content, lock, on_labels).run(replace=replace, keep_phase=phase == "publishing")
    return content


def abandon(client: redis.Redis) -> None:
    """Leave the store as it was before a restore that was still staging. Raises BackupError, StoreUnavailable."""
    with store_errors(), _Lock(client):
        phase = interrupted_restore(client)
        if phase is None:
            raise BackupError("no restore was interrupted")
        if phase == "publishing":
            raise BackupError("the restore had begun to replace the store's content; run it again")
        delete_matching(typed_client(client), f"{STAGING_PREFIX}:*")
        typed_client(client).delete(RESTORE_STATE_KEY)


def _is_empty(client: redis.Redis) -> bool:
    commands = typed_client(client)
    if any(commands.exists(key) for key in (KEYS, REVISION, MODEL_POINTER_KEY)):
        return False
    return next(matching(commands, f"{PREFIX}:{{*"), None) is None


class _Lock:
    """One restore at a time. A killed one's lock expires within seconds, which the next one waits for."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = typed_client(client)
        self._token = random_token()
        self._renewed_at = 0.0

    def __enter__(self) -> _Lock:
        deadline = time.monotonic() + 2 * _LOCK_MS / 1000
        while not self._client.set(RESTORE_LOCK_KEY, self._token, nx=True, px=_LOCK_MS):
            if time.monotonic() > deadline:
                raise BackupError("another restore of this store is in progress")
            time.sleep(_POLL_SECONDS)
        self._renewed_at = time.monotonic()
        return self

    def renew(self) -> None:
        if time.monotonic() - self._renewed_at < _RENEW_SECONDS:
            return
        if self._client.get(RESTORE_LOCK_KEY) != self._token.encode():
            raise BackupError("the restore took too long between two steps, and lost its lock; run it again")
        self._client.set(RESTORE_LOCK_KEY, self._token, px=_LOCK_MS)
        self._renewed_at = time.monotonic()

    def __exit__(self, *_: object) -> None:
        if self._client.get(RESTORE_LOCK_KEY) == self._token.encode():
            self._client.delete(RESTORE_LOCK_KEY)


class _Restore:
    def __init__(
        self, client: redis.Redis, file: BinaryIO, content: Content, lock: _Lock, on_labels: Callable[[int], object]
    ) -> None:
        self._client = client
        self._commands = typed_client(client)
        self._file = file
        self._content = content
        self._lock = lock
        self._on_labels = on_labels
        self._store_ids: tuple[str, ...] = ()
        self._access = AccessEntry(0)
        self._keys: list[KeyEntry] = []
        self._model: ModelEntry | None = None
        self._namespaces: list[StagedNamespace] = []

    def run(self, *, replace: bool, keep_phase: bool) -> None:
        if not keep_phase:
            self._set_phase("staging")
        try:
            delete_matching(self._commands, f"{STAGING_PREFIX}:*")
            self._stage()
        except redis.RedisError:
            raise  # the store cannot be cleaned up
        except (Exception, KeyboardInterrupt):
            delete_matching(self._commands, f"{STAGING_PREFIX}:*")
            if not keep_phase:
                self._commands.delete(RESTORE_STATE_KEY)
            raise
        self._set_phase("publishing")
        self._publish_access()
        for namespace in self._namespaces:
            namespace.publish(replace=replace)
            self._lock.renew()
        if self._model is not None:
            self._commands.set(MODEL_POINTER_KEY, json.dumps(asdict(self._model.pointer)))
        elif replace:
            self._commands.delete(MODEL_POINTER_KEY)
        if replace:
            self._delete_other_namespaces()
        self._take_over_identity()
        self._commands.delete(RESTORE_STATE_KEY)

    def _set_phase(self, phase: Phase) -> None:
        state = {"phase": phase, "started_at_ms": time.time_ns() // 1_000_000}
        self._commands.set(RESTORE_STATE_KEY, json.dumps(state))

    def _stage(self) -> None:
        self._file.seek(0)
        staged: StagedNamespace | None = None
        for entry in read_entries(self._file):
            if isinstance(entry, HeaderEntry):
                self._store_ids = entry.store_ids
            elif isinstance(entry, AccessEntry):
                self._access = entry
            elif isinstance(entry, KeyEntry):
                self._keys.append(entry)
            elif isinstance(entry, ModelEntry):
                self._model = entry
            elif isinstance(entry, NamespaceEntry):
                staged = StagedNamespace(self._client, entry.name, self._lock.renew)
                self._namespaces.append(staged)
            else:
                assert staged is not None  # read_entries checks the order
                self._stage_entry(staged, entry)

    def _stage_entry(
        self,
        staged: StagedNamespace,
        entry: LabelEntry | RemovedEntry | RequestEntry | AgainEntry | NamespaceEnd,
    ) -> None:
        if isinstance(entry, LabelEntry):
            staged.add(entry)
            self._on_labels(1)
        elif isinstance(entry, RemovedEntry):
            staged.remove(entry.ids)
        elif isinstance(entry, RequestEntry):
            staged.add_request(entry)
        elif isinstance(entry, AgainEntry):
            staged.clear()
        else:
            self._content.notes += staged.finish(entry)

    def _publish_access(self) -> None:
        # Replicas reload keys when the revision changes. It never returns to "no key was ever created" where there were
        # keys, which would open the service to everyone.
        newest = max(self._access.revision, int(self._commands.get(REVISION) or 0))
        with self._commands.pipeline(transaction=True) as pipe:
            pipe.delete(KEYS, USED)
            for key in self._keys:
                pipe.hset(KEYS, key.record.id, key.record.to_json())
                if key.used_at_ms is not None:
                    pipe.hset(USED, key.record.id, str(key.used_at_ms))
            if newest or self._keys:
                pipe.set(REVISION, newest + 1)
            pipe.execute()

    def _take_over_identity(self) -> None:
        # Services that know the store of the backup accept this one: at once if it has no id of its own.
        if self._store_ids:
            self._commands.set(STORE_ID_KEY, self._store_ids[0], nx=True)
            self._client.sadd(REPLACED_KEY, *self._store_ids)

    def _delete_other_namespaces(self) -> None:
        wanted = {namespace.name for namespace in self._namespaces}
        for keys in matching(self._commands, f"{PREFIX}:{{*"):
            delete_keys(self._commands, [key for key in keys if _namespace_of(key) not in wanted])
            self._lock.renew()


def _namespace_of(key: bytes) -> str | None:
    parsed = parse_key(key)
    return None if parsed is None else parsed.namespace
