"""Connections of an `AsyncClient`, which notice an answer while the request is still being sent.

A service refuses a video before its end, and closes the connection. A thread that writes to it gets an error, and then
reads the answer; event loops drop what was received on such an error. So they read while they write.
"""

from __future__ import annotations

import ssl
import typing
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import httpcore
import httpx

_MIN_WATCHED_BYTES = 16_384  # of what is written at once: parts of a video
_READ_BYTES = 65_536
_LOOK_SECONDS = 0.01  # for what has arrived but may be no part of an answer, such as a session ticket of TLS


class _WatchingStream(httpcore.AsyncNetworkStream):
    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream
        self._received: bytes | None = None  # not read yet; empty at the end of the connection

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self._received is None:
            return await self._stream.read(max_bytes, timeout)
        found, rest = self._received[:max_bytes], self._received[max_bytes:]
        self._received = rest or None
        return found

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if len(buffer) < _MIN_WATCHED_BYTES:
            await self._stream.write(buffer, timeout)
            return
        if self._received is None and self._stream.get_extra_info("is_readable"):
            with anyio.move_on_after(_LOOK_SECONDS):
                await self._receive()
        if self._received is None:
            await self._write_and_receive(buffer, timeout)
        if self._received is not None:
            raise httpcore.WriteError("the answer came before the end of the request")

    async def _write_and_receive(self, buffer: bytes, timeout: float | None) -> None:
        fault: httpcore.NetworkError | httpcore.TimeoutException | None = None
        async with anyio.create_task_group() as tasks:

            async def receive() -> None:
                await self._receive()
                tasks.cancel_scope.cancel()

            tasks.start_soon(receive)
            try:
                await self._stream.write(buffer, timeout)
            except (httpcore.NetworkError, httpcore.TimeoutException) as error:
                fault = error
            tasks.cancel_scope.cancel()
        if fault is not None and self._received is None:
            raise fault

    async def _receive(self) -> None:
        try:
            self._received = await self._stream.read(_READ_BYTES)
        except httpcore.NetworkError:
            return  # the write tells

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        return _WatchingStream(await self._stream.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class _WatchingBackend(httpcore.AsyncNetworkBackend):
    def __init__(self) -> None:
        self._backend = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        return _WatchingStream(await self._backend.connect_tcp(host, port, timeout, local_address, socket_options))

    async def sleep(self, seconds: float) -> None:
        await self._backend.sleep(seconds)


class WatchingTransport(httpx.AsyncBaseTransport):
    """For http, https, and SOCKS proxies."""

    def __init__(self, trust: ssl.SSLContext, proxy: httpx.Proxy | None, limits: httpx.Limits) -> None:
        options: dict[str, Any] = {
            "ssl_context": trust,
            "max_connections": limits.max_connections,
            "max_keepalive_connections": limits.max_keepalive_connections,
            "keepalive_expiry": limits.keepalive_expiry,
            "network_backend": _WatchingBackend(),
        }
        self._pool: httpcore.AsyncConnectionPool
        if proxy is None:
            self._pool = httpcore.AsyncConnectionPool(**options)
            return
        options |= {"proxy_url": str(proxy.url), "proxy_auth": proxy.raw_auth}
        if proxy.url.scheme.startswith("socks"):
            self._pool = httpcore.AsyncSOCKSProxy(**options)
        else:
            self._pool = httpcore.AsyncHTTPProxy(**options, proxy_ssl_context=proxy.ssl_context)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        with _as_httpx_errors():
            response = await self._pool.handle_async_request(
                httpcore.Request(
                    request.method,
                    httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
                    headers=request.headers.raw,
                    content=request.stream,
                    extensions=request.extensions,
                )
            )
        return httpx.Response(
            response.status,
            headers=response.headers,
            stream=_ResponseStream(response),
            extensions=response.extensions,
        )

    async def aclose(self) -> None:
        await self._pool.aclose()


class _ResponseStream(httpx.AsyncByteStream):
    def __init__(self, response: httpcore.Response) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _as_httpx_errors():
            async for part in typing.cast(typing.AsyncIterable[bytes], self._response.stream):
                yield part

    async def aclose(self) -> None:
        await self._response.aclose()


_ERRORS = (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError, httpcore.ProxyError)


@contextmanager
def _as_httpx_errors() -> Iterator[None]:
    try:
        yield
    except _ERRORS as error:
        kind = getattr(httpx, type(error).__name__, httpx.TransportError)
        raise kind(str(error)) from error
