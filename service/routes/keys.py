"""/keys: create, list and revoke API keys. AccessGuard admits administrators only."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from vidlex.service.access.access_control import AccessControl, create_key_record
from vidlex.service.access.api_keys import ANY_NAMESPACE, KeyRecord
from vidlex.service.errors import Forbidden, InvalidParameter
from vidlex.service.http.caller import bound_namespace_of, principal_of
from vidlex.service.http.context import context_of
from vidlex.service.http.openapi.document import json_body
from vidlex.service.http.responses import json_response
from vidlex.service.schemas.base import validator_of
from vidlex.service.schemas.keys import ApiKeyListView, ApiKeyView, NewApiKeyView, NewKeyBody

router = APIRouter(tags=["keys"])


@router.post(
    "/keys",
    status_code=201,
    response_model=NewApiKeyView,
    response_description="The key with its secret.",
    summary="Create an API key",
    description="Creates a key; its secret is in this response only. On a service without keys, the first key locks "
    "out clients without one, and must have the scope `admin`, all namespaces and no expiry. A key with a namespace, a "
    "limit or an expiry creates only keys with at most its own, and shares its rate limit with them.",
    openapi_extra=json_body(NewKeyBody),
)
async def create_key(request: Request) -> Response:
    context, access = context_of(request), _access_of(request)
    body = await context.spool.read_json(request, validator_of(NewKeyBody))
    namespace = None if body.namespace == ANY_NAMESPACE else body.namespace
    bound = bound_namespace_of(request)
    if bound is not None and namespace != bound:
        raise Forbidden(f"This API key is bound to the namespace {bound} and can only create keys for it")
    if access.closes_with_first_key and (body.scope != "admin" or namespace is not None or body.expires_in_seconds):
        raise InvalidParameter(
            "The first key locks out clients without a key: it must have the scope admin, all namespaces and no expiry"
        )
    record, text = create_key_record(
        scope=body.scope,
        namespace=namespace,
        name=body.name,
        expires_at_ms=None
        if body.expires_in_seconds is None
        else time.time_ns() // 1_000_000 + body.expires_in_seconds * 1000,
        requests_per_second=body.requests_per_second,
        burst=body.burst,
        max_labels=body.max_labels,
    )
    creator = principal_of(request)
    if creator is not None:
        record = access.limit_new_key(record, creator.key_id)

    def work() -> None:
        access.store.add(record)
        access.refresh()

    await context.in_label_thread(request, work)
    return json_response(NewApiKeyView(**_view(record, None).model_dump(), key=text), 201)


@router.get(
    "/keys",
    response_model=ApiKeyListView,
    response_description="The keys.",
    summary="List API keys",
    description="Lists the stored keys without their secrets. A key that is bound to a namespace sees only its keys.",
)
async def list_keys(request: Request) -> Response:
    access, bound = _access_of(request), bound_namespace_of(request)
    records = await context_of(request).in_label_thread(request, access.store.list)
    data = [_view(record, used) for record, used in records if bound is None or record.namespace == bound]
    return json_response(ApiKeyListView(data=data))


@router.delete(
    "/keys/{key_id}",
    status_code=204,
    response_description="The key is revoked.",
    summary="Revoke an API key",
    description="Revokes a key on all replicas within a second. 409 for the last key with the scope `admin`, all "
    "namespaces and no expiry.",
)
async def revoke_key(
    request: Request, key_id: Annotated[str, Path(description="Id of the key.", examples=["051f58579272"])]
) -> Response:
    access, bound = _access_of(request), bound_namespace_of(request)

    def work() -> None:
        access.revoke(key_id, namespace=bound)

    await context_of(request).in_label_thread(request, work)
    return Response(status_code=204)


def _access_of(request: Request) -> AccessControl:
    access = request.app.state.access
    assert isinstance(access, AccessControl)
    return access


def _view(record: KeyRecord, last_used_at_ms: int | None) -> ApiKeyView:
    return ApiKeyView(
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
