"""The label store's connection while the service runs: opened, migrated, watched; one LabelStore per namespace."""

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

log = structlog.get_logger("vidlex.runtime")

PING_SECONDS = 0.5
SILENT_SECONDS = 3.0
"""A store that has not answered a ping for so long counts as gone, even if the ping has not failed yet."""
_MAX_PAUSE_SECONDS = 5.0


class Stopped(Exception):
    """The service is asked to stop while it starts."""


class Database:
    """``open`` first, ``close`` last; the rest from any thread."""

    def __init__(self, settings: Settings, stopping: threading.Event) -> None:
        self._settings = settings
        self._stopping = stopping
        self._embedded: EmbeddedStore | None = None
        self._client: redis.Redis | None = None
        self._stores: WeakValueDictionary[str, LabelStore] = WeakValueDictionary()
        self._lock = threading.Lock()
        self._answered_at = -SILENT_SECONDS
        self._fails = True
        self.schema_ok = False

    def open(self) -> None:
        """Connect, wait for the store, migrate it and watch it. Raises Stopped, or what makes it unusable for good."""
        url = self._settings.redis_url
        if url is None:
            self._embedded = EmbeddedStore(self._settings.data_dir)
            self._embedded.start()
            self._client = self._embedded.client()
        else:
            self._client = connect_url(url.get_secret_value(), self._settings.redis_password)
        store = self.store(self._settings.namespace)
        self.when_it_answers(self._migrate)
        self.when_it_answers(store.check_schema)
        self.schema_ok = True
        threading.Thread(target=self._watch, args=(store,), name="vidlex-ping", daemon=True).start()

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
        if self._embedded is not None:
            self._embedded.stop()

    @property
    def client(self) -> redis.Redis:
        assert self._client is not None, "open() comes first"
        return self._client

    def store(self, namespace: str) -> LabelStore:
        """The only one of its namespace, because its writers queue in it. Talks to nobody. Raises ValueError.

        Forgotten with its last user: clients may ask for any number of namespaces.
        """
        with self._lock:
            store = self._stores.get(namespace)
            if store is None:
                store = self._stores[namespace] = LabelStore(
                    self.client, namespace, max_labels=self._settings.max_labels
                )
            return store

    @property
    def answers(self) -> bool:
        return not self._fails and time.monotonic() - self._answered_at < SILENT_SECONDS

    def when_it_answers(self, action: Callable[[], ResultT]) -> ResultT:
        """Do ``action``; while the store does not answer, say so and try again. Raises Stopped."""
        pause_seconds = 0.2
        while True:
            try:
                return action()
            except StoreUnavailable as error:
                log.warning("waiting_for_store", internal=error.internal)
            if self._stopping.wait(pause_seconds):
                raise Stopped
            pause_seconds = min(_MAX_PAUSE_SECONDS, pause_seconds * 2)

    def _migrate(self) -> None:
        with store_errors():
            for name in migrate(self.client):
                log.info("migrated", migration=name)

    def _watch(self, store: LabelStore) -> None:
        while True:
            try:
                store.ping()
                if self._fails:
                    log.info("store_answers")
                self._fails = False
                self._answered_at = time.monotonic()
            except StoreUnavailable as error:
                if not self._fails:
                    log.error("store_lost", internal=error.internal)
                self._fails = True
            if self._stopping.wait(PING_SECONDS):
                return
