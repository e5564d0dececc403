"""HTTP over sockets, byte for byte."""

from __future__ import annotations

import json
import select
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

WAIT_SECONDS = 60.0


@dataclass(frozen=True)
class RawResponse:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def connect(url: str, *, source: str = "127.0.0.1", receive_bytes: int | None = None) -> socket.socket:
    """``receive_bytes``: size of the client's receive buffer."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    connection = socket.socket()
    if receive_bytes is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    connection.settimeout(WAIT_SECONDS)
    connection.bind((source, 0))
    connection.connect((parts.hostname, parts.port))
    return connection


def head(method: str, path: str, *lines: str) -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *lines, "", ""]).encode("latin-1")


def read_response(connection: socket.socket) -> RawResponse | None:
    """The next response; None if the connection was closed before it."""
    received = b""
    with suppress(ConnectionError):
        while b"\r\n\r\n" not in received:
            chunk = connection.recv(1)
            if not chunk:
                break
            received += chunk
    if b"\r\n\r\n" not in received:
        return None
    first, *lines = received.decode("latin-1").rstrip().split("\r\n")
    pairs = (line.partition(":") for line in lines)
    headers = {name.lower(): value.strip() for name, _, value in pairs}
    status, body = int(first.split()[1]), b""
    if status >= 200:
        while missing := int(headers.get("content-length", "0")) - len(body):
            chunk = connection.recv(missing)
            if not chunk:
                break
            body += chunk
    return RawResponse(status, headers, body)


def exchange(url: str, request: bytes, *, source: str = "127.0.0.1") -> RawResponse | None:
    with connect(url, source=source) as connection:
        connection.sendall(request)
        return read_response(connection)


def is_closed(connection: socket.socket, seconds: float = WAIT_SECONDS) -> bool:
    """Whether the peer closes or resets the connection within ``seconds``. Does not read what the peer has sent."""
    poll = select.poll()
    poll.register(connection, select.POLLRDHUP)
    return bool(poll.poll(seconds * 1000))


def send_until_closed(connection: socket.socket, chunk: bytes, max_bytes: int) -> int:
    """Sends ``chunk`` again and again. Returns how many bytes could be sent before the peer closed the connection, or
    ``max_bytes``."""
    num_bytes, deadline = 0, time.monotonic() + WAIT_SECONDS
    with suppress(OSError):
        while num_bytes < max_bytes and time.monotonic() < deadline:
            num_bytes += connection.send(chunk)
    return num_bytes
