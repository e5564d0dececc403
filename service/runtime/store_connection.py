"""The connection to the label store: opened, migrated and monitored; one LabelStore per namespace."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar
from weakref import WeakValueDictionary

import redis
import structlog

from vidlex.migrations.runner import migrate
from vidlex.service.errors import StoreUnavailable
from vidlex.service.labels.embedded.server import EmbeddedStore
from vidlex.service.labels.store.connection import connect_url, store_errors
from vidlex.service.labels.store.label_store import LabelStore
from vidlex.service.settings import Settings

ResultT = TypeVar("ResultT")

_log = structlog.get_logger("vidlex.runtime")

PING_INTERVAL_SECONDS = 0.5
# Without a reply to a ping for this long the store counts as unavailable, even if no ping has failed.
PING_TIMEOUT_SECONDS = 3.0
_MIN_RETRY_SECONDS = 0.2
_MAX_RETRY_SECONDS = 5.0


class StartCancelled(Exception):
    """The service is being stopped while it starts."""


class StoreConnection:
    """Call ``open`` first and ``close`` last. Thread-safe."""

    def __init__(self, settings: Settings, stopping: threading.Event) -> None:
        self._settings = settings
        self._stopping = stopping
        self._embedded: EmbeddedStore | None = None
        self._client: redis.Redis | None = None
        # Weak, because clients may request any number of namespaces.
        self._stores: WeakValueDictionary[str, LabelStore] = WeakValueDictionary()
        self._lock = threading.Lock()
        self._replied_at = -PING_TIMEOUT_SECONDS
        self._is_failing = True
        self.is_schema_checked = False

    def open(self) -> None:
        """Raises StartCancelled, or any error that waiting cannot solve."""
        url = self._settings.redis_url
        if url is None:
            self._embedded = EmbeddedStore(self._settings.data_dir)
            self._embedded.start()
            self._client = self._embedded.client()
        else:
            self._client = connect_url(url.get_secret_value(), self._settings.redis_password)
        store = self.store(self._settings.namespace)
        self.retry_while_unavailable(self._migrate)
        self.retry_while_unavailable(store.check_schema)
        self.is_schema_checked = True
        threading.Thread(target=self._ping_forever, args=(store,), name="vidlex-ping", daemon=True).start()

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
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
                    self.client, namespace, max_labels=self._settings.max_labels
                )
            return store

    @property
    def is_available(self) -> bool:
        return not self._is_failing and time.monotonic() - self._replied_at < PING_TIMEOUT_SECONDS

    def retry_while_unavailable(self, action: Callable[[], ResultT]) -> ResultT:
        pause_seconds = _MIN_RETRY_SECONDS
        while True:
            try:
                return action()
            except StoreUnavailable as error:
                _log.warning("waiting_for_store", internal=error.internal)
            if self._stopping.wait(pause_seconds):
                raise StartCancelled
            pause_seconds = min(_MAX_RETRY_SECONDS, pause_seconds * 2)

    def _migrate(self) -> None:
        with store_errors():
            for name in migrate(self.client):
                _log.info("migrated", migration=name)

    def _ping_forever(self, store: LabelStore) -> None:
        while True:
            try:
                store.ping()
                if self._is_failing:
                    _log.info("store_available")
                self._is_failing = False
                self._replied_at = time.monotonic()
            except StoreUnavailable as error:
                if not self._is_failing:
                    _log.error("store_unavailable", internal=error.internal)
                self._is_failing = True
            if self._stopping.wait(PING_INTERVAL_SECONDS):
                return
