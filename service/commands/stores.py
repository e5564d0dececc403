"""Direct access to the label store, without a service."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vidlex.service.commands.output import CommandError
from vidlex.service.errors import VidlexError

if TYPE_CHECKING:
    import redis

    from vidlex.service.settings import Settings


def log_to_stderr() -> None:
    """Log warnings and errors to stderr; by default structlog writes to stdout, where the results are."""
    from vidlex.service.logs import configure_logging

    configure_logging("warning")


@contextmanager
def opened_store(settings: Settings) -> Iterator[redis.Redis]:
    """A client of the configured server, or of an embedded server that runs for the duration of the block."""
    from vidlex.service.labels.embedded.server import EmbeddedStore
    from vidlex.service.labels.store.connection import connect_url

    log_to_stderr()
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


def uses_running_store(settings: Settings) -> bool:
    """Whether a running service has started the embedded server of this data folder."""
    from vidlex.service.labels.embedded.server_files import ServerFiles

    if settings.redis_url is not None:
        return False
    files = ServerFiles(settings.data_dir)
    socket = files.last_socket()
    return socket is not None and socket.exists() and files.server_is_locked()


def shown_store(settings: Settings) -> str:
    """The configured store, for people. Without a password."""
    from vidlex.service.labels.store.identity import location_of

    if settings.redis_url is not None:
        return f"the label store at {location_of(settings.redis_url.get_secret_value())} (VIDLEX_REDIS_URL)"
    state = "of a running service" if uses_running_store(settings) else "which no running service uses"
    return f"the label store in the data folder {settings.data_dir}, {state}"


@contextmanager
def shared_store(settings: Settings) -> Iterator[redis.Redis]:
    """Like ``opened_store``, but connects to the embedded server of a running service if there is one."""
    from vidlex.service.labels.embedded.server_files import ServerFiles
    from vidlex.service.labels.store.connection import connect_socket

    if not uses_running_store(settings):
        with opened_store(settings) as client:
            yield client
        return
    client = connect_socket(str(ServerFiles(settings.data_dir).last_socket()))
    try:
        yield client
    finally:
        client.close()
