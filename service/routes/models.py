"""/models: change the served model under load. Only names that the operator allows can be loaded."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from vidlex.service.errors import Forbidden, InvalidParameter
from vidlex.service.http.context import VocabularyOfRequest, context_of
from vidlex.service.labels.store.model_pointer import ModelName
from vidlex.service.models.model_diff import compare_models
from vidlex.service.models.registry import Models, ModelsState
from vidlex.service.schemas.base import ProblemView, validate
from vidlex.service.schemas.models import (
    DropBody,
    GenerationView,
    LoadedModelView,
    ModelDiffView,
    ModelsView,
    PrepareBody,
)

router = APIRouter(tags=["models"], responses={"default": {"model": ProblemView, "description": "problem+json"}})


def _for_all(request: Request) -> None:
    """What is decided here holds for every namespace."""
    if getattr(getattr(request.state, "principal", None), "namespace", None) is not None:
        raise Forbidden("Models serve all namespaces; this API key belongs to one")


def _body(model: type[PrepareBody] | type[DropBody]) -> dict[str, Any]:
    content = {"application/json": {"schema": model.model_json_schema()}}
    return {"requestBody": {"required": True, "content": content}}


FOR_ALL = [Depends(_for_all)]


@router.get(
    "/models",
    response_model=ModelsView,
    dependencies=FOR_ALL,
    summary="Which models are loaded, and how far each has the labels",
)
async def get_models(request: Request) -> Response:
    return await _answer(request, 200)


@router.post(
    "/models:prepare",
    dependencies=FOR_ALL,
    status_code=202,
    response_model=ModelsView,
    summary="Load a model beside the served one and encode every label with it, in the background",
    description="GET /models shows the progress. Doing it again, or restarting, goes on where it stopped.",
    openapi_extra=_body(PrepareBody),
)
async def prepare(request: Request) -> Response:
    context = context_of(request)
    parts = context.require_parts()
    body = validate(PrepareBody, await context.spool.read_json(request))
    if not parts.may_load(body.model):
        raise InvalidParameter("This model is not among those that VIDLEX_ALLOWED_MODELS and the zoo name")
    await context.in_label_thread(lambda: parts.models.prepare(body.model))
    return await _answer(request, 202)


@router.post(
    "/models:activate", dependencies=FOR_ALL, response_model=ModelsView, summary="Serve the prepared model from now on"
)
async def activate(request: Request) -> Response:
    context = context_of(request)
    await context.in_label_thread(context.require_parts().models.activate)
    return await _answer(request, 200)


@router.post(
    "/models:rollback",
    dependencies=FOR_ALL,
    response_model=ModelsView,
    summary="Serve the previous model again, at once",
)
async def rollback(request: Request) -> Response:
    context = context_of(request)
    await context.in_label_thread(context.require_parts().models.rollback)
    return await _answer(request, 200)


@router.post(
    "/models:drop",
    dependencies=FOR_ALL,
    response_model=ModelsView,
    summary="Unload a model that does not serve, and forget its vectors",
    openapi_extra=_body(DropBody),
)
async def drop(request: Request) -> Response:
    context = context_of(request)
    models = context.require_parts().models
    body = validate(DropBody, await context.spool.read_json(request))
    await context.in_label_thread(lambda: models.drop(body.fingerprint))
    return await _answer(request, 200)


@router.get(
    "/models:diff",
    response_model=ModelDiffView,
    summary="What the prepared model would change, on the namespace's last videos",
)
async def diff(
    request: Request, vocabulary: VocabularyOfRequest, limit: Annotated[int, Query(ge=1, le=1000)] = 100
) -> Response:
    context = context_of(request)
    parts = context.require_parts()
    videos = parts.kept.videos(vocabulary.namespace)

    def work() -> ModelDiffView:
        other = parts.models.other().take(vocabulary.namespace)
        try:
            return compare_models(vocabulary, other, videos, max_labels=limit)
        finally:
            other.give_back()

    return _json(await context.in_label_thread(work), 200)


async def _answer(request: Request, status: int) -> Response:
    context = context_of(request)
    models = context.require_parts().models
    return _json(await context.in_label_thread(lambda: _view(models)), status)


def _view(models: Models) -> ModelsView:
    state = models.state()
    counts = models.count_everywhere()
    generations = [
        GenerationView(namespace=namespace, fingerprint=fingerprint, num_labels=num_labels)
        for namespace, (_, vectors) in counts.items()
        for fingerprint, num_labels in vectors.items()
    ]
    num_labels = sum(num for num, _ in counts.values())

    def shown(name: ModelName | None) -> LoadedModelView | None:
        return None if name is None else _loaded(state, name, num_labels, generations)

    served = shown(state.pointer.served)
    assert served is not None
    return ModelsView(
        configured=state.configured,
        served=served,
        previous=shown(state.pointer.previous),
        prepared=shown(state.pointer.prepared),
        loading=state.loading,
        problem=state.problem,
        num_labels=num_labels,
        generations=generations,
    )


def _loaded(state: ModelsState, name: ModelName, num_labels: int, generations: list[GenerationView]) -> LoadedModelView:
    model = state.loaded.get(name.fingerprint)
    num_encoded = sum(g.num_labels for g in generations if g.fingerprint == name.fingerprint)
    num_refused = 0 if model is None else model.filler.num_refused
    return LoadedModelView(
        model=name.spec,
        id=name.id,
        fingerprint=name.fingerprint,
        loaded=model is not None,
        num_encoded=num_encoded,
        num_refused=num_refused,
        complete=model is not None and num_encoded + num_refused >= num_labels,
    )


def _json(view: ModelsView | ModelDiffView, status: int) -> Response:
    return Response(view.model_dump_json(), status_code=status, media_type="application/json")
