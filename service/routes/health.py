"""/livez, /readyz, /metrics."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from vidlex.service.http.context import context_of
from vidlex.service.schemas.health import ReadyView

router = APIRouter(tags=["health"])


@router.get("/livez", summary="The process answers")
async def livez() -> dict[str, str]:
    return {"status": "alive"}


@router.get(
    "/readyz",
    response_model=ReadyView,
    responses={503: {"model": ReadyView}},
    summary="The store answers, the index has caught up, the last forward pass worked, decoders live",
)
async def readyz(request: Request) -> Response:
    view = context_of(request).readiness()
    status = 200 if view.status == "ready" else 503
    headers = {} if status == 200 else {"Retry-After": "2"}
    return Response(view.model_dump_json(), status_code=status, headers=headers, media_type="application/json")


@router.get("/metrics", summary="Prometheus text", response_class=Response)
async def metrics(request: Request) -> Response:
    context = context_of(request)
    return Response(context.metrics.render(), headers={"Content-Type": context.metrics.content_type})
