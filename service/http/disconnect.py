from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from fastapi import Request


@asynccontextmanager
async def disconnect_event(request: Request) -> AsyncIterator[threading.Event]:
    """Set when the client disconnects. Requires that the body has been read."""
    disconnected = threading.Event()

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        disconnected.set()

    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            yield disconnected
            tasks.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise (group.exceptions[0] if len(group.exceptions) == 1 else group) from None
