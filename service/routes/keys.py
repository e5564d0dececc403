"""/keys: make, list and revoke API keys. The guard lets only administrators come here."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from vidlex.service.access.api_keys import ANY_NAMESPACE, KeyRecord, Principal
from vidlex.service.access.gate import Gate, make_record
from vidlex.service.errors import Forbidden, InvalidParameter, NotFound
from vidlex.service.http.context import context_of, quota_of
from vidlex.service.schemas.base import ProblemView, validate
from vidlex.service.schemas.keys import KeyListView, KeyView, NewKeyBody, NewKeyView

router = APIRouter(tags=["keys"], responses={"default": {"model": ProblemView, "description": "problem+json"}})

_BODY: dict[str, Any] = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": NewKeyBody.model_json_schema()}}}
}


@router.post(
    "/keys", status_code=201, response_model=NewKeyView, summary="Make an API key; shown once", openapi_extra=_BODY
)
async def create_key(request: Request) -> Response:
    context, gate = context_of(request), _gate_of(request)
    body = validate(NewKeyBody, await context.spool.read_json(request))
    namespace = None if body.namespace == ANY_NAMESPACE else body.namespace
    bound = _bound_to(request)
    if bound is not None and namespace != bound:
        raise Forbidden("This API key belongs to one namespace and makes keys for that one alone")
    if gate.closes_with_a_key and (body.scope != "admin" or namespace is not None or body.expires_in_seconds):
        raise InvalidParameter(
            "The first key closes the service to everybody without one: it must be an administrator's of all "
            "namespaces that does not expire, or nobody could make another"
        )
    record, text = make_record(
        scope=body.scope,
        namespace=namespace,
        name=body.name,
        expires_at_ms=None
        if body.expires_in_seconds is None
        else time.time_ns() // 1_000_000 + body.expires_in_seconds * 1000,
        requests_per_second=body.requests_per_second,
        burst=body.burst,
        max_labels=min((quota for quota in (body.max_labels, quota_of(request)) if quota is not None), default=None),
    )

    def work() -> None:
        gate.store.add(record)
        gate.refresh()

    await context.in_label_thread(work)
    view = NewKeyView(**_view(record, None).model_dump(), key=text)
    return Response(view.model_dump_json(), status_code=201, media_type="application/json")


@router.get("/keys", response_model=KeyListView, summary="The API keys in the store, without their secrets")
async def list_keys(request: Request) -> Response:
    gate, bound = _gate_of(request), _bound_to(request)
    found = await context_of(request).in_label_thread(gate.store.list)
    data = [_view(record, used) for record, used in found if bound is None or record.namespace == bound]
    return Response(KeyListView(data=data).model_dump_json(), media_type="application/json")


@router.delete("/keys/{key_id}", status_code=204, summary="Revoke an API key, everywhere within a second")
async def revoke_key(request: Request, key_id: str) -> Response:
    gate, bound = _gate_of(request), _bound_to(request)

    def work() -> None:
        if bound is not None and not any(r.id == key_id and r.namespace == bound for r, _ in gate.store.list()):
            raise NotFound("There is no such API key")
        gate.store.revoke(key_id)
        gate.refresh()

    await context_of(request).in_label_thread(work)
    return Response(status_code=204)


def _gate_of(request: Request) -> Gate:
    gate = request.app.state.gate
    assert isinstance(gate, Gate)
    return gate


def _bound_to(request: Request) -> str | None:
    principal: Principal | None = getattr(request.state, "principal", None)
    return None if principal is None else principal.namespace


def _view(record: KeyRecord, last_used_at_ms: int | None) -> KeyView:
    return KeyView(
        id=record.id,
        name=record.name,
        scope=record.scope,
        namespace=record.namespace or ANY_NAMESPACE,
        created_at_ms=record.created_at_ms,
        expires_at_ms=record.expires_at_ms,
        last_used_at_ms=last_used_at_ms,
        requests_per_second=record.requests_per_second,
        burst=record.burst,
        max_labels=record.max_labels,
    )
