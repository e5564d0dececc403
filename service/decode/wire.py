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
from collections.abc import Sequence
from typing import Any

MAX_MESSAGE_BYTES = 1 << 20
_LENGTH = struct.Struct("!I")


class WireClosed(Exception):
    """The connection is closed, or a message is invalid."""


class WireTimeout(Exception):
    pass


def send(channel: socket.socket, message: dict[str, Any], *, descriptors: Sequence[int] = ()) -> None:
    body = json.dumps(message).encode()
    if len(body) > MAX_MESSAGE_BYTES:
        raise ValueError(f"a message of {len(body)} bytes is longer than {MAX_MESSAGE_BYTES}")
    data = _LENGTH.pack(len(body)) + body
    try:
        if descriptors:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
            data = data[channel.sendmsg([data], rights) :]
        channel.sendall(data)
    except OSError as error:
        raise WireClosed(str(error)) from error


def receive(
    channel: socket.socket, *, deadline: float | None = None, max_descriptors: int = 0
) -> tuple[dict[str, Any], list[int]]:
    """The next message and its descriptors; more than ``max_descriptors`` are not taken. ``deadline`` is of
    time.monotonic.

    Raises WireClosed, WireTimeout.
    """
    descriptors: list[int] = []
    length = _LENGTH.unpack(_read(channel, _LENGTH.size, deadline, descriptors, max_descriptors))[0]
    if length > MAX_MESSAGE_BYTES:
        raise WireClosed(f"a message of {length} bytes is longer than {MAX_MESSAGE_BYTES}")
    try:
        message = json.loads(_read(channel, length, deadline, [], 0))
    except ValueError as error:
        raise WireClosed("not JSON") from error
    if not isinstance(message, dict):
        raise WireClosed("not an object")
    return message, descriptors


def _read(
    channel: socket.socket, size: int, deadline: float | None, descriptors: list[int], max_descriptors: int
) -> bytes:
    data = b""
    while len(data) < size:
        remaining = None if deadline is None else deadline - time.monotonic()
        if remaining is not None and remaining <= 0:
            raise WireTimeout
        channel.settimeout(remaining)
        try:
            if max_descriptors:
                chunk, fds, _, _ = socket.recv_fds(channel, size - len(data), max_descriptors)
                descriptors += fds
            else:
                chunk = channel.recv(size - len(data))  # without a place for descriptors, the kernel drops them
        except TimeoutError as error:
            raise WireTimeout from error
        except OSError as error:
            raise WireClosed(str(error)) from error
        if not chunk:
            raise WireClosed("the connection was closed")
        data += chunk
    return data
