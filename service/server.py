"""Runs the application under uvicorn."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Callable
from time import monotonic
from types import FrameType

import structlog
import uvicorn
from fastapi import FastAPI

from vidlex.service.access.key_file import KeyFileError
from vidlex.service.app import create_app
from vidlex.service.http.context import Context
from vidlex.service.http.graceful_shutdown import GracefulShutdown
from vidlex.service.http.request_timeout import RequestTimeoutProtocol
from vidlex.service.logs import configure_logging
from vidlex.service.settings import Settings, unknown_variables
from vidlex.service.tracing import TracingUnavailable

_log = structlog.get_logger("vidlex.server")


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
        app = create_app(settings, on_fatal=on_fatal, shutdown=shutdown)
    except (KeyFileError, TracingUnavailable) as error:
        _log.error("refused_to_start", detail=str(error))
        return str(error)
    if settings.insecure and not settings.on_loopback:
        _log.warning("insecure", detail="every client that can reach this address has full access")
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http=RequestTimeoutProtocol,  # on h11: httptools does not bound the size of headers
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=math.ceil(settings.shutdown_grace_seconds),
        timeout_keep_alive=15,
        h11_max_incomplete_event_size=64 << 10,
        ws="none",
    )
    server = _Server(config, app, shutdown, settings, on_ready)
    for sock in sockets or ():
        # Not set by every event loop. Without it, the client's delayed acknowledgement adds 40 ms to responses of
        # several segments.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    server.run(sockets)
    return failure if server.started else failure or "the server could not start listening"


class _Server(uvicorn.Server):
    """Logs its address, reports when it is ready, and shuts down gracefully before it closes its port.

    After the first signal, new requests get 503 until the accepted ones are finished and ``drain_seconds`` are over.
    Then, after ``shutdown_grace_seconds`` or at a second signal, uvicorn's own shutdown begins.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        app: FastAPI,
        shutdown: GracefulShutdown,
        settings: Settings,
        on_ready: Callable[[str, str], None],
    ) -> None:
        super().__init__(config)
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

    async def on_tick(self, counter: int) -> bool:
        if not self._was_ready:
            self._report_when_ready()
        if self._graceful_shutdown.has_begun and not self.should_exit:
            seconds = monotonic() - self._signalled_at
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
