"""uvicorn's connection with timeouts for a request's head, an ignored body and an unread response."""

from __future__ import annotations

import asyncio
import fcntl
import json
import re
import secrets
import socket
import struct
import sys
import termios
from typing import Any, ClassVar

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from vidlex.service.errors import InvalidRequest
from vidlex.service.http.connections import Connections
from vidlex.service.http.problems import PROBLEM_TYPE, problem_of

MAX_HEAD_BYTES = 32 << 10
MAX_HEAD_LINES = 128
_RESERVED_HEAD_SECONDS = 3.0
_LINGER_SECONDS = 2.0
_MAX_LINGER_BYTES = 1 << 20
_MIN_BYTES_PER_SECOND = 1024
_HEAD_END = re.compile(rb"\n\r?\n")


class _BoundedHeads(h11.Connection):
    """h11 bounds a head only while it is incomplete: not one that arrives in one piece, nor the number of headers."""

    def next_event(self) -> Any:
        if self.their_state is h11.IDLE:
            data, _ = self.trailing_data
            end = _HEAD_END.search(data, 0, MAX_HEAD_BYTES)
            num_bytes = len(data) if end is None else end.end()
            if num_bytes > MAX_HEAD_BYTES or data.count(b"\n", 0, num_bytes) > MAX_HEAD_LINES:
                self._process_error(self.their_role)
                raise h11.RemoteProtocolError("The head of the request is too large", error_status_hint=431)
        return super().next_event()


class LimitedProtocol(H11Protocol):
    """On h11, because httptools does not bound the size of headers."""

    registry: ClassVar[Connections]
    _timer: asyncio.TimerHandle | None = None
    _head_seconds = 0.0
    _is_dropped = False
    _num_ignored_bytes = 0
    _unsent_mark: tuple[float, int] | None = None  # a time, and the unsent bytes then

    def __init__(self, config: uvicorn.Config, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self.conn = _BoundedHeads(h11.SERVER, MAX_HEAD_BYTES)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        app = self.registry.admit(self)
        if app is None:
            self.drop()
            return
        self._head_seconds = self.registry.limits.head_seconds
        if app is not self.app:
            self.app = app
            self._head_seconds = min(self._head_seconds, _RESERVED_HEAD_SECONDS)
        self._note_state()
        self._start_timer(self._head_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_timer()
        self.registry.remove(self)
        super().connection_lost(exc)
        self._unset_keepalive_if_required()  # uvicorn's timer would keep this object, and with it the unsent response

    def data_received(self, data: bytes) -> None:
        if self._is_dropped:
            return
        ignored_body = self._ignores_body
        if ignored_body:
            self._num_ignored_bytes += len(data)
            if self._num_ignored_bytes > _MAX_LINGER_BYTES:
                self.drop()
                return
        super().data_received(data)
        self._note_state()
        if self._ignores_body:
            return
        if ignored_body or not self.is_idle:
            self._cancel_timer()
        if self.is_idle:
            self._start_timer(self._head_seconds)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            return
        self._note_state()
        if self._ignores_body:
            # uvicorn would read the rest of the body, however long it is.
            self._num_ignored_bytes = 0
            self._cancel_timer()
            self._start_timer(_LINGER_SECONDS)

    def send_400_response(self, msg: str) -> None:
        """Of what is not HTTP, as a problem document."""
        request_id = secrets.token_hex(16)
        body = json.dumps(problem_of(InvalidRequest(msg), request_id)).encode()
        headers = [
            *self.server_state.default_headers,
            (b"content-type", PROBLEM_TYPE.encode()),
            (b"content-length", str(len(body)).encode()),
            (b"x-request-id", request_id.encode()),
            (b"connection", b"close"),
        ]
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):  # no response has begun
            for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event))
        self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.registry.note_paused(self, self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        self.registry.note_resumed(self)
        super().resume_writing()

    @property
    def is_idle(self) -> bool:
        """Whether no request is in progress: its head has not been received."""
        cycle: Any = self.cycle
        return cycle is None or (cycle.response_complete and not self._ignores_body)

    @property
    def _ignores_body(self) -> bool:
        """Whether the response is complete and the body of its request is not."""
        cycle: Any = self.cycle
        return cycle is not None and cycle.response_complete and self.conn.their_state is h11.SEND_BODY

    def is_stalled(self, now: float) -> bool:
        """Whether the client has taken too little of a response for ``send_seconds``."""
        if not self.transport.get_write_buffer_size():
            self._unsent_mark = None
            return False
        # With the kernel's part: it asks for more only when a third of its buffer, of up to megabytes, is free.
        num_bytes = self.transport.get_write_buffer_size() + _kernel_bytes(self.transport)
        seconds = self.registry.limits.send_seconds
        if self._unsent_mark is not None:
            since, before = self._unsent_mark
            # More bytes than before were written after some had been taken.
            if before - _MIN_BYTES_PER_SECOND * seconds < num_bytes <= before:
                return now - since >= seconds
        self._unsent_mark = (now, num_bytes)
        return False

    def drop(self) -> None:
        """Close without sending what is left."""
        self._is_dropped = True
        self.registry.remove(self)
        if self.transport.get_write_buffer_size() and (sock := self.transport.get_extra_info("socket")) is not None:
            # A reset; otherwise the kernel keeps its part of the response for a client that may never read it.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def _note_state(self) -> None:
        if not self._is_dropped:
            self.registry.note_idle(self, is_idle=self.is_idle)

    def _start_timer(self, seconds: float) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(seconds, self._on_timeout)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_timeout(self) -> None:
        self._timer = None
        if self.is_idle or self._ignores_body:
            self.drop()


def _kernel_bytes(transport: asyncio.Transport) -> int:
    """Sent bytes that the client has not acknowledged; 0 where the system does not tell."""
    sock = transport.get_extra_info("socket")
    number = bytearray(4)
    try:
        fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, number)
    except (AttributeError, OSError):
        return 0
    return int.from_bytes(number, sys.byteorder)


def protocol_of(connections: Connections) -> type[LimitedProtocol]:
    """For ``uvicorn.Config(http=...)``."""
    return type("Protocol", (LimitedProtocol,), {"registry": connections})
