"""Commands that work on the label store itself, not through a service."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vidlex.service.commands.output import CommandError
from vidlex.service.errors import VidlexError
from vidlex.service.settings import Settings

if TYPE_CHECKING:
    import redis


@contextmanager
def opened_store(settings: Settings) -> Iterator[redis.Redis]:
    """A client of the configured server, or of the embedded one, started for this command alone."""
    from vidlex.service.labels.embedded.server import EmbeddedStore
    from vidlex.service.labels.store.connection import connect_url

    if settings.redis_url is not None:
        client = connect_url(settings.redis_url.get_secret_value(), settings.redis_password)
        try:
            yield client
        finally:
            client.close()
        return
    store = EmbeddedStore(settings.data_dir)
    try:
        store.start()
    except VidlexError as error:
        raise CommandError(str(error)) from None
    try:
        yield store.client()
    finally:
        store.stop()


@contextmanager
def reached_store(settings: Settings) -> Iterator[redis.Redis]:
    """Like ``opened_store``, but the embedded store of a running service is shared with it."""
    from vidlex.service.labels.embedded.server_files import ServerFiles
    from vidlex.service.labels.store.connection import connect_socket

    files = ServerFiles(settings.data_dir)
    socket = files.last_socket()
    if settings.redis_url is not None or socket is None or not socket.exists() or not files.server_is_locked():
        with opened_store(settings) as client:
            yield client
        return
    client = connect_socket(str(socket))
    try:
        yield client
    finally:
        client.close()
