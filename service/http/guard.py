"""Authentication and authorization of requests, before their body is read.

Denies by default: a path that is not listed here requires an admin key, whether it exists or not.
"""

from __future__ import annotations

from contextlib import suppress

import anyio
import anyio.to_thread
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vidlex.service.access.access_control import AccessControl
from vidlex.service.access.api_keys import Scope as KeyScope
from vidlex.service.access.token_buckets import RateLimitDecision
from vidlex.service.errors import Forbidden, RateLimited, StoreUnavailable, Unauthorized, VidlexError
from vidlex.service.http.addresses import client_group
from vidlex.service.http.problems import REQUEST_ID_KEY, error_response

PUBLIC_PATHS = frozenset(
    {
        "/livez",
        "/readyz",
        "/",
        "/app.js",
        "/style.css",
        "/docs",
        "/docs/init.js",
        "/docs/swagger-ui.css",
        "/docs/swagger-ui-bundle.js",
    }
)
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_NON_ADMIN_RESOURCES = frozenset(
    {"labels", "classify", "calibration", "jobs", "webhooks", "videos", "feedback", "exports", "openapi.json"}
    | {"metrics"}
)
# A job is a classification that is done later: a key that may classify may submit, cancel and retry one.
READ_ONLY_POSTS = ("/classify", "/labels:preview", "/jobs", "/videos:search")
_KEY_HEADERS = (b"authorization", b"x-api-key")
_MAX_HEADER_BYTES = 256
_MAX_DISCARDED_BYTES = 1 << 20
_MAX_DISCARD_SECONDS = 0.5
_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="vidlex"'}


class AccessGuard:
    """Runs inside RequestContext. Stores the Principal in ``request.state.principal``."""

    def __init__(self, app: ASGIApp, access: AccessControl) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or unversioned_path(scope["path"]) in PUBLIC_PATHS:
            await self._app(scope, receive, send)
            return
        decision: RateLimitDecision | None = None
        try:
            if self._access.closes_with_first_key and _presents_key(scope) and _required_scope_of(scope) == "admin":
                # The first key may have just been created in the store itself. Requests for labels and videos do not
                # wait for the store: they are allowed without a key until the next poll.
                with suppress(StoreUnavailable):
                    await anyio.to_thread.run_sync(self._access.refresh)
            if not self._access.is_open:
                decision = self._authorize(scope)
        except VidlexError as error:
            if isinstance(error, Unauthorized):
                error.headers |= _CHALLENGE
            await discard_body(scope, receive)
            await error_response(error, str(scope.get(REQUEST_ID_KEY, "")))(scope, receive, send)
            return
        if decision is None:
            await self._app(scope, receive, send)
            return
        rate_headers = [(name.lower().encode(), value.encode()) for name, value in decision.headers().items()]

        async def send_with_rate_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *rate_headers]}
            await send(message)

        await self._app(scope, receive, send_with_rate_headers)

    def _authorize(self, scope: Scope) -> RateLimitDecision | None:
        client = scope.get("client")
        record = self._access.authenticate(presented_key(scope), client_group(client[0]) if client else "")
        principal = record.principal
        scope.setdefault("state", {})["principal"] = principal  # the logs name the key of refused requests too
        decision = self._access.check_rate(record)
        if decision is not None and not decision.is_allowed:
            raise RateLimited(retry_after_seconds=decision.retry_after_seconds, headers=decision.headers())
        path, required = unversioned_path(scope["path"]), _required_scope_of(scope)
        if not principal.allows(required):
            raise Forbidden(f"This request requires an API key of scope {required}; this key has {principal.scope}")
        if path == "/metrics" and principal.namespace is not None and principal.scope != "admin":
            raise Forbidden("Metrics cover all namespaces; this API key is bound to one")
        return decision


def _required_scope_of(scope: Scope) -> KeyScope:
    return required_scope(scope["method"], unversioned_path(scope["path"]))


def _presents_key(scope: Scope) -> bool:
    return any(name in _KEY_HEADERS for name, _ in scope["headers"])


def presented_key(scope: Scope) -> str:
    """Raises Unauthorized unless exactly one key is sent."""
    keys: set[str] = set()
    num_authorizations = 0
    for name, value in scope["headers"]:
        if name not in _KEY_HEADERS:
            continue
        text = value[: _MAX_HEADER_BYTES + 1].decode("latin-1").strip()
        if name == b"authorization":
            num_authorizations += 1
            scheme, _, text = text.partition(" ")
            if scheme.lower() != "bearer":
                raise Unauthorized("Send the API key as `Authorization: Bearer KEY` or `X-API-Key: KEY`")
        keys.add(text.strip())
    if not keys:
        raise Unauthorized("Send an API key as `Authorization: Bearer KEY` or `X-API-Key: KEY`")
    if len(keys) > 1 or num_authorizations > 1:
        raise Unauthorized("Send exactly one API key")
    return keys.pop()


def required_scope(method: str, path: str) -> KeyScope:
    resource = path[1:].partition("/")[0].partition(":")[0]
    if resource not in _NON_ADMIN_RESOURCES:
        return "admin"
    if resource == "webhooks":  # URLs of deliveries may contain secrets
        return "write"
    if method in SAFE_METHODS or (method == "POST" and path in READ_ONLY_POSTS):
        return "read"
    if resource == "jobs" and (method == "DELETE" or (method == "POST" and path.endswith(":retry"))):
        return "read"
    return "write"


def unversioned_path(path: str) -> str:
    # The path is not normalised in any other way.
    return path.removeprefix("/v1") if path.startswith("/v1/") else path


async def discard_body(scope: Scope, receive: Receive) -> None:
    """Read a part of the body; otherwise the client sees a reset, not the response."""
    if any(name == b"expect" for name, _ in scope["headers"]):
        return  # the client waits for "100 Continue" and has sent no body
    num_bytes = 0
    with anyio.move_on_after(_MAX_DISCARD_SECONDS):
        while num_bytes <= _MAX_DISCARDED_BYTES:
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if message["type"] != "http.request" or not message.get("more_body"):
                return
