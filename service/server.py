"""Runs the application under uvicorn."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Callable
from time import monotonic
from types import FrameType

import anyio
import structlog
import uvicorn
from fastapi import FastAPI

from vidlex.service.access.key_file import KeyFileError
from vidlex.service.app import create_app
from vidlex.service.http.addresses import TrustedProxies
from vidlex.service.http.connections import NUM_RESERVED, ConnectionLimits, Connections
from vidlex.service.http.context import Context
from vidlex.service.http.descriptors import raise_descriptor_limit
from vidlex.service.http.graceful_shutdown import GracefulShutdown
from vidlex.service.http.heap import Heap
from vidlex.service.http.limited_protocol import protocol_of
from vidlex.service.machine.cpus import limit_library_threads
from vidlex.service.settings import Settings, unknown_variables
from vidlex.service.telemetry.logs import configure_logging
from vidlex.service.telemetry.tracing import TracingUnavailable

_MIN_CONNECTIONS = 16
_TICKS_PER_SECOND = 10  # of uvicorn.Server.on_tick
_OTHER_DESCRIPTORS = 512  # the store, models, logs, threads' pipes

_log = structlog.get_logger("vidlex.server")


class TooFewDescriptors(RuntimeError):
    """The hard limit of file descriptors does not suffice for a service."""


def serve(
    settings: Settings,
    *,
    sockets: list[socket.socket] | None = None,
    on_ready: Callable[[str, str], None] = lambda model, labels: None,
) -> str | None:
    """Run until a signal; returns None, or the reason if the service could not start.

    Bound ``sockets`` replace the settings' host and port. ``on_ready`` receives the name of the model and the number of
    labels as texts.
    """
    configure_logging(settings.log_level, settings.log_format)
    limit_library_threads()
    os.environ.setdefault("TQDM_DISABLE", "1")  # before libraries import tqdm: progress bars do not belong in a log
    for line in unknown_variables():
        _log.warning("unknown_variable", detail=line)
    failure: str | None = None
    shutdown = GracefulShutdown()

    def on_fatal(reason: str) -> None:
        nonlocal failure
        failure = reason
        server.should_exit = True

    try:
        connections = Connections(_connection_limits(settings))
        app = create_app(settings, on_fatal=on_fatal, shutdown=shutdown)
    except (KeyFileError, TooFewDescriptors, TracingUnavailable) as error:
        _log.error("refused_to_start", detail=str(error))
        return str(error)
    if settings.insecure and not settings.on_loopback:
        _log.warning("insecure", detail="every client that can reach this address has full access")
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http=protocol_of(connections),
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=math.ceil(settings.shutdown_grace_seconds),
        timeout_keep_alive=settings.keep_alive_seconds,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=list(settings.trusted_proxies),
        ws="none",
    )
    server = _Server(config, app, shutdown, settings, connections, on_ready=on_ready)
    for sock in sockets or ():
        # Not set by every event loop. Without it, the client's delayed acknowledgement adds 40 ms to responses of
        # several segments.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    server.run(sockets)
    return failure if server.started else failure or "the server could not start listening"


def _connection_limits(settings: Settings) -> ConnectionLimits:
    """The settings' limits, lowered to what the file descriptors allow. Raises TooFewDescriptors."""
    others = _OTHER_DESCRIPTORS + NUM_RESERVED + settings.max_waiting_uploads + 16 * settings.decode_workers
    num_descriptors = raise_descriptor_limit(settings.max_connections + others)
    max_connections = min(settings.max_connections, num_descriptors - others)
    if max_connections < _MIN_CONNECTIONS:
        raise TooFewDescriptors(
            f"at most {num_descriptors} files may be open; the service needs {others + _MIN_CONNECTIONS} or more: "
            "raise the hard limit (ulimit -Hn)"
        )
    if max_connections < settings.max_connections:
        _log.warning("few_descriptors", num_descriptors=num_descriptors, max_connections=max_connections)
    return ConnectionLimits(
        max_connections=max_connections,
        max_per_address=min(settings.max_connections_per_address, max_connections),
        head_seconds=settings.header_timeout_seconds,
        send_seconds=settings.send_timeout_seconds,
        proxies=TrustedProxies(settings.trusted_proxies),
    )


class _Server(uvicorn.Server):
    """Logs its address, reports when it is ready, and shuts down gracefully before it closes its port.

    After the first signal, /readyz answers 503 while requests are served for ``drain_seconds`` more. Then new requests
    get 503 until the accepted ones are finished. After ``shutdown_grace_seconds`` or at a second signal, uvicorn's own
    shutdown begins.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        app: FastAPI,
        shutdown: GracefulShutdown,
        settings: Settings,
        connections: Connections,
        *,
        on_ready: Callable[[str, str], None],
    ) -> None:
        super().__init__(config)
        self._connections = connections
        self._heap = Heap()
        self._app = app
        self._on_ready = on_ready
        self._was_ready = False
        self._graceful_shutdown = shutdown
        self._grace_seconds = settings.shutdown_grace_seconds
        self._drain_seconds = settings.drain_seconds
        self._signal = 0
        self._signalled_at = 0.0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._graceful_shutdown.has_begun or not self.started:
            super().handle_exit(sig, frame)
            return
        self._signal, self._signalled_at = sig, monotonic()
        self._graceful_shutdown.begin()
        if self._drain_seconds == 0:
            self._graceful_shutdown.refuse()

    async def on_tick(self, counter: int) -> bool:
        if not self._was_ready:
            self._report_when_ready()
        if counter % _TICKS_PER_SECOND == 0:
            self._connections.drop_stalled()
            if self._was_ready and not self._graceful_shutdown.num_requests:
                await anyio.to_thread.run_sync(self._heap.trim)
        if self._graceful_shutdown.has_begun and not self.should_exit:
            seconds = monotonic() - self._signalled_at
            if seconds >= self._drain_seconds:
                self._graceful_shutdown.refuse()
            if seconds >= self._drain_seconds and (
                not self._graceful_shutdown.num_requests or seconds >= max(self._grace_seconds, self._drain_seconds)
            ):
                left = max(1.0, self._grace_seconds - seconds)
                self.config.timeout_graceful_shutdown = math.ceil(left)
                super().handle_exit(self._signal, None)
        return await super().on_tick(counter)

    def _report_when_ready(self) -> None:
        context: Context = self._app.state.context
        if context.parts is not None:
            self._was_ready = True
            checks = context.readiness().checks
            self._on_ready(checks["model"].detail, checks["index"].detail)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in self.servers:
            for sock in listener.sockets:
                host, port = sock.getsockname()[:2]
                address = f"[{host}]" if ":" in host else host
                _log.info("listening", host=host, port=port, url=f"http://{address}:{port}")
