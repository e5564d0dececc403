"""Notices that a client has left while its request is at work."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from fastapi import Request


class ClientLeft(Exception):
    """There is no answer: the status is for the log and the metrics only."""

    status = 499


class Connection:
    """``has_left`` is set when the client disconnects; then ``waiting`` is cancelled too, which is for waits on the
    event loop.
    """

    def __init__(self) -> None:
        self.has_left = threading.Event()
        self.waiting = anyio.CancelScope()

    def leave(self) -> None:
        self.has_left.set()
        self.waiting.cancel()


@asynccontextmanager
async def watch_connection(request: Request) -> AsyncIterator[Connection]:
    """Requires that the body has been read."""
    connection = Connection()

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        connection.leave()

    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            yield connection
            tasks.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise (group.exceptions[0] if len(group.exceptions) == 1 else group) from None
