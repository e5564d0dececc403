"""/labels: register, list, read, change, remove."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from service.errors import VidlexError
from service.inference.labeler import Registered
from service.labels.records import UNSET, Label, LabelChanges, NewLabel, Page
from service.routes.context import VocabularyOfRequest, context_of
from service.routes.problems import problem_of, request_id_of
from service.schemas.base import ProblemView, validate
from service.schemas.labels import (
    BatchItemView,
    BatchView,
    LabelBatchBody,
    LabelChangesBody,
    LabelListView,
    LabelView,
    NewLabelBody,
)

REVISION_HEADER = "X-Vidlex-Revision"
"""Of an answer that has no label in it: the vocabulary's revision after the write, for ``min_revision``."""

router = APIRouter(tags=["labels"], responses={"default": {"model": ProblemView, "description": "problem+json"}})


def _json_body(*models: type[NewLabelBody] | type[LabelBatchBody] | type[LabelChangesBody]) -> dict[str, Any]:
    """The documentation of a body that is read by hand, to count its bytes and to answer batches item by item."""
    schemas = [model.model_json_schema() for model in models]
    schema = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


@router.post(
    "/labels",
    status_code=201,
    response_model=LabelView | BatchView,
    summary="Register a label, or up to 1000 as {labels: [...]}",
    description="A name that exists gives 409 with its id, or with if_exists=return 200 and the label. A batch is "
    "answered with 200 and one status for each item; one bad item spoils nothing.",
    openapi_extra=_json_body(NewLabelBody, LabelBatchBody),
)
async def add_labels(
    request: Request,
    vocabulary: VocabularyOfRequest,
    if_exists: Annotated[Literal["error", "return"], Query()] = "error",
) -> Response:
    context = context_of(request)
    labeler = vocabulary.labeler
    body = await context.spool.read_json(request)
    return_existing = if_exists == "return"
    if isinstance(body, dict) and "labels" in body:
        batch = validate(LabelBatchBody, body)
        read = [_read_item(item) for item in batch.labels]
        good = [item for item in read if isinstance(item, NewLabel)]
        outcomes = await context.in_label_thread(lambda: labeler.register(good, return_existing=return_existing))
        rest = iter(outcomes)
        results = [next(rest) if isinstance(item, NewLabel) else item for item in read]
        request_id = request_id_of(request)
        view = BatchView(data=[_batch_item(i, result, request_id) for i, result in enumerate(results)])
        return _json(view, 200)
    new = _new_label(validate(NewLabelBody, body))
    (outcome,) = await context.in_label_thread(lambda: labeler.register([new], return_existing=return_existing))
    if isinstance(outcome, VidlexError):
        raise outcome
    location = f"{request.url.path.rstrip('/')}/{outcome.label.id}"
    return _json(_view(outcome.label), 201 if outcome.created else 200, {"Location": location})


@router.get("/labels", response_model=LabelListView, summary="List labels in the order of their creation")
async def list_labels(
    request: Request,
    vocabulary: VocabularyOfRequest,
    *,
    limit: Annotated[int, Query(ge=1, le=1000)] = 20,
    after: Annotated[str | None, Query(max_length=100, description="the last_id of the page before")] = None,
    category: Annotated[str | None, Query(max_length=200)] = None,
    q: Annotated[str | None, Query(max_length=200, description="part of a name or alias")] = None,
    min_revision: Annotated[int | None, Query(ge=0, lt=2**63, description="a replica that is behind: 409")] = None,
) -> Response:
    context = context_of(request)
    store = vocabulary.store

    def read() -> Page:
        vocabulary.await_revision(min_revision, context.revision_wait_seconds)
        return store.list(limit=limit, after=after, category=category, q=q)

    page = await context.in_label_thread(read)
    data = [_view(label) for label in page.data]
    view = LabelListView(
        data=data,
        has_more=page.has_more,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
    )
    return _json(view, 200)


@router.get("/labels/{label_id}", response_model=LabelView, summary="One label")
async def get_label(request: Request, vocabulary: VocabularyOfRequest, label_id: str) -> Response:
    context = context_of(request)
    store = vocabulary.store
    return _json(_view(await context.in_label_thread(lambda: store.get(label_id))), 200)


@router.patch(
    "/labels/{label_id}",
    response_model=LabelView,
    summary="Change a label; a new name is encoded anew",
    openapi_extra=_json_body(LabelChangesBody),
)
async def change_label(request: Request, vocabulary: VocabularyOfRequest, label_id: str) -> Response:
    context = context_of(request)
    labeler = vocabulary.labeler
    body = validate(LabelChangesBody, await context.spool.read_json(request))
    changes = _changes(body)
    return _json(_view(await context.in_label_thread(lambda: labeler.update(label_id, changes))), 200)


@router.delete("/labels/{label_id}", status_code=204, summary="Remove a label")
async def remove_label(request: Request, vocabulary: VocabularyOfRequest, label_id: str) -> Response:
    context = context_of(request)
    labeler = vocabulary.labeler
    revision = await context.in_label_thread(lambda: labeler.remove(label_id))
    return Response(status_code=204, headers={REVISION_HEADER: str(revision)})


def _read_item(item: Any) -> NewLabel | VidlexError:
    try:
        return _new_label(validate(NewLabelBody, item))
    except VidlexError as error:
        return error


def _new_label(body: NewLabelBody) -> NewLabel:
    return NewLabel(body.name, tuple(body.aliases), tuple(body.categories), body.threshold, body.metadata)


def _changes(body: LabelChangesBody) -> LabelChanges:
    given = body.model_fields_set
    return LabelChanges(
        name=body.name if "name" in given and body.name is not None else UNSET,
        aliases=tuple(body.aliases) if body.aliases is not None else UNSET,
        categories=tuple(body.categories) if body.categories is not None else UNSET,
        threshold=body.threshold if "threshold" in given else UNSET,
        metadata=body.metadata if body.metadata is not None else UNSET,
    )


def _batch_item(index: int, result: Registered | VidlexError, request_id: str) -> BatchItemView:
    if isinstance(result, VidlexError):
        return BatchItemView(index=index, status=result.status, error=problem_of(result, request_id))
    return BatchItemView(index=index, status=201 if result.created else 200, label=_view(result.label))


def _view(label: Label) -> LabelView:
    return LabelView(
        id=label.id,
        name=label.name,
        aliases=list(label.aliases),
        categories=list(label.categories),
        threshold=label.threshold,
        metadata=label.metadata,
        created_at_ms=label.created_at_ms,
        updated_at_ms=label.updated_at_ms,
        revision=label.revision,
    )


def _json(view: LabelView | LabelListView | BatchView, status: int, headers: dict[str, str] | None = None) -> Response:
    return Response(view.model_dump_json(), status_code=status, headers=headers, media_type="application/json")
