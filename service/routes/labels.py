"""/labels: register, list, read, change and remove labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal

from fastapi import APIRouter, Header, Path, Query, Request
from pydantic import Field
from starlette.responses import Response

from vidlex.service.bounds import DEFAULT_PAGE_SIZE, MAX_BATCH_LABELS, MAX_FILTER_CHARS, MAX_PAGE_SIZE
from vidlex.service.errors import VidlexError
from vidlex.service.http.caller import quota_of
from vidlex.service.http.conditional import is_not_modified, parse_if_match
from vidlex.service.http.context import VocabularyOfRequest, context_of
from vidlex.service.http.label_bodies import for_valid_labels, parse_batch, parse_label_changes, parse_new_label
from vidlex.service.http.openapi.document import json_body
from vidlex.service.http.openapi.headers import NAMESPACE_PARAMETER, REVISION_HEADER, header_refs
from vidlex.service.http.problems import problem_of, request_id_of
from vidlex.service.http.responses import json_response
from vidlex.service.labels.store.idempotency import MAX_KEY_CHARS, IdempotentRequest, StoredResponse
from vidlex.service.labels.store.records import NewLabel
from vidlex.service.models.served_model import Vocabulary
from vidlex.service.registration.labeler import RegisteredLabel
from vidlex.service.routes.label_views import etag_header, label_view, label_views
from vidlex.service.schemas.base import ProblemView, validate
from vidlex.service.schemas.labels import (
    LabelBatchBody,
    LabelBatchView,
    LabelChangesBody,
    LabelFailureView,
    LabelListView,
    LabelResultView,
    LabelView,
    NewLabelBody,
)

router = APIRouter(tags=["labels"])
LabelId = Annotated[str, Path(description="Id of the label.", examples=["lbl_000000020000wn88xex5bvdb"])]
IfMatch = Annotated[
    str | None,
    Header(
        alias="If-Match",
        description="Entity tags, or `*`. 412 unless the label has one of them.",
        examples=['"2-1a22d5fcb30"'],
    ),
]
MinRevision = Annotated[
    int | None,
    Query(
        ge=0,
        lt=2**63,
        description="Lowest revision of the vocabulary to read. A replica that lags behind waits for it, then answers "
        "409.",
        json_schema_extra={"format": "int64"},
    ),
]


@router.post(
    "/labels",
    status_code=201,
    response_model=LabelView,
    response_description="The created label.",
    responses={
        200: {
            "model": Annotated[LabelView | LabelBatchView, Field(discriminator="object")],
            "description": "An existing label, or the results of a batch.",
            **header_refs("ETag", "Location", "Idempotency-Replayed"),
        },
        201: header_refs("ETag", "Location", "Idempotency-Replayed"),
    },
    summary="Register labels",
    description=f"Registers a label, or up to {MAX_BATCH_LABELS} as `labels`. An existing name gives 409 with its id, "
    "or 200 and the label with `if_exists=return`. A batch gives 200 and one result per item; items are independent.",
    openapi_extra=json_body(NewLabelBody, LabelBatchBody) | NAMESPACE_PARAMETER,
)
async def create_labels(
    request: Request,
    vocabulary: VocabularyOfRequest,
    if_exists: Annotated[
        Literal["error", "return"],
        Query(description="What to do about a name that exists: answer 409, or return the label with 200."),
    ] = "error",
    idempotency_key: Annotated[
        str | None,
        Header(
            alias="Idempotency-Key",
            description="The request is executed once, however often it is sent with this key; valid for 24 hours. "
            "Printable ASCII.",
            examples=["import-2026-11-30-0001"],
            json_schema_extra={"minLength": 1, "maxLength": MAX_KEY_CHARS},
        ),
    ] = None,
) -> Response:
    context = context_of(request)
    body = await context.spool.read_json(request)
    path, request_id = request.url.path.rstrip("/"), request_id_of(request)
    return_existing = if_exists == "return"
    max_labels = quota_of(request)
    if isinstance(body, dict) and "labels" in body:
        parsed = parse_batch(validate(LabelBatchBody, body).labels)

        def work(idempotent_request: IdempotentRequest | None) -> StoredResponse:
            return _register_batch(
                vocabulary, parsed, return_existing, idempotent_request, request_id, max_labels=max_labels
            )
    else:
        new = parse_new_label(body)

        def work(idempotent_request: IdempotentRequest | None) -> StoredResponse:
            return _register_one(vocabulary, new, return_existing, idempotent_request, path, max_labels=max_labels)

    def work_once() -> StoredResponse:
        if idempotency_key is None:
            return work(None)
        requests = vocabulary.store.idempotency
        with requests.hold(idempotency_key, [if_exists, body]) as idempotent_request:
            if idempotent_request.response is not None:
                return replace(
                    idempotent_request.response,
                    headers=idempotent_request.response.headers | {"Idempotency-Replayed": "true"},
                )
            response = work(idempotent_request)
            if not response.is_retryable:
                requests.save_response(idempotent_request, response)
            return response

    response = await context.in_label_thread(work_once)
    return Response(response.body, response.status, response.headers, "application/json")


@router.get(
    "/labels",
    response_model=LabelListView,
    response_description="A page of labels.",
    summary="List labels",
    description="Lists labels in the order of their creation, or with `prefix` in the order of the matching texts. "
    "Filters can be combined.",
    openapi_extra=NAMESPACE_PARAMETER,
)
async def list_labels(
    request: Request,
    vocabulary: VocabularyOfRequest,
    *,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE_SIZE, description="Labels per page.")] = DEFAULT_PAGE_SIZE,
    after: Annotated[
        str | None,
        Query(
            max_length=100,
            description="The `last_id` of the previous page.",
            examples=["lbl_000000020000wn88xex5bvdb"],
        ),
    ] = None,
    category: Annotated[
        str | None,
        Query(max_length=MAX_FILTER_CHARS, description="Only labels with this category.", examples=["animal"]),
    ] = None,
    parent: Annotated[
        str | None,
        Query(
            max_length=MAX_FILTER_CHARS,
            description="Only labels with this parent: its id, name or alias.",
            examples=["dog"],
        ),
    ] = None,
    prefix: Annotated[
        str | None,
        Query(
            max_length=MAX_FILTER_CHARS,
            description="Only labels with a name or alias that begins with this text; sorts by it.",
            examples=["gold"],
        ),
    ] = None,
    q: Annotated[
        str | None,
        Query(
            max_length=MAX_FILTER_CHARS,
            description="Only labels with a name or alias that contains this text. Scans every label.",
            examples=["retriever"],
        ),
    ] = None,
    min_revision: MinRevision = None,
) -> Response:
    context, store = context_of(request), vocabulary.store

    def work() -> LabelListView:
        vocabulary.await_revision(min_revision, context.revision_wait_seconds)
        page = store.list(limit, after, category, q, parent=parent, prefix=prefix)
        data = label_views(page.data, vocabulary)
        return LabelListView(
            data=data,
            has_more=page.has_more,
            first_id=data[0].id if data else None,
            last_id=data[-1].id if data else None,
        )

    return json_response(await context.in_label_thread(work))


@router.get(
    "/labels/{label_id}",
    response_model=LabelView,
    response_description="The label.",
    responses={
        200: header_refs("ETag"),
        304: {"description": "The label has one of the tags in `If-None-Match`.", **header_refs("ETag")},
    },
    summary="Get a label",
    description="Returns a label by its id.",
    openapi_extra=NAMESPACE_PARAMETER,
)
async def get_label(
    request: Request,
    vocabulary: VocabularyOfRequest,
    label_id: LabelId,
    if_none_match: Annotated[
        str | None,
        Header(
            alias="If-None-Match",
            description="Entity tags, or `*`. 304 without a body if the label has one of them.",
            examples=['"2-1a22d5fcb30"'],
        ),
    ] = None,
) -> Response:
    store = vocabulary.store
    label = await context_of(request).in_label_thread(lambda: label_view(store.get(label_id), vocabulary))
    if is_not_modified(label.etag, if_none_match):
        return Response(status_code=304, headers=etag_header(label))
    return json_response(label, headers=etag_header(label))


@router.patch(
    "/labels/{label_id}",
    response_model=LabelView,
    response_description="The changed label.",
    responses={200: header_refs("ETag")},
    summary="Change a label",
    description="Replaces the members that are sent and keeps the others. A new name is encoded.",
    openapi_extra=json_body(LabelChangesBody) | NAMESPACE_PARAMETER,
)
async def update_label(
    request: Request,
    vocabulary: VocabularyOfRequest,
    label_id: LabelId,
    if_match: IfMatch = None,
) -> Response:
    context = context_of(request)
    changes = parse_label_changes(await context.spool.read_json(request))
    tags = parse_if_match(if_match)

    def work() -> LabelView:
        return label_view(vocabulary.labeler.update(label_id, changes, if_match=tags), vocabulary)

    label = await context.in_label_thread(work)
    return json_response(label, headers=etag_header(label))


@router.delete(
    "/labels/{label_id}",
    status_code=204,
    response_description="The label is removed.",
    responses={204: header_refs(REVISION_HEADER)},
    summary="Remove a label",
    description="Removes a label, also from the `parents` of other labels.",
    openapi_extra=NAMESPACE_PARAMETER,
)
async def delete_label(
    request: Request,
    vocabulary: VocabularyOfRequest,
    label_id: LabelId,
    if_match: IfMatch = None,
) -> Response:
    tags = parse_if_match(if_match)
    context, labeler = context_of(request), vocabulary.labeler
    revision = await context.in_label_thread(lambda: labeler.remove(label_id, if_match=tags))
    return Response(status_code=204, headers={REVISION_HEADER: str(revision)})


def _register_one(
    vocabulary: Vocabulary,
    new: NewLabel,
    return_existing: bool,
    idempotent_request: IdempotentRequest | None,
    path: str,
    *,
    max_labels: int | None,
) -> StoredResponse:
    """Raises the error if the label was not registered."""
    (outcome,) = vocabulary.labeler.register(
        [new], return_existing=return_existing, idempotent_request=idempotent_request, max_labels=max_labels
    )
    if isinstance(outcome, VidlexError):
        raise outcome
    (label,) = label_views([outcome.label], vocabulary)
    headers = {"Location": f"{path}/{label.id}"} | etag_header(label)
    return StoredResponse(201 if outcome.created else 200, headers, label.model_dump_json())


def _register_batch(
    vocabulary: Vocabulary,
    parsed: Sequence[NewLabel | VidlexError],
    return_existing: bool,
    idempotent_request: IdempotentRequest | None,
    request_id: str,
    *,
    max_labels: int | None,
) -> StoredResponse:
    results = for_valid_labels(
        parsed,
        lambda labels: vocabulary.labeler.register(
            labels, return_existing=return_existing, idempotent_request=idempotent_request, max_labels=max_labels
        ),
    )
    views = iter(label_views([r.label for r in results if isinstance(r, RegisteredLabel)], vocabulary))
    items: list[LabelResultView | LabelFailureView] = []
    for i, result in enumerate(results):
        if isinstance(result, VidlexError):
            problem = ProblemView(**problem_of(result, request_id))
            items.append(LabelFailureView(index=i, status=result.status, error=problem))
        else:
            items.append(LabelResultView(index=i, status=201 if result.created else 200, label=next(views)))
    is_retryable = any(item.status >= 500 for item in items)
    return StoredResponse(200, {}, LabelBatchView(data=items).model_dump_json(), is_retryable)
