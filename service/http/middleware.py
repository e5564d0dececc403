"""Request ids, access log, metrics, traces, security headers, origins and unexpected errors."""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection
from contextlib import ExitStack
from time import monotonic

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vidlex.service.errors import Forbidden, InvalidRequest, Stopping
from vidlex.service.http.graceful_shutdown import GracefulShutdown
from vidlex.service.http.guard import SAFE_METHODS, discard_body, unversioned_path
from vidlex.service.http.problems import CODE_KEY, REQUEST_ID_KEY, error_response, internal_error_response
from vidlex.service.metrics import Metrics
from vidlex.service.tracing import RequestSpan, RequestTracer

_log = structlog.get_logger("vidlex.http")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_UNLOGGED_ROUTES = ("/livez", "/readyz", "/metrics")
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
    """The outermost layer. Plain ASGI, so that bodies are streamed without buffering."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: Metrics,
        allowed_hosts: frozenset[str] | None,
        shutdown: GracefulShutdown,
        cors_origins: Collection[str] = (),
        tracer: RequestTracer | None = None,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._hosts = allowed_hosts
        self._shutdown = shutdown
        self._cors_origins = cors_origins
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = monotonic()
        headers = Headers(scope=scope)
        client_id = headers.get("x-request-id", "")
        request_id = client_id if _REQUEST_ID.fullmatch(client_id) else secrets.token_hex(16)
        scope[REQUEST_ID_KEY] = request_id
        is_head = scope["method"] == "HEAD"
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                response_headers = MutableHeaders(scope=message)
                response_headers["X-Request-Id"] = request_id
                for name, value in _SECURITY_HEADERS.items():
                    response_headers.setdefault(name, value)
                response_headers.setdefault("Cache-Control", "no-store")
                if self._shutdown.has_begun:
                    response_headers["Connection"] = "close"
            elif is_head and message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        with ExitStack() as stack:
            span = None
            if self._tracer is not None and not _is_unlogged(scope):
                span = stack.enter_context(self._tracer.start_request(headers, _method_of(scope), request_id))
            log_fields = {"request_id": request_id} | ({} if span is None else {"trace_id": span.trace_id})
            stack.enter_context(structlog.contextvars.bound_contextvars(**log_fields))
            try:
                _check_framing(headers)
                self._check_origin(headers, scope["method"])
                await self._app(scope, receive, send_with_headers)
            except (InvalidRequest, Forbidden) as error:
                await discard_body(scope, receive)
                await error_response(error, request_id)(scope, receive, send_with_headers)
            finally:
                self._finish(scope, status, monotonic() - started, span)

    def _check_origin(self, headers: Headers, method: str) -> None:
        """Raises Forbidden for other web sites, which could use a service on loopback that requires no key."""
        host = _host_name(headers.get("host", ""))
        if self._hosts is not None and host not in self._hosts:
            raise Forbidden("The Host header is not allowed; add it to VIDLEX_ALLOWED_HOSTS")
        is_allowed = "*" in self._cors_origins or headers.get("origin") in self._cors_origins
        if method not in SAFE_METHODS and _is_from_other_site(headers) and not is_allowed:
            raise Forbidden("Requests of other web sites are not allowed; add their origin to VIDLEX_CORS_ORIGINS")

    def _finish(self, scope: Scope, status: int, seconds: float, span: RequestSpan | None) -> None:
        route = route_of(scope)
        method = _method_of(scope)
        if span is not None:
            span.set_outcome(method, route, status or 499, scope.get(CODE_KEY))
        self._metrics.requests.labels(method, route, str(status or 499)).inc()
        self._metrics.request_seconds.labels(route).observe(seconds)
        if (code := scope.get(CODE_KEY)) is not None:
            self._metrics.refusals.labels(code).inc()
        if route not in _UNLOGGED_ROUTES:
            _log.info(
                "request", method=scope["method"], path=scope["path"], status=status or 499, ms=round(seconds * 1000)
            )


class ErrorBoundary:
    """Answers unexpected errors with 500 and, during a shutdown, new requests with 503.

    Inside the CORS layer, so that browsers can read these responses too.
    """

    def __init__(self, app: ASGIApp, shutdown: GracefulShutdown) -> None:
        self._app = app
        self._shutdown = shutdown

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        has_begun = False

        async def send_and_note(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        request_id = scope[REQUEST_ID_KEY]
        try:
            if _is_unlogged(scope):
                await self._app(scope, receive, send_and_note)
            else:
                with self._shutdown.track_request():
                    await self._app(scope, receive, send_and_note)
        except Stopping as error:
            await discard_body(scope, receive)
            await error_response(error, request_id)(scope, receive, send_and_note)
        except Exception:
            _log.exception("internal_error", method=scope["method"], path=scope["path"])
            if has_begun:
                raise  # only closing the connection reports the error
            await internal_error_response(request_id)(scope, receive, send_and_note)


def _check_framing(headers: Headers) -> None:
    """A proxy may see another end of the body, and take what follows for another request (RFC 9112, section 6.3)."""
    if "transfer-encoding" in headers and "content-length" in headers:
        raise InvalidRequest(
            "A request must not have both Content-Length and Transfer-Encoding", headers={"Connection": "close"}
        )


def _is_from_other_site(headers: Headers) -> bool:
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site not in ("same-origin", "none")  # same-site includes other ports of localhost
    # Browsers send it to https and loopback only. Other sites cannot add a key, and a proxy may have changed Host.
    origin = headers.get("origin")
    has_key = "authorization" in headers or "x-api-key" in headers
    return origin is not None and not has_key and origin.partition("://")[2] != headers.get("host", "").lower()


def _is_unlogged(scope: Scope) -> bool:
    return unversioned_path(scope["path"]) in _UNLOGGED_ROUTES


def _method_of(scope: Scope) -> str:
    return scope["method"] if scope["method"] in ("GET", "HEAD", "POST", "PATCH", "DELETE") else "OTHER"


def route_of(scope: Scope) -> str:
    """Template without /v1: bounds the number of metric time series."""
    path = getattr(scope.get("route"), "path", None)
    return unversioned_path(str(path)) if path else "unmatched"


def _host_name(host: str) -> str:
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]
