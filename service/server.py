"""Runs the application under uvicorn."""

from __future__ import annotations

import math
import socket
from time import monotonic
from types import FrameType

import structlog
import uvicorn

from vidlex.service.access.key_file import KeyFileError
from vidlex.service.app import create_app
from vidlex.service.http.shutdown import Draining
from vidlex.service.logs import configure_logging
from vidlex.service.settings import Settings, unknown_variables
from vidlex.service.tracing import TracesUnavailable

log = structlog.get_logger("vidlex.server")


def serve(settings: Settings, *, sockets: list[socket.socket] | None = None) -> str | None:
    """Run until a signal. Returns None then, or why the service could not start; the log has it too.

    ``sockets`` that are bound already take the place of the settings' host and port.
    """
    configure_logging(settings.log_level, settings.log_format)
    for line in unknown_variables():
        log.warning("unknown_variable", detail=line)
    failed: str | None = None
    draining = Draining()

    def on_fatal(reason: str) -> None:
        nonlocal failed
        failed = reason
        server.should_exit = True

    try:
        app = create_app(settings, on_fatal=on_fatal, draining=draining)
    except (KeyFileError, TracesUnavailable) as error:
        log.error("refused_to_start", detail=str(error))
        return str(error)
    if settings.insecure and not settings.on_loopback:
        log.warning("insecure", detail="everybody who reaches this address may use and change everything")
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http="h11",  # the other parser that uvicorn knows has no bound on headers
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=math.ceil(settings.shutdown_grace_seconds),
        timeout_keep_alive=15,
        h11_max_incomplete_event_size=64 << 10,
        ws="none",
    )
    server = _Server(config, draining, settings)
    for sock in sockets or ():
        # not every event loop does it; without it, an answer of more than one segment waits 40 ms for the client's
        # delayed acknowledgement
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    server.run(sockets)
    return failed if server.started else failed or "the server could not listen or be set up"


class _Server(uvicorn.Server):
    """Says where it listens, which matters when port 0 was asked for, and drains before it closes its port.

    At the first signal new requests are refused with an answer, and those at work are finished; then, or when
    ``shutdown_grace_seconds`` are over, or at a second signal, it ends as uvicorn does.
    """

    def __init__(self, config: uvicorn.Config, draining: Draining, settings: Settings) -> None:
        super().__init__(config)
        self._draining = draining
        self._grace_seconds = settings.shutdown_grace_seconds
        self._drain_seconds = settings.drain_seconds
        self._signal = 0
        self._signalled_at = 0.0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._draining.has_begun or not self.started:
            super().handle_exit(sig, frame)
            return
        self._signal, self._signalled_at = sig, monotonic()
        self._draining.begin()

    async def on_tick(self, counter: int) -> bool:
        if self._draining.has_begun and not self.should_exit:
            seconds = monotonic() - self._signalled_at
            if seconds >= self._drain_seconds and (
                not self._draining.num_requests or seconds >= max(self._grace_seconds, self._drain_seconds)
            ):
                left = max(1.0, self._grace_seconds - seconds)
                self.config.timeout_graceful_shutdown = math.ceil(left)
                super().handle_exit(self._signal, None)
        return await super().on_tick(counter)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in self.servers:
            for sock in listener.sockets:
                host, port = sock.getsockname()[:2]
                log.info("listening", host=host, port=port, url=f"http://{f'[{host}]' if ':' in host else host}:{port}")
