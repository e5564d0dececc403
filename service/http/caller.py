"""Who sent a request: its API key, or its address."""

from __future__ import annotations

from fastapi import Request

from vidlex.service.access.api_keys import Principal
from vidlex.service.errors import Forbidden
from vidlex.service.http.addresses import client_group


def principal_of(request: Request) -> Principal | None:
    """None if the service requires no key."""
    principal: Principal | None = getattr(request.state, "principal", None)
    return principal


def bound_namespace_of(request: Request) -> str | None:
    """None: the key can reach every namespace."""
    principal = principal_of(request)
    return None if principal is None else principal.namespace


def client_of(request: Request) -> str:
    """The id of the request's API key, else the ``client_group`` of the client's address, else ""."""
    principal = principal_of(request)
    if principal is not None:
        return principal.key_id
    return client_group(request.client.host) if request.client else ""


def quota_of(request: Request) -> int | None:
    principal = principal_of(request)
    return None if principal is None else principal.max_labels


def require_write(request: Request, action: str) -> None:
    """For what only some requests of a route do. Raises Forbidden."""
    principal = principal_of(request)
    if principal is not None and not principal.allows("write"):
        raise Forbidden(f"{action} requires an API key of scope write; this key has {principal.scope}")
