"""Access to the label store without a service, also while one runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis

from vidlex.service.labels.embedded.server import EmbeddedStore
from vidlex.service.labels.embedded.server_files import ServerFiles
from vidlex.service.labels.store.connection import (
    SOCKET_TIMEOUT_SECONDS,
    OnConnect,
    connect_socket,
    connect_url,
    connection_options,
)


def is_served(data_dir: Path) -> bool:
    """Whether a running service has started the embedded server of this data folder."""
    files = ServerFiles(data_dir)
    socket = files.last_socket()
    return socket is not None and socket.exists() and files.server_is_locked()


@contextmanager
def own_store(data_dir: Path, redis_url: str | None, redis_password: str | None) -> Iterator[redis.Redis]:
    """A client of the server at ``redis_url``, else of an embedded one that runs for the duration of the block.

    Raises StoreUnavailable, DataFolderInUse.
    """
    if redis_url is not None:
        client = connect_url(redis_url, redis_password)
        try:
            yield client
        finally:
            client.close()
        return
    with EmbeddedStore(data_dir) as store:
        yield store.client()


@contextmanager
def direct_store(data_dir: Path, redis_url: str | None, redis_password: str | None) -> Iterator[redis.Redis]:
    """Like ``own_store``, but connects to the embedded server of a running service if there is one."""
    if redis_url is not None or not is_served(data_dir):
        with own_store(data_dir, redis_url, redis_password) as client:
            yield client
        return
    client = connect_socket(str(ServerFiles(data_dir).last_socket()))
    try:
        yield client
    finally:
        client.close()


def joined_store(
    data_dir: Path, *, timeout_seconds: float = SOCKET_TIMEOUT_SECONDS, on_connect: OnConnect | None = None
) -> redis.Redis:
    """A client of the embedded server of the service that runs on this data folder, now or later."""
    options = connection_options(timeout_seconds, on_connect)
    pool = redis.ConnectionPool(connection_class=_ServedSocket, files=ServerFiles(data_dir), **options)
    return redis.Redis(connection_pool=pool)


class _ServedSocket(redis.UnixDomainSocketConnection):
    """Its path may be another one after each start of the service."""

    def __init__(self, *, files: ServerFiles, **options: Any) -> None:
        super().__init__(path="", **options)  # type: ignore[no-untyped-call]
        self._files = files

    def _connect(self) -> Any:
        socket = self._files.last_socket()
        if socket is None:
            raise redis.ConnectionError("no service runs on this data folder")
        self.path = str(socket)
        return super()._connect()  # type: ignore[no-untyped-call]
