"""`Client`, and `AsyncClient` behind the same methods, so that a test is written once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from anyio.from_thread import start_blocking_portal

from vidlex.service.client.async_client import AsyncClient
from vidlex.service.client.async_jobs import AsyncJob, AsyncJobs
from vidlex.service.client.client import Client
from vidlex.service.client.videos import AsyncVideos

KINDS = ("sync", "asyncio")


@contextmanager
def opened(kind: str, *arguments: Any, **options: Any) -> Iterator[Any]:
    """Async methods are called in an event loop of another thread; an async iterator comes as a list."""
    if kind == "sync":
        with Client(*arguments, **options) as client:
            yield client
        return
    with start_blocking_portal() as portal:

        async def make() -> AsyncClient:
            return AsyncClient(*arguments, **options)

        client = portal.call(make)
        try:
            yield _Blocking(client, portal.call)
        finally:
            portal.call(client.close)


class _Blocking:
    """An `AsyncClient`, its jobs, or one of them."""

    def __init__(self, found: AsyncClient | AsyncJobs | AsyncJob | AsyncVideos, call: Callable[..., Any]) -> None:
        self._found, self._call = found, call

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._found, name)
        if not callable(found):
            return self._wrapped(found)

        async def collect(arguments: Any, options: Any) -> Any:
            value = found(*arguments, **options)
            return await value if inspect.isawaitable(value) else [item async for item in value]

        return lambda *arguments, **options: self._wrapped(self._call(collect, arguments, options))

    def _wrapped(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._wrapped(item) for item in value]
        return _Blocking(value, self._call) if isinstance(value, AsyncJobs | AsyncJob | AsyncVideos) else value
