"""Connections that never finish the headers of a request are closed; slow requests and responses are not."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from vidlex.service.http.connections import ConnectionLimits, Connections
from vidlex.service.http.limited_protocol import protocol_of

HEAD = b"GET / HTTP/1.1\r\nHost: localhost\r\n"
TIMEOUT_SECONDS = 0.2


async def slow_app(scope: Any, receive: Any, send: Any) -> None:
    await asyncio.sleep(2 * TIMEOUT_SECONDS)
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def answer_to(*parts: bytes) -> bytes:
    """What the service sends until it closes the connection, or until it has been silent for a while."""
    protocol = protocol_of(Connections(ConnectionLimits(head_seconds=TIMEOUT_SECONDS)))
    config = uvicorn.Config(slow_app, log_config=None, lifespan="off", ws="none", http=protocol)
    config.load()
    state = ServerState()
    server = await asyncio.get_running_loop().create_server(
        lambda: protocol(config=config, server_state=state, app_state={}), "127.0.0.1", 0
    )
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        received = b""
        for part in parts:
            writer.write(part)
            received += await reader.read(1000) if part.endswith(b"\r\n\r\n") else b""
        async with asyncio.timeout(20 * TIMEOUT_SECONDS):
            received += await reader.read()
        writer.close()
    return received


@pytest.mark.parametrize("parts", [(), (b"GET",), (HEAD,), (HEAD, b"X: y\r\n")])
def test_unfinished_headers_close_the_connection(parts: tuple[bytes, ...]) -> None:
    assert asyncio.run(answer_to(*parts)) == b""


def test_a_second_request_has_the_same_limit() -> None:
    assert asyncio.run(answer_to(HEAD + b"\r\n", HEAD)).startswith(b"HTTP/1.1 204")


def test_a_connection_between_two_requests_stays_open() -> None:
    with pytest.raises(TimeoutError):
        asyncio.run(answer_to(HEAD + b"\r\n"))
