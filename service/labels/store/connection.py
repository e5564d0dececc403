"""Connections to the store. Their failures become StoreUnavailable."""

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
    """``password`` is for a URL without one. Raises ValueError for a malformed URL."""
    return redis.Redis.from_url(url, **_options() | ({} if password is None else {"password": password}))


def connect_socket(path: str, *, timeout_seconds: float = SOCKET_TIMEOUT_SECONDS) -> redis.Redis:
    return redis.Redis(unix_socket_path=path, **_options() | {"socket_timeout": timeout_seconds})


@contextmanager
def store_errors() -> Iterator[None]:
    try:
        yield
    except redis.DataError:
        raise  # a value that cannot be sent is a bug, not the state of the store
    except (redis.RedisError, OSError) as error:
        raise StoreUnavailable(internal=f"{type(error).__name__}: {error}") from error


def _options() -> dict[str, Any]:
    # One immediate retry replaces a pooled connection that a restart of the server has closed. Longer waits are up to
    # the caller, which knows its own deadline.
    return {
        "socket_timeout": SOCKET_TIMEOUT_SECONDS,
        "socket_connect_timeout": CONNECT_TIMEOUT_SECONDS,
        "retry": Retry(NoBackoff(), 1),
        "decode_responses": False,
    }
