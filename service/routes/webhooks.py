"""/webhooks: secrets that sign deliveries, what has become of deliveries, and sending them again."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response

from vidlex.service.bounds import DEFAULT_PAGE_SIZE
from vidlex.service.http.context import context_of, namespace_of
from vidlex.service.http.openapi.document import json_body
from vidlex.service.http.openapi.headers import NAMESPACE_PARAMETER
from vidlex.service.http.path_ids import with_ids
from vidlex.service.http.responses import json_response
from vidlex.service.schemas.base import validator_of
from vidlex.service.schemas.webhooks import (
    AttemptView,
    DeliveryDetailsView,
    DeliveryListView,
    DeliveryStateName,
    DeliveryView,
    EnableEndpointBody,
    EndpointListView,
    EndpointView,
    NewWebhookSecretView,
    ReplayBody,
    ReplayView,
    WebhookSecretListView,
    WebhookSecretView,
    WebhookTestBody,
)
from vidlex.service.webhooks.events import TEST_EVENT, WebhookEvent, WebhookTarget
from vidlex.service.webhooks.records import Delivery
from vidlex.service.webhooks.secrets import MAX_SECRETS

router = APIRouter(tags=["webhooks"])

MAX_DELIVERIES_PER_PAGE = 200
_EXAMPLE_ID = "msg_01m8sa92dpz006bms3r0pj6t"
DeliveryId = Annotated[str, Path(description="Id of the delivery.", examples=[_EXAMPLE_ID])]


@router.post(
    "/webhooks/secrets",
    status_code=201,
    response_model=NewWebhookSecretView,
    response_description="The secret with its text.",
    summary="Create a webhook secret",
    description="Creates a secret that signs the deliveries of the namespace; its text is in this response only. All "
    f"secrets of a namespace sign, at most {MAX_SECRETS}: to replace one, create another, give it to the receivers, "
    "and delete the old one.",
    openapi_extra=NAMESPACE_PARAMETER,
)
async def create_webhook_secret(request: Request) -> Response:
    context, namespace = context_of(request), namespace_of(request)
    webhooks = context.require_parts().background.webhooks
    secret = await context.in_label_thread(request, lambda: webhooks.secrets.create(namespace))
    view = NewWebhookSecretView(id=secret.id, created_at_ms=secret.created_at_ms, secret=secret.text)
    return json_response(view, 201, {"Cache-Control": "no-store"})


@router.get(
    "/webhooks/secrets",
    response_model=WebhookSecretListView,
    response_description="The secrets, without their text.",
    summary="List webhook secrets",
    description="Lists the secrets of the namespace without their text, oldest first.",
    openapi_extra=NAMESPACE_PARAMETER,
)
async def list_webhook_secrets(request: Request) -> Response:
    context, namespace = context_of(request), namespace_of(request)
    webhooks = context.require_parts().background.webhooks
    secrets = await context.in_label_thread(request, lambda: webhooks.secrets.list(namespace))
    data = [WebhookSecretView(id=secret.id, created_at_ms=secret.created_at_ms) for secret in secrets]
    return json_response(WebhookSecretListView(data=data))


@router.delete(
    "/webhooks/secrets/{secret_id}",
    status_code=204,
    response_description="The secret signs nothing any more.",
    summary="Delete a webhook secret",
    description="Deletes a secret. Without any, deliveries wait until there is one, and are given up after ten tries.",
    openapi_extra=NAMESPACE_PARAMETER,
)
async def delete_webhook_secret(
    request: Request,
    secret_id: Annotated[str, Path(description="Id of the secret.", examples=["whs_01m8sa92d3m5n8w4x6zqk2vh"])],
) -> Response:
    context, namespace = context_of(request), namespace_of(request)
    webhooks = context.require_parts().background.webhooks
    await context.in_label_thread(request, lambda: webhooks.secrets.delete(namespace, secret_id))
    return Response(status_code=204)


@router.get(
    "/webhooks/deliveries",
    response_model=DeliveryListView,
    response_description="A page of deliveries.",
    summary="List deliveries",
    description="Lists the deliveries of the last seven days, newest first.",
    openapi_extra=NAMESPACE_PARAMETER,
)
async def list_deliveries(
    request: Request,
    *,
    limit: Annotated[
        int, Query(ge=1, le=MAX_DELIVERIES_PER_PAGE, description="Deliveries per page.")
    ] = DEFAULT_PAGE_SIZE,
    after: Annotated[
        str | None,
        Query(max_length=100, description="The `last_id` of the previous page.", examples=[_EXAMPLE_ID]),
    ] = None,
    state: Annotated[DeliveryStateName | None, Query(description="Only deliveries in this state.")] = None,
) -> Response:
    context, namespace = context_of(request), namespace_of(request)
    webhooks = context.require_parts().background.webhooks

    def work() -> DeliveryListView:
        page = webhooks.log.page(namespace, limit=limit, after_id=after, state=state)
        return DeliveryListView(
            data=[_view(delivery) for delivery in page.data],
            has_more=page.has_more,
            first_id=page.data[0].id if page.data else None,
            last_id=page.data[-1].id if page.data else None,
        )

    return json_response(await context.in_label_thread(request, work))


@router.get(
    with_ids("/webhooks/deliveries/{delivery_id}"),
    response_model=DeliveryDetailsView,
    response_description="The delivery.",
    summary="Get a delivery",
    description="Returns a delivery with its body and its tries.",
    openapi_extra=NAMESPACE_PARAMETER,
)
async def get_delivery(request: Request, delivery_id: DeliveryId) -> Response:
    context, namespace = context_of(request), namespace_of(request)
    webhooks = context.require_parts().background.webhooks
    delivery = await context.in_label_thread(request, lambda: webhooks.log.get(namespace, delivery_id))
    return json_response(_details(delivery))


@router.post(
    with_ids("/webhooks/deliveries/{delivery_id}:replay"),
    status_code=202,
    response_model=DeliveryDetailsView,
    response_description="The delivery is due.",
    summary="Replay a delivery",
    description="Sends a delivery again, at once, with the same id and ten tries, whatever its state is.",
    openapi_extra=NAMESPACE_PARAMETER,
)
async def replay_delivery(request: Request, delivery_id: DeliveryId) -> Response:
    context, namespace = context_of(request), namespace_of(request)
    webhooks = context.require_parts().background.webhooks
    delivery = await context.in_label_thread(request, lambda: webhooks.log.replay(namespace, delivery_id))
    return json_response(_details(delivery), 202)


@router.post(
    "/webhooks/deliveries:replay",
    status_code=202,
    response_model=ReplayView,
    response_description="The deliveries are due.",
    summary="Replay failed deliveries",
    description="Sends the failed deliveries again that were created since a time, oldest first, at most 1000 by one "
    "request.",
    openapi_extra=json_body(ReplayBody) | NAMESPACE_PARAMETER,
)
async def replay_deliveries(request: Request) -> Response:
    context, namespace = context_of(request), namespace_of(request)
    webhooks = context.require_parts().background.webhooks
    body = await context.spool.read_json(request, validator_of(ReplayBody))

    def work() -> ReplayView:
        num_queued, has_more = webhooks.log.replay_failed(namespace, body.since_ms)
        return ReplayView(num_queued=num_queued, has_more=has_more)

    return json_response(await context.in_label_thread(request, work), 202)


@router.get(
    "/webhooks/endpoints",
    response_model=EndpointListView,
    response_description="The endpoints.",
    summary="List endpoints",
    description="Lists the URLs that deliveries were sent to in the last seven days, and those that are disabled.",
    openapi_extra=NAMESPACE_PARAMETER,
)
async def list_endpoints(request: Request) -> Response:
    context, namespace = context_of(request), namespace_of(request)
    webhooks = context.require_parts().background.webhooks
    endpoints = await context.in_label_thread(request, lambda: webhooks.endpoints.list(namespace))
    data = [
        EndpointView(
            url=endpoint.url,
            disabled_at_ms=endpoint.disabled_at_ms,
            last_attempt_at_ms=endpoint.last_attempt_at_ms,
            last_success_at_ms=endpoint.last_success_at_ms,
            num_failures=endpoint.num_failures,
        )
        for endpoint in endpoints
    ]
    return json_response(EndpointListView(data=data))


@router.post(
    "/webhooks/endpoints:enable",
    status_code=204,
    response_description="Deliveries are sent to the endpoint again.",
    summary="Enable an endpoint",
    description="Enables an endpoint that is disabled because it answered 410. What was given up can be replayed.",
    openapi_extra=json_body(EnableEndpointBody) | NAMESPACE_PARAMETER,
)
async def enable_endpoint(request: Request) -> Response:
    context, namespace = context_of(request), namespace_of(request)
    webhooks = context.require_parts().background.webhooks
    body = await context.spool.read_json(request, validator_of(EnableEndpointBody))
    await context.in_label_thread(request, lambda: webhooks.endpoints.enable(namespace, body.url))
    return Response(status_code=204)


@router.post(
    "/webhooks:test",
    status_code=202,
    response_model=DeliveryDetailsView,
    response_description="The delivery of the test event.",
    summary="Send a test event",
    description=f"Queues an event of the type `{TEST_EVENT}` for a URL. What became of it is in the delivery.",
    openapi_extra=json_body(WebhookTestBody) | NAMESPACE_PARAMETER,
)
async def test_webhook(request: Request) -> Response:
    context, namespace = context_of(request), namespace_of(request)
    background = context.require_parts().background
    body = await context.spool.read_json(request, validator_of(WebhookTestBody))
    url = background.webhook_policy.check(body.url).text
    target = WebhookTarget(url, cloud_events=body.cloud_events)

    def work() -> Delivery:
        background.webhooks.require_secret(namespace)
        event = WebhookEvent(TEST_EVENT, namespace, {}, time.time_ns() // 1_000_000)
        return background.webhooks.queue_now(target, event)

    return json_response(_details(await context.in_label_thread(request, work)), 202)


def _view(delivery: Delivery) -> DeliveryView:
    return DeliveryView(
        id=delivery.id,
        type=delivery.type,
        url=delivery.url,
        state=delivery.state,
        created_at_ms=delivery.created_at_ms,
        next_attempt_at_ms=delivery.due_at_ms,
        num_attempts=delivery.tries,
        last_status=delivery.attempts[-1].status if delivery.attempts else None,
    )


def _details(delivery: Delivery) -> DeliveryDetailsView:
    return DeliveryDetailsView(
        **_view(delivery).model_dump(),
        body=delivery.body.decode(),
        attempts=[
            AttemptView(
                at_ms=attempt.at_ms,
                duration_ms=attempt.duration_ms,
                status=attempt.status,
                error=attempt.error,
                answer=attempt.answer,
            )
            for attempt in delivery.attempts
        ],
    )
