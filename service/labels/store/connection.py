"""Connections to the store, and the one place where their failures become StoreUnavailable."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from vidlex.service.errors import StoreUnavailable

SOCKET_TIMEOUT_SECONDS = 10.0
CONNECT_TIMEOUT_SECONDS = 2.0


def connect_url(url: str, password: str | None = None) -> redis.Redis:
    """A client for ``redis://``, ``rediss://`` or ``unix://``. Connects at the first command, not here.

    ``password`` is for a URL that holds none, at most a user's name.

    Raises ValueError for a malformed URL.
    """
    return redis.Redis.from_url(url, **_options() | ({} if password is None else {"password": password}))


def connect_socket(path: str, *, timeout_seconds: float = SOCKET_TIMEOUT_SECONDS) -> redis.Redis:
    """A client for a Unix socket. Connects at the first command, not here."""
    return redis.Redis(unix_socket_path=path, **_options() | {"socket_timeout": timeout_seconds})


@contextmanager
def store_errors() -> Iterator[None]:
    """Everything the store may answer or fail to answer, as StoreUnavailable. Details go to ``internal``."""
    try:
        yield
    except redis.DataError:
        raise  # a value that cannot be sent: our bug, not the store's state
    except (redis.RedisError, OSError) as error:
        raise StoreUnavailable(internal=f"{type(error).__name__}: {error}") from error


def _options() -> dict[str, Any]:
    # One retry, at once: it replaces a pooled connection that the server's restart has cut. Waiting is the caller's
    # business, who knows how long its own client will wait.
    return {
        "socket_timeout": SOCKET_TIMEOUT_SECONDS,
        "socket_connect_timeout": CONNECT_TIMEOUT_SECONDS,
        "retry": Retry(NoBackoff(), 1),
        "decode_responses": False,
    }
