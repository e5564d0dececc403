"""How many connections there may be, and how long one may be silent. uvicorn bounds neither."""

from __future__ import annotations

import secrets
from collections import Counter
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Protocol

import structlog
from starlette.types import ASGIApp, Receive, Scope, Send

from vidlex.service.errors import TooManyConnections
from vidlex.service.http.addresses import TrustedProxies, client_group
from vidlex.service.http.guard import unversioned_path
from vidlex.service.http.problems import error_response

PROBE_PATHS = ("/livez", "/readyz")
NUM_RESERVED = 64
"""Connections beyond the limit, which are answered only on PROBE_PATHS."""
_LOG_SECONDS = 10.0

_log = structlog.get_logger("vidlex.connections")


@dataclass(frozen=True)
class ConnectionLimits:
    max_connections: int = 4096
    max_per_address: int = 1024  # not of proxies
    head_seconds: float = 20.0
    send_seconds: float = 30.0
    max_unsent_bytes: int = 128 << 20  # of all responses that their clients have not taken yet
    proxies: TrustedProxies = field(default_factory=TrustedProxies)


class Connection(Protocol):
    app: Any
    client: tuple[str, int] | None

    @property
    def is_idle(self) -> bool:
        """Whether it waits for the next request."""

    def is_stalled(self, now: float) -> bool: ...

    def drop(self) -> None:
        """Close it without sending what is left, and remove it from its Connections."""


class Connections:
    """All connections of a process, in its event loop.

    At a limit, the connection that has waited longest for its next request is closed for the new one. If there is none,
    the new one gets an error, except on PROBE_PATHS.
    """

    def __init__(self, limits: ConnectionLimits) -> None:
        self.limits = limits
        self._admitted: dict[Connection, str] = {}  # with the client's address
        self._num_of: Counter[str] = Counter()
        self._idle: dict[Connection, None] = {}  # longest first
        self._reserved: dict[Connection, None] = {}  # oldest first
        self._unsent: dict[Connection, int] = {}  # bytes of those whose client is slow, longest first
        self._unsent_of: Counter[str] = Counter()
        self._num_refused = 0
        self._logged_at = -_LOG_SECONDS

    @property
    def num_connections(self) -> int:
        return len(self._admitted) + len(self._reserved)

    def admit(self, connection: Connection) -> ASGIApp | None:
        """What answers its requests; None if it must be closed at once."""
        host = "" if connection.client is None else connection.client[0]
        address = client_group(host)
        is_client = bool(host) and host not in self.limits.proxies
        if is_client and self._num_of[address] >= self.limits.max_per_address:
            reason = "Too many connections from this address"
            has_place = self._close_idle(address)
        else:
            reason = "Too many connections"
            has_place = len(self._admitted) < self.limits.max_connections or self._close_idle(None)
        if has_place:
            self._admitted[connection] = address
            self._num_of[address] += 1
            app: ASGIApp = connection.app
            return app
        self._log_refusal(reason, address)
        if len(self._reserved) >= NUM_RESERVED:
            oldest = next((other for other in self._reserved if other.is_idle), None)
            if oldest is None:
                return None
            oldest.drop()
        self._reserved[connection] = None
        return _ProbesOnly(connection.app, reason)

    def remove(self, connection: Connection) -> None:
        self._reserved.pop(connection, None)
        self._idle.pop(connection, None)
        self.note_resumed(connection)
        address = self._admitted.pop(connection, None)
        if address is not None:
            self._num_of[address] -= 1
            if not self._num_of[address]:
                del self._num_of[address]

    def note_idle(self, connection: Connection, *, is_idle: bool) -> None:
        if not is_idle:
            self._idle.pop(connection, None)
        elif connection in self._admitted:
            self._idle.setdefault(connection)

    def note_paused(self, connection: Connection, num_bytes: int) -> None:
        """The client takes its response more slowly than it is written. Closes connections if that is too much memory:
        the longest paused ones of the address with the most bytes."""
        address = self._admitted.get(connection)
        if address is None:
            return
        self.note_resumed(connection)
        self._unsent[connection] = num_bytes
        self._unsent_of[address] += num_bytes
        while len(self._unsent) > 1 and self._unsent_of.total() > self.limits.max_unsent_bytes:
            heaviest, _ = max(self._unsent_of.items(), key=lambda item: item[1])
            victim = next(other for other in self._unsent if self._admitted[other] == heaviest)
            _log.warning("response_dropped", reason="too many bytes wait for slow clients", address=heaviest)
            victim.drop()

    def note_resumed(self, connection: Connection) -> None:
        num_bytes = self._unsent.pop(connection, None)
        if num_bytes is not None:
            address = self._admitted[connection]
            self._unsent_of[address] -= num_bytes
            if not self._unsent_of[address]:
                del self._unsent_of[address]

    def drop_stalled(self) -> None:
        """Close connections whose client takes nothing of its response. Call about once per second."""
        now = monotonic()
        for connection in [*self._admitted, *self._reserved]:
            if connection.is_stalled(now):
                _log.info("response_dropped", reason="the client does not read", address=self._admitted.get(connection))
                connection.drop()

    def _close_idle(self, address: str | None) -> bool:
        for other in self._idle:
            if address in (None, self._admitted[other]):
                other.drop()
                return True
        return False

    def _log_refusal(self, reason: str, address: str) -> None:
        self._num_refused += 1
        if monotonic() - self._logged_at >= _LOG_SECONDS:
            self._logged_at = monotonic()
            _log.warning("connections_refused", reason=reason, address=address, num_refused=self._num_refused)


class _ProbesOnly:
    """Answers health checks, and all else with an error, and closes the connection."""

    def __init__(self, app: ASGIApp, reason: str) -> None:
        self._app = app
        self._reason = reason

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if unversioned_path(scope["path"]) in PROBE_PATHS:
            scope["headers"] = [*scope["headers"], (b"connection", b"close")]  # uvicorn then closes it
            await self._app(scope, receive, send)
            return
        request_id = secrets.token_hex(16)
        error = TooManyConnections(self._reason, headers={"Connection": "close", "X-Request-Id": request_id})
        await error_response(error, request_id)(scope, receive, send)
