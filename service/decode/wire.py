"""Messages between the pool and a decode process: JSON objects, each preceded by its length.

JSON rather than pickle, so that a compromised decode process cannot send code. Frames are not sent here but written to
shared memory, whose descriptor accompanies the request. Standard library only: a decode process imports this module
before it restricts itself.
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
    """The connection is closed, or a message is invalid."""


class WireTimeout(Exception):
    pass


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
    """The next message and its descriptor, if any. ``deadline`` is of time.monotonic.

    Raises WireClosed, WireTimeout.
    """
    descriptors: list[int] = []
    length = _LENGTH.unpack(_read(channel, _LENGTH.size, deadline, descriptors))[0]
    if length > MAX_MESSAGE_BYTES:
        raise WireClosed(f"a message of {length} bytes is longer than {MAX_MESSAGE_BYTES}")
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
        remaining = None if deadline is None else deadline - time.monotonic()
        if remaining is not None and remaining <= 0:
            raise WireTimeout
        channel.settimeout(remaining)
        try:
            chunk, fds, _, _ = socket.recv_fds(channel, size - len(data), 1)
        except TimeoutError as error:
            raise WireTimeout from error
        except OSError as error:
            raise WireClosed(str(error)) from error
        if not chunk:
            raise WireClosed("the connection was closed")
        descriptors += fds
        data += chunk
    return data
