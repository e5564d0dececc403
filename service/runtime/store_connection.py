"""The connection to the label store: opened, migrated and monitored; one LabelStore per namespace."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import redis
import structlog

from vidlex.migrations.runner import migrate
from vidlex.service.errors import StoreLost, StoreUnavailable, VolatileStore
from vidlex.service.labels.embedded.direct import joined_store
from vidlex.service.labels.embedded.server import EmbeddedStore
from vidlex.service.labels.store.connection import connect_socket, connect_url, store_errors
from vidlex.service.labels.store.durability import Durability, check_durability, probe_write
from vidlex.service.labels.store.identity import (
    HOW_TO_RETURN,
    KnownStores,
    StoreGuard,
    ensure_store_id,
    is_expected_store,
    location_of,
)
from vidlex.service.labels.store.label_reader import RESTORING, SCHEMA_VERSION
from vidlex.service.labels.store.label_store import LabelStore
from vidlex.service.labels.store.redis_keys import RESTORE_STATE_KEY, SCHEMA_VERSION_KEY, STORE_ID_KEY
from vidlex.service.settings import Settings

ResultT = TypeVar("ResultT")

_log = structlog.get_logger("vidlex.runtime")

PING_INTERVAL_SECONDS = 0.5
# Without a reply to a ping for this long the store counts as unavailable, even if no ping has failed.
PING_TIMEOUT_SECONDS = 3.0
_PING_SOCKET_SECONDS = 2.0
_CHECK_WRITES_SECONDS = 5.0
_MIN_RETRY_SECONDS = 0.2
_MAX_RETRY_SECONDS = 5.0
_NO_ANSWER = "does not answer"


class StartCancelled(Exception):
    """The service is being stopped while it starts."""


class StoreConnection:
    """Call ``open`` first and ``close`` last. Thread-safe.

    ``joins``: the embedded store is that of a service which runs on the same data folder, now or later.
    """

    def __init__(self, settings: Settings, stopping: threading.Event, *, joins: bool = False) -> None:
        self._settings = settings
        self._joins = joins
        self._stopping = stopping
        self._embedded: EmbeddedStore | None = None
        self._client: redis.Redis | None = None
        self._ping_client: redis.Redis | None = None
        self.guard = StoreGuard()
        # Weak, because clients may request any number of namespaces.
        self._stores: WeakValueDictionary[str, LabelStore] = WeakValueDictionary()
        self._lock = threading.Lock()
        self._replied_at = -PING_TIMEOUT_SECONDS
        self._problem = _NO_ANSWER
        self.is_schema_checked = False

    def open(self) -> None:
        """Raises StartCancelled, or any error that waiting cannot solve: VolatileStore, StoreLost."""
        if self._settings.redis_url is None and not self._joins:
            self._embedded = EmbeddedStore(self._settings.data_dir)
            self._embedded.start()
        self._client = self._connect(on_connect=self.guard.on_connect)
        self._ping_client = self._connect(timeout_seconds=_PING_SOCKET_SECONDS)
        store = self.store(self._settings.namespace)
        self._refuse_volatile(self.retry_while_unavailable(lambda: check_durability(self.client)))
        self._identify()
        self.retry_while_unavailable(store.check_schema)
        self.is_schema_checked = True
        threading.Thread(target=self._ping_forever, name="vidlex-ping", daemon=True).start()

    def close(self) -> None:
        for client in (self._client, self._ping_client):
            if client is not None:
                client.close()
        if self._embedded is not None:
            self._embedded.stop()

    @property
    def client(self) -> redis.Redis:
        assert self._client is not None, "call open() first"
        return self._client

    def store(self, namespace: str) -> LabelStore:
        """The one LabelStore of a namespace, which serializes its writes. Does no I/O. Raises ValueError."""
        with self._lock:
            store = self._stores.get(namespace)
            if store is None:
                store = self._stores[namespace] = LabelStore(
                    self.client,
                    namespace,
                    max_labels=self._settings.max_labels,
                    max_bytes=self._settings.max_namespace_bytes,
                    guard=self.guard.check,
                )
            return store

    @property
    def is_available(self) -> bool:
        return not self.problem

    @property
    def problem(self) -> str:
        """Why the store cannot be used, for /readyz; empty if it can. Names no address or path."""
        problem = self._problem
        if not problem and time.monotonic() - self._replied_at >= PING_TIMEOUT_SECONDS:
            problem = _NO_ANSWER
        if problem == _NO_ANSWER and self._embedded is not None and self._embedded.disk_is_full:
            return "does not answer: its disk is full"
        return problem

    def retry_while_unavailable(self, action: Callable[[], ResultT]) -> ResultT:
        pause_seconds = _MIN_RETRY_SECONDS
        while True:
            try:
                return action()
            except StoreUnavailable as error:
                self._problem = _described(error)
                _log.warning("waiting_for_store", detail=str(error), internal=error.internal)
            if self._stopping.wait(pause_seconds):
                raise StartCancelled
            pause_seconds = min(_MAX_RETRY_SECONDS, pause_seconds * 2)

    # -- opening -----------------------------------------------------------------------------------------------------

    def _connect(self, **options: Any) -> redis.Redis:
        if self._embedded is not None:
            return connect_socket(str(self._embedded.socket_path), **options)
        url = self._settings.redis_url
        if url is None:
            return joined_store(self._settings.data_dir, **options)
        return connect_url(url.get_secret_value(), self._settings.redis_password, **options)

    def _refuse_volatile(self, found: Durability) -> None:
        for text in (*found.problems, *found.notes):
            _log.warning("store_durability", detail=text)
        if found.problems and not self._settings.allow_volatile_store:
            raise VolatileStore(_volatile(found))

    def _identify(self) -> None:
        url = self._settings.redis_url
        location = location_of(None if url is None else url.get_secret_value())
        known_stores = KnownStores(self._settings.data_dir)
        known = known_stores.get(location)
        if not self.retry_while_unavailable(lambda: is_expected_store(self.client, known)):
            self._problem = "has lost its data, or is another one than before"
            raise StoreLost(f"The label store has lost its data, or is another one than before: {HOW_TO_RETURN}")
        self.retry_while_unavailable(self._migrate)
        store_id = self.retry_while_unavailable(lambda: ensure_store_id(self.client))
        self.guard.store_id = store_id.encode()
        try:
            known_stores.put(location, store_id)
        except OSError as error:  # a later start cannot recognise the store, nothing else
            _log.warning("store_not_remembered", internal=str(error))

    def _migrate(self) -> None:
        with store_errors():
            for name in migrate(self.client):
                _log.info("migrated", migration=name)

    # -- watching ----------------------------------------------------------------------------------------------------

    def _ping_forever(self) -> None:
        checked_writes_at = time.monotonic() - _CHECK_WRITES_SECONDS
        write_problem = ""
        while True:
            try:
                self._check_identity()
                if time.monotonic() - checked_writes_at >= _CHECK_WRITES_SECONDS:
                    write_problem = self._check_writes()
                    checked_writes_at = time.monotonic()
                self._note(write_problem)
                self._replied_at = time.monotonic()
            except StoreUnavailable as error:
                checked_writes_at = time.monotonic() - _CHECK_WRITES_SECONDS
                self._note(_described(error), error.internal)
                is_silent = time.monotonic() - self._replied_at >= PING_TIMEOUT_SECONDS
                self.guard.is_answering = isinstance(error, StoreLost) or not is_silent
                if isinstance(error, StoreLost):
                    self.guard.refusal = error
                    # Every connection has to prove again that it leads to the store that was opened.
                    self.client.connection_pool.disconnect(inuse_connections=False)
            except Exception:  # if this thread ended, the store would count as unavailable for ever
                _log.exception("store_check_failed")
            else:
                self.guard.is_answering = True
            if self._stopping.wait(PING_INTERVAL_SECONDS):
                return

    def _check_identity(self) -> None:
        assert self._ping_client is not None
        commands: Any = self._ping_client
        with store_errors():
            store_id, version, restore = commands.mget(STORE_ID_KEY, SCHEMA_VERSION_KEY, RESTORE_STATE_KEY)
        if restore is not None:
            raise StoreUnavailable(RESTORING)
        if store_id != self.guard.store_id:
            raise StoreLost(internal=f"its id is {store_id!r}, expected {self.guard.store_id!r}")
        if version is None or int(version) < SCHEMA_VERSION:
            raise StoreLost(internal=f"its schema is {version!r}, expected {SCHEMA_VERSION}")

    def _check_writes(self) -> str:
        """Why writes are lost or refused at the moment, or an empty string."""
        assert self._ping_client is not None
        found = check_durability(self._ping_client, with_notes=False)
        is_volatile = bool(found.problems) and not self._settings.allow_volatile_store
        self.guard.refusal = VolatileStore(_volatile(found)) if is_volatile else None
        if is_volatile:
            return "may lose labels: " + "; ".join(found.problems)
        if found.faults:
            return "; ".join(found.faults)
        try:
            probe_write(self._ping_client)
        except StoreUnavailable as error:
            if type(error) is StoreUnavailable:
                raise
            return _described(error)
        return ""

    def _note(self, problem: str, internal: str = "") -> None:
        if problem and problem != self._problem:
            _log.error("store_unavailable", detail=problem, internal=internal)
        elif self._problem and not problem:
            _log.info("store_available")
        self._problem = problem


def _described(error: StoreUnavailable) -> str:
    return str(error).removeprefix("The label store ")


def _volatile(found: Durability) -> str:
    problems = "; ".join(found.problems)
    return f"The label store may lose labels: {problems}; or accept it with --allow-volatile-store"
