"""Request ids, traces, security headers, origins and unexpected errors."""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection
from contextlib import ExitStack
from time import monotonic

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vidlex.service.audit import AuditLog, recording
from vidlex.service.bounds import MAX_PATH_BYTES, MAX_QUERY_BYTES
from vidlex.service.errors import FULL_DISK_ERRORS, Forbidden, InvalidRequest, Stopping, StorageFull, UriTooLong
from vidlex.service.http.graceful_shutdown import GracefulShutdown
from vidlex.service.http.guard import PUBLIC_PATHS, SAFE_METHODS, discard_body, unversioned_path
from vidlex.service.http.problems import AT_END_KEY, REQUEST_ID_KEY, error_response, internal_error_response
from vidlex.service.http.request_log import RequestFacts, RequestLog, is_unlogged, method_of
from vidlex.service.telemetry.metrics import Metrics
from vidlex.service.telemetry.tracing import RequestTracer, timing_stages

_log = structlog.get_logger("vidlex.http")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
# Which some proxies and gateways take for those with a hyphen.
_AMBIGUOUS_HEADERS = ("content_length", "transfer_encoding")
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
        audit: AuditLog,
        allowed_hosts: frozenset[str] | None,
        shutdown: GracefulShutdown,
        cors_origins: Collection[str] = (),
        tracer: RequestTracer | None = None,
    ) -> None:
        self._app = app
        self._log = RequestLog(metrics, audit)
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

        async def receive_and_count() -> Message:
            message = await receive()
            facts.num_bytes += len(message.get("body", b""))
            return message

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                facts.status = message["status"]
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
            scope[AT_END_KEY] = stack
            facts = RequestFacts(stack.enter_context(recording()), stack.enter_context(timing_stages()))
            span = None
            if self._tracer is not None and not is_unlogged(scope):
                span = stack.enter_context(self._tracer.start_request(headers, method_of(scope), request_id))
                facts.span = span
            log_fields = {"request_id": request_id} | ({} if span is None else {"trace_id": span.trace_id})
            stack.enter_context(structlog.contextvars.bound_contextvars(**log_fields))
            try:
                _check_framing(scope, headers)
                _check_target(scope)
                self._check_origin(scope, headers)
                await self._app(scope, receive_and_count, send_with_headers)
            except (InvalidRequest, UriTooLong, Forbidden) as error:
                await discard_body(scope, receive_and_count)
                await error_response(error, request_id)(scope, receive, send_with_headers)
            finally:
                await self._log.finish(scope, facts, monotonic() - started)

    def _check_origin(self, scope: Scope, headers: Headers) -> None:
        """Raises Forbidden for other web sites, which could use a service on loopback that requires no key.

        They may show its pages, and a user may follow a link to it. Reading is refused as well: they could not see the
        answer, but they can make the service work.
        """
        host = _host_name(headers.get("host", ""))
        if self._hosts is not None and host not in self._hosts:
            raise Forbidden("The Host header is not allowed; add it to VIDLEX_ALLOWED_HOSTS")
        is_allowed = "*" in self._cors_origins or headers.get("origin") in self._cors_origins
        is_harmless = scope["method"] == "OPTIONS" or (
            scope["method"] in SAFE_METHODS
            and (unversioned_path(scope["path"]) in PUBLIC_PATHS or headers.get("sec-fetch-mode") == "navigate")
        )
        if not is_harmless and not is_allowed and _is_from_other_site(headers):
            raise Forbidden("Requests of other web sites are not allowed; add their origin to VIDLEX_CORS_ORIGINS")


class ErrorBoundary:
    """Answers unexpected errors with 500, a full disk with 507 and, during a shutdown, new requests with 503.

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
            if is_unlogged(scope):
                await self._app(scope, receive, send_and_note)
            else:
                with self._shutdown.track_request():
                    await self._app(scope, receive, send_and_note)
        except Stopping as error:
            await discard_body(scope, receive)
            await error_response(error, request_id)(scope, receive, send_and_note)
        except Exception as error:
            if isinstance(error, OSError) and error.errno in FULL_DISK_ERRORS and not has_begun:
                await discard_body(scope, receive)
                await error_response(StorageFull(internal=str(error)), request_id)(scope, receive, send_and_note)
                return
            _log.exception("internal_error", method=scope["method"], path=scope["path"])
            if has_begun:
                raise  # only closing the connection reports the error
            await internal_error_response(request_id)(scope, receive, send_and_note)


def _check_framing(scope: Scope, headers: Headers) -> None:
    """A proxy may see another end of the body, and take what follows for another request (RFC 9112, section 6.3)."""
    is_chunked = "transfer-encoding" in headers
    if is_chunked and "content-length" in headers:
        problem = "A request must not have both Content-Length and Transfer-Encoding"
    elif is_chunked and scope.get("http_version") == "1.0":
        problem = "HTTP/1.0 has no Transfer-Encoding"
    elif any(name in headers for name in _AMBIGUOUS_HEADERS):
        problem = "Content-Length and Transfer-Encoding are written with a hyphen"
    else:
        return
    raise InvalidRequest(problem, headers={"Connection": "close"})


def _check_target(scope: Scope) -> None:
    """Raises UriTooLong. The frameworks parse the query in the event loop."""
    if len(scope.get("raw_path") or b"") > MAX_PATH_BYTES or len(scope["path"]) > MAX_PATH_BYTES:
        raise UriTooLong(f"A path is at most {MAX_PATH_BYTES} bytes")
    if len(scope["query_string"]) > MAX_QUERY_BYTES:
        raise UriTooLong(f"A query is at most {MAX_QUERY_BYTES} bytes")


def _is_from_other_site(headers: Headers) -> bool:
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site not in ("same-origin", "none")  # same-site includes other ports of localhost
    # Browsers send it to https and loopback only. Other sites cannot add a key, and a proxy may have changed Host. They
    # can add a password, by the user information of a URL.
    if "x-api-key" in headers or headers.get("authorization", "")[:7].lower() == "bearer ":
        return False
    host = headers.get("host", "").lower()
    origin = headers.get("origin")
    if origin is not None:
        return origin.partition("://")[2] != host
    referer = headers.get("referer")
    return referer is not None and referer.partition("://")[2].partition("/")[0].lower() != host


def _host_name(host: str) -> str:
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]
