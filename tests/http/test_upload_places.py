"""The bound on concurrent uploads: a client that holds uploads open leaves places for others."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import anyio
import pytest
from starlette.requests import Request

from vidlex.service.errors import Overloaded, ShareExceeded
from vidlex.service.http.problems import AT_END_KEY
from vidlex.service.http.uploads import Spool, UploadLimits

Receive = Callable[[], Awaitable[dict[str, Any]]]


def request_of(address: str, receive: Receive) -> Request:
    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "headers": headers, "client": (address, 1), AT_END_KEY: ExitStack()}
    return Request(scope, receive)  # type: ignore[arg-type]


async def never() -> dict[str, Any]:
    await anyio.sleep_forever()
    raise AssertionError


async def at_once() -> dict[str, Any]:
    return {"type": "http.request", "body": b"{}", "more_body": False}


def test_one_client_holds_half_of_the_uploads(tmp_path: Path) -> None:
    limits = UploadLimits(
        max_bytes=100, max_json_bytes=100, max_spool_bytes=100, max_uploads=4, idle_seconds=60, timeout_seconds=60
    )
    spool = Spool(tmp_path, limits)

    async def run() -> None:
        async with anyio.create_task_group() as tasks:
            for _ in range(2):
                tasks.start_soon(spool.read_json, request_of("10.0.0.1", never), dict)
            await anyio.wait_all_tasks_blocked()
            assert spool.num_uploads == 2
            with pytest.raises(ShareExceeded) as share:
                await spool.read_json(request_of("10.0.0.1", at_once), dict)
            assert share.value.extra == {"limit": "uploads"}
            assert await spool.read_json(request_of("10.0.0.2", at_once), dict) == {}
            for address in ("10.0.0.2", "10.0.0.3"):
                tasks.start_soon(spool.read_json, request_of(address, never), dict)
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(Overloaded) as full:  # all places are taken
                await spool.read_json(request_of("10.0.0.4", at_once), dict)
            assert (full.value.code, full.value.extra) == ("overloaded", {"limit": "uploads"})
            tasks.cancel_scope.cancel()
        assert spool.num_uploads == 0
        assert await spool.read_json(request_of("10.0.0.1", at_once), dict) == {}

    anyio.run(run)
