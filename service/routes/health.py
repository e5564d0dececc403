"""/livez, /readyz and /metrics."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import PlainTextResponse, Response

from vidlex.service.http.context import context_of
from vidlex.service.http.openapi.headers import header_refs
from vidlex.service.http.responses import json_response
from vidlex.service.schemas.health import LiveView, ReadyView

router = APIRouter(tags=["health"])


@router.get(
    "/livez",
    response_model=LiveView,
    response_description="The process answers.",
    summary="Check liveness",
    description="Answers as long as the process runs. Requires no API key.",
)
async def get_liveness() -> Response:
    return json_response(LiveView())


@router.get(
    "/readyz",
    response_model=ReadyView,
    response_description="The service can answer requests.",
    responses={
        503: {"model": ReadyView, "description": "The service cannot answer requests.", **header_refs("Retry-After")}
    },
    summary="Check readiness",
    description="Checks the store, the index, the encoder and the decode processes. Requires no API key.",
)
async def get_readiness(request: Request) -> Response:
    view = context_of(request).readiness()
    if view.status == "ready":
        return json_response(view)
    return json_response(view, 503, {"Retry-After": "2"})


@router.get(
    "/metrics",
    response_class=PlainTextResponse,
    response_description="The metrics.",
    summary="Get metrics",
    description="Returns metrics in the Prometheus text format. They cover all namespaces.",
)
async def get_metrics(request: Request) -> Response:
    context = context_of(request)
    return Response(context.metrics.render(), headers={"Content-Type": context.metrics.content_type})
