"""Lets a request in or not, before any byte of its body is read. Denies by default: a path that is named nowhere here
needs a key, and an administrator's one, whether it exists or not."""

from __future__ import annotations

import anyio
from starlette.types import ASGIApp, Receive, Scope, Send

from vidlex.service.access.api_keys import Scope as KeyScope
from vidlex.service.access.gate import Gate, principal_of
from vidlex.service.access.token_buckets import Grant
from vidlex.service.errors import Forbidden, RateLimited, Unauthorized, VidlexError
from vidlex.service.http.problems import error_response

PUBLIC = frozenset({"/livez", "/readyz", "/", "/app.js", "/style.css"})
"""Health, for probes that hold no secret, and the page, which asks its reader for a key. Compared in full."""
_KNOWN = frozenset({"labels", "classify", "openapi.json", "metrics"})
"""First parts of the paths that readers and writers use."""
_READING_POSTS = ("/classify", "/labels:preview")
_READING_METHODS = ("GET", "HEAD", "OPTIONS")
_MAX_HEADER_BYTES = 256
_DRAIN_BYTES = 1 << 20
_DRAIN_SECONDS = 0.5


class AccessGuard:
    """Inside RequestContext, around everything else. Leaves the Principal in ``request.state.principal``."""

    def __init__(self, app: ASGIApp, gate: Gate) -> None:
        self._app = app
        self._gate = gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or bare_path(scope["path"]) in PUBLIC:
            await self._app(scope, receive, send)
            return
        grant: Grant | None = None
        try:
            if not self._gate.is_open:
                grant = self._check(scope)
        except VidlexError as error:
            headers = dict(getattr(error, "headers", {}))
            if isinstance(error, Unauthorized):
                headers["WWW-Authenticate"] = 'Bearer realm="vidlex"'
            response = error_response(error, str(scope.get("vidlex_request_id", "")))
            response.headers.update(headers)
            await drop_body(scope, receive)
            await response(scope, receive, send)
            return
        if grant is None:
            await self._app(scope, receive, send)
            return
        extra = [(name.lower().encode(), value.encode()) for name, value in grant.headers().items()]

        async def send_with_limit(message: dict[str, object]) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *extra]}  # type: ignore[misc]
            await send(message)

        await self._app(scope, receive, send_with_limit)  # type: ignore[arg-type]

    def _check(self, scope: Scope) -> Grant | None:
        client = scope.get("client")
        record = self._gate.authenticate(presented_key(scope), client[0] if client else "")
        grant = self._gate.admit(record)
        if grant is not None and not grant.allowed:
            error = RateLimited()
            error.retry_after_seconds = grant.retry_after_seconds
            error.headers = grant.headers()  # type: ignore[attr-defined]
            raise error
        principal = principal_of(record)
        path, method = bare_path(scope["path"]), scope["method"]
        wanted = wanted_scope(method, path)
        if not principal.allows(wanted):
            raise Forbidden(f"This API key's scope is {principal.scope}; this needs {wanted}")
        if path == "/metrics" and principal.namespace is not None and principal.scope != "admin":
            raise Forbidden("Metrics tell of all namespaces; this API key belongs to one")
        scope.setdefault("state", {})["principal"] = principal
        return grant


def presented_key(scope: Scope) -> str:
    """The one key of ``Authorization: Bearer`` or ``X-API-Key``. Raises Unauthorized when there is none or more."""
    found: set[str] = set()
    num_authorizations = 0
    for name, value in scope["headers"]:
        if name not in (b"authorization", b"x-api-key"):
            continue
        text = value[: _MAX_HEADER_BYTES + 1].decode("latin-1").strip()
        if name == b"authorization":
            num_authorizations += 1
            scheme, _, text = text.partition(" ")
            if scheme.lower() != "bearer":
                raise Unauthorized("Send the API key as `Authorization: Bearer KEY` or as `X-API-Key: KEY`")
        found.add(text.strip())
    if not found:
        raise Unauthorized("Send an API key, as `Authorization: Bearer KEY` or as `X-API-Key: KEY`")
    if len(found) > 1 or num_authorizations > 1:
        raise Unauthorized("Send one API key, once")
    return found.pop()


def wanted_scope(method: str, path: str) -> KeyScope:
    """The least scope for a request; ``path`` without /v1."""
    first = path[1:].partition("/")[0].partition(":")[0]
    if first not in _KNOWN:
        return "admin"
    if method in _READING_METHODS or (method == "POST" and path in _READING_POSTS):
        return "read"
    return "write"


def bare_path(path: str) -> str:
    """As the routes see it, which are served with and without /v1. No other spelling is forgiven."""
    return path.removeprefix("/v1") if path.startswith("/v1/") else path


async def drop_body(scope: Scope, receive: Receive) -> None:
    """Drop what a client has already begun to send: else it would see a broken connection, not the answer."""
    if any(name == b"expect" for name, _ in scope["headers"]):
        return  # it waits for "100 Continue" and has sent nothing yet
    num_bytes = 0
    with anyio.move_on_after(_DRAIN_SECONDS):
        while num_bytes <= _DRAIN_BYTES:
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if message["type"] != "http.request" or not message.get("more_body"):
                return
