"""Connections to addresses that were judged, whatever the name leads to by now."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterable, Sequence
from typing import Any

import httpcore

from vidlex.service.errors import FetchFailed
from vidlex.service.outbound.addresses import Address
from vidlex.service.outbound.limits import CONNECT_SECONDS, IDLE_SECONDS, Limits


class JudgedBackend(httpcore.NetworkBackend):
    """Of one request. Never looks a name up."""

    def __init__(self, addresses: Sequence[Address], limits: Limits) -> None:
        self._addresses = addresses
        self._limits = limits

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        fault: OSError | None = None
        for address in self._addresses:
            family = socket.AF_INET if address.version == 4 else socket.AF_INET6
            try:
                connection = socket.socket(family, socket.SOCK_STREAM)
            except OSError as error:
                fault = error
                continue
            try:
                connection.settimeout(self._limits.seconds_left(CONNECT_SECONDS))
                connection.connect((str(address), port))
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError as error:
                connection.close()
                fault = error
            except BaseException:
                connection.close()
                raise
            else:
                return _LimitedStream(connection, self._limits)
        raise FetchFailed("The server cannot be reached", internal=repr(fault))


class _LimitedStream(httpcore.NetworkStream):
    def __init__(self, connection: socket.socket, limits: Limits) -> None:
        self._socket = connection
        self._limits = limits

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        until = time.monotonic() + IDLE_SECONDS
        while True:
            self._socket.settimeout(self._limits.seconds_left(self._limits.poll_seconds))
            try:
                return self._socket.recv(max_bytes)
            except TimeoutError:
                if time.monotonic() >= until:
                    raise FetchFailed("The server sends nothing any more") from None
            except OSError as error:
                raise httpcore.ReadError(repr(error)) from error

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        rest = memoryview(buffer)
        while rest:
            self._socket.settimeout(self._limits.seconds_left(IDLE_SECONDS))
            try:
                rest = rest[self._socket.send(rest) :]
            except TimeoutError:
                raise FetchFailed("The server takes nothing any more") from None
            except OSError as error:
                raise httpcore.WriteError(repr(error)) from error

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        try:
            self._socket.settimeout(self._limits.seconds_left(CONNECT_SECONDS))
            encrypted = ssl_context.wrap_socket(self._socket, server_hostname=server_hostname)
        except BaseException as error:
            self.close()
            if isinstance(error, ssl.SSLCertVerificationError):
                raise FetchFailed("The server's certificate is not accepted", internal=error.verify_message) from error
            if isinstance(error, OSError | ValueError):
                raise FetchFailed("There is no encrypted connection to the server", internal=repr(error)) from error
            raise
        return _LimitedStream(encrypted, self._limits)

    def close(self) -> None:
        self._socket.close()

    def get_extra_info(self, info: str) -> Any:
        if info == "ssl_object" and isinstance(self._socket, ssl.SSLSocket):
            return self._socket
        return None
