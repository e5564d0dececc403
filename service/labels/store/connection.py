"""Connections to the store. Their failures become StoreUnavailable or one of its kinds, which name the cause."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
)
from redis.retry import Retry

from vidlex.service.errors import StoreDenied, StoreFull, StoreLost, StoreReadOnly, StoreUnavailable

SOCKET_TIMEOUT_SECONDS = 5.0
CONNECT_TIMEOUT_SECONDS = 2.0

# Called with each new connection, instead of redis-py's own handshake, ``connection.on_connect()``.
OnConnect = Callable[[Any], None]


class StoreReplaced(redis.RedisError):
    """The server answers, but no longer has the data that this process has used."""


def connect_url(
    url: str,
    password: str | None = None,
    *,
    timeout_seconds: float = SOCKET_TIMEOUT_SECONDS,
    on_connect: OnConnect | None = None,
) -> redis.Redis:
    """``password`` is for a URL without one. Raises ValueError for a malformed URL."""
    options = connection_options(timeout_seconds, on_connect) | ({} if password is None else {"password": password})
    return redis.Redis.from_url(url, **options)


def connect_socket(
    path: str, *, timeout_seconds: float = SOCKET_TIMEOUT_SECONDS, on_connect: OnConnect | None = None
) -> redis.Redis:
    return redis.Redis(unix_socket_path=path, **connection_options(timeout_seconds, on_connect))


@contextmanager
def store_errors() -> Iterator[None]:
    try:
        yield
    except redis.DataError:
        raise  # a value that cannot be sent is a bug, not the state of the store
    except (redis.RedisError, OSError) as error:
        raise named_error(error) from error


def named_error(error: Exception) -> StoreUnavailable:
    internal = f"{type(error).__name__}: {error}"
    # redis-py puts the command, with its arguments, in front of the reply to a pipeline.
    code = str(error).rpartition("caused error: ")[2].partition(" ")[0]
    for kind in _KINDS:
        if isinstance(error, kind.types) or code in kind.codes:
            return kind.error(kind.detail, internal=internal)
    return StoreUnavailable(internal=internal)


@dataclass(frozen=True)
class _Kind:
    error: type[StoreUnavailable]
    detail: str
    types: tuple[type[Exception], ...]
    codes: tuple[str, ...]  # of the server's reply; redis-py removes those that it has a type for


_KINDS = (
    _Kind(StoreLost, "", (StoreReplaced,), ()),
    _Kind(
        StoreDenied,
        "",
        (AuthenticationError, AuthorizationError, NoPermissionError),
        ("NOAUTH", "WRONGPASS", "NOPERM"),
    ),
    _Kind(StoreReadOnly, "The label store is a read-only replica (READONLY)", (ReadOnlyError,), ("READONLY",)),
    _Kind(StoreReadOnly, "The label store has too few replicas to accept writes (NOREPLICAS)", (), ("NOREPLICAS",)),
    _Kind(StoreFull, "The label store has reached its memory limit (OOM)", (OutOfMemoryError,), ("OOM",)),
    _Kind(StoreFull, "The label store cannot write to its disk (MISCONF)", (), ("MISCONF",)),
    _Kind(StoreUnavailable, "The label store is loading its data", (BusyLoadingError,), ("LOADING",)),
)


def connection_options(timeout_seconds: float, on_connect: OnConnect | None) -> dict[str, Any]:
    # One immediate retry replaces a pooled connection that a restart of the server has closed. A server that does not
    # answer is not asked twice. Longer waits are up to the caller, which knows its own deadline.
    return {
        "socket_timeout": timeout_seconds,
        "socket_connect_timeout": min(CONNECT_TIMEOUT_SECONDS, timeout_seconds),
        "retry": Retry(NoBackoff(), 1, (redis.ConnectionError,)),
        "decode_responses": False,
        "redis_connect_func": on_connect,
    }
