"""/labels: register, list, read, change, remove."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Request
from starlette.responses import Response

from vidlex.service.errors import VidlexError
from vidlex.service.http.context import VocabularyOfRequest, context_of, quota_of
from vidlex.service.http.problems import problem_of, request_id_of
from vidlex.service.labels.store.idempotency import StoredAnswer, Ticket
from vidlex.service.labels.store.records import UNSET, LabelChanges, NewLabel
from vidlex.service.models.served_model import Vocabulary
from vidlex.service.registration.labeler import Registered
from vidlex.service.routes.label_views import etag_header, if_match_of, is_known, view, views
from vidlex.service.schemas.base import ProblemView, validate
from vidlex.service.schemas.labels import (
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
    response_model=LabelView,
    responses={200: {"model": LabelView | BatchView, "description": "a label that existed, or a batch's items"}},
    summary="Register a label, or up to 1000 as {labels: [...]}",
    description="A name that exists gives 409 with its id, or with if_exists=return 200 and the label. A batch is "
    "answered with 200 and one status for each item; one bad item spoils nothing.",
    openapi_extra=_json_body(NewLabelBody, LabelBatchBody),
)
async def add_labels(
    request: Request,
    vocabulary: VocabularyOfRequest,
    if_exists: Annotated[Literal["error", "return"], Query()] = "error",
    idempotency_key: Annotated[
        str | None, Header(description="repeating a request with it does it once; kept for 24 hours")
    ] = None,
) -> Response:
    context = context_of(request)
    body = await context.spool.read_json(request)
    path, request_id = request.url.path.rstrip("/"), request_id_of(request)
    return_existing = if_exists == "return"
    max_labels = quota_of(request)
    if isinstance(body, dict) and "labels" in body:
        read = [read_item(item) for item in validate(LabelBatchBody, body).labels]

        def work(ticket: Ticket | None) -> StoredAnswer:
            return _register_batch(vocabulary, read, return_existing, ticket, request_id, max_labels=max_labels)
    else:
        new = new_label(validate(NewLabelBody, body))

        def work(ticket: Ticket | None) -> StoredAnswer:
            return _register_one(vocabulary, new, return_existing, ticket, path, max_labels=max_labels)

    def once() -> StoredAnswer:
        if idempotency_key is None:
            return work(None)
        requests = vocabulary.store.requests
        with requests.once(idempotency_key, [if_exists, body]) as ticket:
            if ticket.answer is not None:
                return replace(ticket.answer, headers=ticket.answer.headers | {"Idempotency-Replayed": "true"})
            answer = work(ticket)
            if not answer.may_change:
                requests.finish(ticket, answer)
            return answer

    answer = await context.in_label_thread(once)
    return Response(answer.body, answer.status, answer.headers, "application/json")


@router.get("/labels", response_model=LabelListView, summary="List labels in the order of their creation")
async def list_labels(
    request: Request,
    vocabulary: VocabularyOfRequest,
    *,
    limit: Annotated[int, Query(ge=1, le=1000)] = 20,
    after: Annotated[str | None, Query(max_length=100, description="the last_id of the page before")] = None,
    category: Annotated[str | None, Query(max_length=200)] = None,
    parent: Annotated[str | None, Query(max_length=200, description="id, name or alias of a label")] = None,
    prefix: Annotated[
        str | None, Query(max_length=200, description="beginning of a name or alias; sorts by that text")
    ] = None,
    q: Annotated[str | None, Query(max_length=200, description="part of a name or alias; looks at every label")] = None,
    min_revision: Annotated[int | None, Query(ge=0, lt=2**63, description="a replica that is behind: 409")] = None,
) -> Response:
    context, store = context_of(request), vocabulary.store

    def work() -> LabelListView:
        vocabulary.await_revision(min_revision, context.revision_wait_seconds)
        page = store.list(limit, after, category, q, parent=parent, prefix=prefix)
        data = views(page.data, store)
        return LabelListView(
            data=data,
            has_more=page.has_more,
            first_id=data[0].id if data else None,
            last_id=data[-1].id if data else None,
        )

    return _json(await context.in_label_thread(work), 200)


@router.get("/labels/{label_id}", response_model=LabelView, summary="One label")
async def get_label(
    request: Request,
    vocabulary: VocabularyOfRequest,
    label_id: str,
    if_none_match: Annotated[str | None, Header(description="304 if it is the label's ETag")] = None,
) -> Response:
    store = vocabulary.store
    label = await context_of(request).in_label_thread(lambda: view(store.get(label_id), store))
    if is_known(label, if_none_match):
        return Response(status_code=304, headers=etag_header(label))
    return _json(label, 200, etag_header(label))


@router.patch(
    "/labels/{label_id}",
    response_model=LabelView,
    summary="Change a label; a new name is encoded anew",
    openapi_extra=_json_body(LabelChangesBody),
)
async def change_label(
    request: Request,
    vocabulary: VocabularyOfRequest,
    label_id: str,
    if_match: Annotated[str | None, Header(description="412 unless it is the label's ETag")] = None,
) -> Response:
    context = context_of(request)
    changes = _changes(validate(LabelChangesBody, await context.spool.read_json(request)))
    tags = if_match_of(if_match)

    def work() -> LabelView:
        return view(vocabulary.labeler.update(label_id, changes, if_match=tags), vocabulary.store)

    label = await context.in_label_thread(work)
    return _json(label, 200, etag_header(label))


@router.delete("/labels/{label_id}", status_code=204, summary="Remove a label; its children lose it as a parent")
async def remove_label(
    request: Request,
    vocabulary: VocabularyOfRequest,
    label_id: str,
    if_match: Annotated[str | None, Header(description="412 unless it is the label's ETag")] = None,
) -> Response:
    tags = if_match_of(if_match)
    context, labeler = context_of(request), vocabulary.labeler
    revision = await context.in_label_thread(lambda: labeler.remove(label_id, if_match=tags))
    return Response(status_code=204, headers={REVISION_HEADER: str(revision)})


def _register_one(
    vocabulary: Vocabulary,
    new: NewLabel,
    return_existing: bool,
    ticket: Ticket | None,
    path: str,
    *,
    max_labels: int | None,
) -> StoredAnswer:
    """Raises what became of the label if it is not there."""
    (outcome,) = vocabulary.labeler.register(
        [new], return_existing=return_existing, ticket=ticket, max_labels=max_labels
    )
    if isinstance(outcome, VidlexError):
        raise outcome
    label = view(outcome.label, vocabulary.store)
    headers = {"Location": f"{path}/{label.id}"} | etag_header(label)
    return StoredAnswer(201 if outcome.created else 200, headers, label.model_dump_json())


def _register_batch(
    vocabulary: Vocabulary,
    read: Sequence[NewLabel | VidlexError],
    return_existing: bool,
    ticket: Ticket | None,
    request_id: str,
    *,
    max_labels: int | None,
) -> StoredAnswer:
    good = [item for item in read if isinstance(item, NewLabel)]
    outcomes = iter(
        vocabulary.labeler.register(good, return_existing=return_existing, ticket=ticket, max_labels=max_labels)
    )
    results = [next(outcomes) if isinstance(item, NewLabel) else item for item in read]
    shown = iter(views([r.label for r in results if isinstance(r, Registered)], vocabulary.store))
    items = []
    for i, result in enumerate(results):
        if isinstance(result, VidlexError):
            items.append(BatchItemView(index=i, status=result.status, error=problem_of(result, request_id)))
        else:
            items.append(BatchItemView(index=i, status=201 if result.created else 200, label=next(shown)))
    may_change = any(item.status >= 500 for item in items)
    return StoredAnswer(200, {}, BatchView(data=items).model_dump_json(), may_change)


def read_item(item: Any) -> NewLabel | VidlexError:
    """A batch's item, or what is wrong with it."""
    try:
        return new_label(validate(NewLabelBody, item))
    except VidlexError as error:
        return error


def new_label(body: NewLabelBody) -> NewLabel:
    return NewLabel(
        body.name,
        tuple(body.aliases),
        tuple(body.categories),
        tuple(body.parents),
        body.threshold,
        body.metadata,
    )


def _changes(body: LabelChangesBody) -> LabelChanges:
    given = body.model_fields_set
    return LabelChanges(
        name=body.name if "name" in given and body.name is not None else UNSET,
        aliases=tuple(body.aliases) if body.aliases is not None else UNSET,
        categories=tuple(body.categories) if body.categories is not None else UNSET,
        parents=tuple(body.parents) if body.parents is not None else UNSET,
        threshold=body.threshold if "threshold" in given else UNSET,
        metadata=body.metadata if body.metadata is not None else UNSET,
    )


def _json(body: LabelView | LabelListView, status: int, headers: dict[str, str] | None = None) -> Response:
    return Response(body.model_dump_json(), status_code=status, headers=headers, media_type="application/json")
