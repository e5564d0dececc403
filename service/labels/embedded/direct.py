"""Access to the label store without a service, also while one runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from vidlex.service.labels.embedded.server import EmbeddedStore
from vidlex.service.labels.embedded.server_files import ServerFiles
from vidlex.service.labels.store.connection import connect_socket, connect_url


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
