"""What is kept of a request once it is answered: its log line, its metrics, its entries in the audit log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import anyio
import structlog
from starlette.types import Scope

from vidlex.service.audit import AuditLog, Changes
from vidlex.service.http.guard import READ_ONLY_POSTS, SAFE_METHODS, unversioned_path
from vidlex.service.http.problems import CODE_KEY, REQUEST_ID_KEY
from vidlex.service.http.threads import run_in_thread
from vidlex.service.telemetry.metrics import Metrics
from vidlex.service.telemetry.tracing import RequestSpan

_log = structlog.get_logger("vidlex.http")

UNLOGGED_ROUTES = ("/livez", "/readyz", "/metrics")
_DISCONNECTED = 499


@dataclass
class RequestFacts:
    """Filled in while the request is at work."""

    changes: Changes
    stage_seconds: dict[str, float]
    status: int = 0
    num_bytes: int = 0  # of the body, received
    span: RequestSpan | None = field(default=None, repr=False)


class RequestLog:
    def __init__(self, metrics: Metrics, audit: AuditLog) -> None:
        self._metrics = metrics
        self._audit = audit
        self._audit_threads = anyio.CapacityLimiter(1)

    async def finish(self, scope: Scope, facts: RequestFacts, seconds: float) -> None:
        route, method, status = route_of(scope), method_of(scope), facts.status or _DISCONNECTED
        code = scope.get(CODE_KEY)
        if facts.span is not None:
            facts.span.set_outcome(method, route, status, code)
        self._metrics.requests.labels(method, route, str(status)).inc()
        self._metrics.request_seconds.labels(method, route, str(status)).observe(seconds)
        if code is not None:
            self._metrics.refusals.labels(code).inc()
        if route in UNLOGGED_ROUTES:
            return
        who = _who(scope)
        known: dict[str, Any] = {name: who[name] for name in ("key_id", "namespace") if who.get(name) is not None}
        if facts.num_bytes:
            known["bytes"] = facts.num_bytes
        if facts.stage_seconds:
            known["stage_ms"] = {name: round(1000 * stage) for name, stage in facts.stage_seconds.items()}
        if code is not None:
            known["code"] = code
        _log.info(
            "request", method=scope["method"], path=scope["path"], status=status, ms=round(seconds * 1000), **known
        )
        outcome = who | {
            "method": scope["method"],
            "route": route,
            "request_id": scope.get(REQUEST_ID_KEY),
            "status": status,
            "code": code,
        }
        await self._write_audit(scope, outcome, facts.changes)

    async def _write_audit(self, scope: Scope, outcome: Mapping[str, Any], changes: Changes) -> None:
        key_id, status = outcome["key_id"], outcome["status"]
        if key_id is not None and self._audit.is_first_use(key_id, outcome["address"]):
            self._audit.write("key.use", outcome)
        if changes.made:
            # A thousand labels with metadata are megabytes, too much for the event loop
            with anyio.CancelScope(shield=True):
                await run_in_thread(lambda: self._audit.write_changes(changes, outcome), self._audit_threads)
        if status in (401, 403):
            self._audit.write("access.refused", outcome)
        elif 400 <= status != 429 and not changes.made and _may_change(scope):
            self._audit.write("request.failed", outcome)


def _may_change(scope: Scope) -> bool:
    path = unversioned_path(scope["path"])
    return scope["method"] not in SAFE_METHODS and path not in READ_ONLY_POSTS


def _who(scope: Scope) -> dict[str, Any]:
    state = scope.get("state", {})
    principal, client = state.get("principal"), scope.get("client")
    return {
        "key_id": None if principal is None else principal.key_id,
        "scope": None if principal is None else principal.scope,
        "address": client[0] if client else "",
        "namespace": state.get("namespace"),
    }


def is_unlogged(scope: Scope) -> bool:
    return unversioned_path(scope["path"]) in UNLOGGED_ROUTES


def method_of(scope: Scope) -> str:
    return scope["method"] if scope["method"] in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE") else "OTHER"


def route_of(scope: Scope) -> str:
    """Template without /v1: bounds the number of metric time series."""
    path = getattr(scope.get("route"), "path_format", None)
    return unversioned_path(str(path)) if path else "unmatched"
