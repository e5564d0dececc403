"""/models: replace the served model without downtime. Only models that the operator allows can be loaded."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from vidlex.service.bounds import MAX_PAGE_SIZE
from vidlex.service.errors import Forbidden, InvalidParameter
from vidlex.service.http.caller import bound_namespace_of
from vidlex.service.http.context import VocabularyOfRequest, context_of
from vidlex.service.http.openapi.document import json_body
from vidlex.service.http.openapi.headers import NAMESPACE_PARAMETER
from vidlex.service.http.responses import json_response
from vidlex.service.models.model_diff import compare_models
from vidlex.service.routes.model_views import model_diff_view, models_view
from vidlex.service.schemas.base import validator_of
from vidlex.service.schemas.models import DropModelBody, ModelDiffView, ModelsView, PrepareModelBody

router = APIRouter(tags=["models"])


def _require_unbound_key(request: Request) -> None:
    if bound_namespace_of(request) is not None:
        raise Forbidden("Models serve all namespaces; this API key is bound to one")


_UNBOUND_KEY = [Depends(_require_unbound_key)]


@router.get(
    "/models",
    response_model=ModelsView,
    response_description="The models.",
    dependencies=_UNBOUND_KEY,
    summary="Get the models",
    description="Returns the served model, the models that can replace it, and how far they have encoded the labels.",
)
async def get_models(request: Request) -> Response:
    return await _models_response(request)


@router.post(
    "/models:prepare",
    dependencies=_UNBOUND_KEY,
    status_code=202,
    response_model=ModelsView,
    response_description="The model is being loaded.",
    summary="Prepare a model",
    description="Loads a second model and encodes every label with it, in the background. `get_models` reports the "
    "progress, which survives restarts. Repeating the request has no effect.",
    openapi_extra=json_body(PrepareModelBody),
)
async def prepare_model(request: Request) -> Response:
    context = context_of(request)
    parts = context.require_parts()
    body = await context.spool.read_json(request, validator_of(PrepareModelBody))
    if not parts.may_load(body.model):
        raise InvalidParameter("The model is neither in the zoo nor in VIDLEX_ALLOWED_MODELS")
    await context.in_label_thread(request, lambda: parts.models.prepare(body.model))
    return await _models_response(request, 202)


@router.post(
    "/models:activate",
    dependencies=_UNBOUND_KEY,
    response_model=ModelsView,
    response_description="The model is served.",
    summary="Activate the prepared model",
    description="Serves the prepared model from the next request on. 409 while it has not encoded every label.",
)
async def activate_model(request: Request) -> Response:
    context = context_of(request)
    await context.in_label_thread(request, context.require_parts().models.activate)
    return await _models_response(request)


@router.post(
    "/models:rollback",
    dependencies=_UNBOUND_KEY,
    response_model=ModelsView,
    response_description="The model is served.",
    summary="Roll back to the previous model",
    description="Serves the previous model from the next request on; the served one becomes the prepared one.",
)
async def rollback_model(request: Request) -> Response:
    context = context_of(request)
    await context.in_label_thread(request, context.require_parts().models.rollback)
    return await _models_response(request)


@router.post(
    "/models:drop",
    dependencies=_UNBOUND_KEY,
    response_model=ModelsView,
    response_description="The model is unloaded.",
    summary="Drop a model",
    description="Unloads a model that is not served and deletes its label vectors in every namespace.",
    openapi_extra=json_body(DropModelBody),
)
async def drop_model(request: Request) -> Response:
    context = context_of(request)
    models = context.require_parts().models
    body = await context.spool.read_json(request, validator_of(DropModelBody))
    await context.in_label_thread(request, lambda: models.drop(body.fingerprint))
    return await _models_response(request)


@router.get(
    "/models:diff",
    response_model=ModelDiffView,
    response_description="The differences.",
    summary="Compare two models",
    description="Compares the scores of the served model with those of the prepared (else the previous) one on the "
    "namespace's recent videos.",
    openapi_extra=NAMESPACE_PARAMETER,
)
async def diff_models(
    request: Request,
    vocabulary: VocabularyOfRequest,
    limit: Annotated[
        int, Query(ge=1, le=MAX_PAGE_SIZE, description="Labels to return, largest mean shift first.")
    ] = 100,
) -> Response:
    context = context_of(request)
    parts = context.require_parts()
    videos = parts.recent_videos.videos(vocabulary.namespace)

    def work() -> ModelDiffView:
        other = parts.models.comparison_model().acquire(vocabulary.namespace)
        try:
            return model_diff_view(compare_models(vocabulary, other, videos, max_labels=limit))
        finally:
            other.release()

    return json_response(await context.in_label_thread(request, work))


async def _models_response(request: Request, status: int = 200) -> Response:
    context = context_of(request)
    models = context.require_parts().models
    view = await context.in_label_thread(request, lambda: models_view(models.state(), models.count_labels()))
    return json_response(view, status)
