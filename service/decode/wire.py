"""What the pool and a decode process say to each other: JSON objects, each with its length before it.

JSON and never pickle: a decode process that a hostile video has taken over can send nothing that runs. Frames do
not travel here; they lie in shared memory whose descriptor comes with the request. Standard library alone, because
a decode process reads this file before it locks itself in.
"""

from __future__ import annotations

import array
import json
import socket
import struct
import time
from typing import Any

MAX_MESSAGE_BYTES = 1 << 20
_LENGTH = struct.Struct("!I")


class WireClosed(Exception):
    """The other side is gone, or does not speak this language."""


class WireTimeout(Exception):
    """The other side did not answer in time."""


def send(channel: socket.socket, message: dict[str, Any], *, descriptor: int | None = None) -> None:
    body = json.dumps(message).encode()
    if len(body) > MAX_MESSAGE_BYTES:
        raise ValueError(f"a message of {len(body)} bytes is longer than {MAX_MESSAGE_BYTES}")
    data = _LENGTH.pack(len(body)) + body
    try:
        if descriptor is not None:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))]
            data = data[channel.sendmsg([data], rights) :]
        channel.sendall(data)
    except OSError as error:
        raise WireClosed(str(error)) from error


def receive(channel: socket.socket, *, deadline: float | None = None) -> tuple[dict[str, Any], int | None]:
    """The next message and the descriptor that came with it. ``deadline`` is a time of ``time.monotonic``."""
    descriptors: list[int] = []
    length = _LENGTH.unpack(_read(channel, _LENGTH.size, deadline, descriptors))[0]
    if length > MAX_MESSAGE_BYTES:
        raise WireClosed(f"a message of {length} bytes was announced")
    try:
        message = json.loads(_read(channel, length, deadline, descriptors))
    except ValueError as error:
        raise WireClosed("not JSON") from error
    if not isinstance(message, dict):
        raise WireClosed("not an object")
    return message, descriptors[0] if descriptors else None


def _read(channel: socket.socket, size: int, deadline: float | None, descriptors: list[int]) -> bytes:
    data = b""
    while len(data) < size:
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            raise WireTimeout
        channel.settimeout(left)
        try:
            piece, fds, _, _ = socket.recv_fds(channel, size - len(data), 1)
        except TimeoutError as error:
            raise WireTimeout from error
        except OSError as error:
            raise WireClosed(str(error)) from error
        if not piece:
            raise WireClosed("the connection was closed")
        descriptors += fds
        data += piece
    return data
