"""What surrounds every request: its id, the log line, the count, security headers, and the last net for errors."""

from __future__ import annotations

import re
import secrets
from contextlib import ExitStack
from time import monotonic

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vidlex.service.errors import Forbidden, Stopping
from vidlex.service.http.guard import bare_path, drop_body
from vidlex.service.http.problems import CODE_KEY, error_response, internal_error_response
from vidlex.service.http.shutdown import Draining
from vidlex.service.metrics import Metrics
from vidlex.service.tracing import RequestSpan, Traces

log = structlog.get_logger("vidlex.access")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_QUIET_ROUTES = ("/livez", "/readyz", "/metrics")
_SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
}


class RequestContext:
    """Outermost middleware, plain ASGI: it must neither buffer nor hide the body's stream."""

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        answered_hosts: frozenset[str] | None,
        draining: Draining,
        traces: Traces | None = None,
    ) -> None:
        self._app = app
        self._draining = draining
        self._metrics = metrics
        self._hosts = answered_hosts
        self._traces = traces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = monotonic()
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(16)
        scope["vidlex_request_id"] = request_id
        quiet = bare_path(scope["path"]) in _QUIET_ROUTES
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                answer = MutableHeaders(scope=message)
                answer["X-Request-Id"] = request_id
                for name, value in _SECURITY_HEADERS.items():
                    answer.setdefault(name, value)
                answer.setdefault("Cache-Control", "no-store")
                if self._draining.has_begun:
                    answer["Connection"] = "close"
            await send(message)

        with ExitStack() as around:
            span = None
            if self._traces is not None and not quiet:
                span = around.enter_context(self._traces.request(headers, _method_of(scope), request_id))
            logged = (
                {"request_id": request_id} if span is None else {"request_id": request_id, "trace_id": span.trace_id}
            )
            around.enter_context(structlog.contextvars.bound_contextvars(**logged))
            try:
                self._check_origin(headers, scope["method"])
                if quiet:
                    await self._app(scope, receive, send_with_headers)
                else:
                    with self._draining.accept():
                        await self._app(scope, receive, send_with_headers)
            except (Forbidden, Stopping) as error:
                await drop_body(scope, receive)
                await error_response(error, request_id)(scope, receive, send_with_headers)
            except Exception:
                log.exception("internal_error", method=scope["method"], path=scope["path"])
                if status:
                    raise  # half an answer is out: only breaking the connection tells the client
                await internal_error_response(request_id)(scope, receive, send_with_headers)
            finally:
                self._finish(scope, status, monotonic() - started, span)

    def _check_origin(self, headers: Headers, method: str) -> None:
        """Keep foreign web pages out: on loopback no key may be asked for, and a browser reaches it."""
        host = _host_name(headers.get("host", ""))
        if self._hosts is not None and host not in self._hosts:
            raise Forbidden("This host name is not answered; the setting VIDLEX_ALLOWED_HOSTS can allow it")
        if method not in _SAFE_METHODS and headers.get("sec-fetch-site") == "cross-site":
            raise Forbidden("Requests from web pages of other sites are not allowed")

    def _finish(self, scope: Scope, status: int, seconds: float, span: RequestSpan | None) -> None:
        route = route_of(scope)
        method = _method_of(scope)
        if span is not None:
            span.tell(method, route, status or 499, scope.get(CODE_KEY))
        self._metrics.requests.labels(method, route, str(status or 499)).inc()
        self._metrics.request_seconds.labels(route).observe(seconds)
        if (code := scope.get(CODE_KEY)) is not None:
            self._metrics.refusals.labels(code).inc()
        if route not in _QUIET_ROUTES:
            log.info(
                "request", method=scope["method"], path=scope["path"], status=status or 499, ms=round(seconds * 1000)
            )


def _method_of(scope: Scope) -> str:
    """One of a few, as ``route_of``."""
    return scope["method"] if scope["method"] in ("GET", "HEAD", "POST", "PATCH", "DELETE") else "OTHER"


def route_of(scope: Scope) -> str:
    """The route's template without /v1, so that the number of time series does not grow with the paths asked for."""
    path = getattr(scope.get("route"), "path", None)
    return bare_path(str(path)) if path else "unmatched"


def _host_name(host: str) -> str:
    """``Host`` without its port, in lower case; an IPv6 address without its brackets."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]
