"""Direct access to the label store, without a service."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING

from vidlex.service.commands.output import CommandError
from vidlex.service.errors import VidlexError

if TYPE_CHECKING:
    from pathlib import Path

    import redis

    from vidlex.service.settings import Settings


def log_to_stderr() -> None:
    """Log warnings and errors to stderr; by default structlog writes to stdout, where the results are."""
    from vidlex.service.telemetry.logs import configure_logging

    configure_logging("warning")


@contextmanager
def opened_store(settings: Settings) -> Iterator[redis.Redis]:
    """A client of the configured server, or of an embedded server that runs for the duration of the block."""
    from vidlex.service.labels.embedded.direct import own_store

    with _opened(own_store, settings) as client:
        yield client


@contextmanager
def shared_store(settings: Settings) -> Iterator[redis.Redis]:
    """Like ``opened_store``, but connects to the embedded server of a running service if there is one."""
    from vidlex.service.labels.embedded.direct import direct_store

    with _opened(direct_store, settings) as client:
        yield client


@contextmanager
def _opened(
    connect: Callable[[Path, str | None, str | None], AbstractContextManager[redis.Redis]], settings: Settings
) -> Iterator[redis.Redis]:
    log_to_stderr()
    url = None if settings.redis_url is None else settings.redis_url.get_secret_value()
    with ExitStack() as stack:
        try:
            client = stack.enter_context(connect(settings.data_dir, url, settings.redis_password))
        except VidlexError as error:
            raise CommandError(str(error)) from None
        yield client


def uses_running_store(settings: Settings) -> bool:
    """Whether a running service has started the embedded server of this data folder."""
    from vidlex.service.labels.embedded.direct import is_served

    return settings.redis_url is None and is_served(settings.data_dir)


def shown_store(settings: Settings) -> str:
    """The configured store, for people. Without a password."""
    from vidlex.service.labels.store.identity import location_of

    if settings.redis_url is not None:
        return f"the label store at {location_of(settings.redis_url.get_secret_value())} (VIDLEX_REDIS_URL)"
    state = "of a running service" if uses_running_store(settings) else "which no running service uses"
    return f"the label store in the data folder {settings.data_dir}, {state}"
