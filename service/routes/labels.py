"""/labels: register, list, read, change and remove labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from fastapi import APIRouter, Header, Path, Query, Request
from pydantic import Field
from starlette.responses import Response

from vidlex.service.bounds import (
    DEFAULT_PAGE_SIZE,
    MAX_BATCH_ANSWER_BYTES,
    MAX_BATCH_JSON_VALUES,
    MAX_BATCH_LABELS,
    MAX_FILTER_CHARS,
    MAX_PAGE_SIZE,
)
from vidlex.service.http.caller import quota_of
from vidlex.service.http.conditional import is_not_modified, parse_if_match
from vidlex.service.http.context import VocabularyOfRequest, context_of
from vidlex.service.http.label_bodies import parse_label_changes, parse_labels
from vidlex.service.http.openapi.document import json_body
from vidlex.service.http.openapi.headers import NAMESPACE_PARAMETER, REVISION_HEADER, header_refs
from vidlex.service.http.problems import problem_of, request_id_of
from vidlex.service.http.responses import json_response
from vidlex.service.labels.store.answers import Refusal
from vidlex.service.labels.store.idempotency import MAX_KEY_CHARS
from vidlex.service.models.served_model import Vocabulary
from vidlex.service.registration.labeler import RegisteredLabel
from vidlex.service.registration.registration import Outcome, Registration
from vidlex.service.routes.label_views import etag_header, label_view, label_views
from vidlex.service.schemas.base import ProblemView
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
from vidlex.service.sharing.requester import Requester

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
    sent = await context.spool.read_json(
        request, lambda body: parse_labels(body, LabelBatchBody), max_values=MAX_BATCH_JSON_VALUES
    )
    registration = Registration(
        labeler=vocabulary.labeler,
        store=vocabulary.store,
        items=sent.items,
        is_batch=sent.is_batch,
        return_existing=if_exists == "return",
        max_labels=quota_of(request),
        describe=lambda error: problem_of(error, request_id_of(request)),
    )
    path = request.url.path.rstrip("/")

    def work(requester: Requester) -> Response:
        if idempotency_key is None:
            outcomes, is_replayed = registration.run(requester), False
        else:
            outcomes, is_replayed = registration.run_once(requester, idempotency_key, [if_exists, sent.body])
        response = _batch_response(outcomes, vocabulary) if sent.is_batch else _response(outcomes[0], vocabulary, path)
        if is_replayed:
            response.headers["Idempotency-Replayed"] = "true"
        return response

    return await context.while_connected(request, work)


@router.get(
    "/labels",
    response_model=LabelListView,
    response_description="A page of labels.",
    summary="List labels",
    description="Lists labels in the order of their creation, or with `prefix` in the order of the matching texts. "
    "Filters can be combined. A page of labels with much metadata ends before `limit`, with `has_more`.",
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

    def work() -> Response:
        vocabulary.await_revision(min_revision, context.revision_wait_seconds)
        page = store.list(limit, after, category, q, parent=parent, prefix=prefix)
        data = label_views(page.data, vocabulary)
        return json_response(
            LabelListView(
                data=data,
                has_more=page.has_more,
                first_id=data[0].id if data else None,
                last_id=data[-1].id if data else None,
            )
        )

    return await context.in_label_thread(request, work)


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
    label = await context_of(request).in_label_thread(request, lambda: label_view(store.get(label_id), vocabulary))
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
    changes = await context.spool.read_json(request, parse_label_changes)
    tags = parse_if_match(if_match)

    def work(requester: Requester) -> LabelView:
        label = vocabulary.labeler.update(label_id, changes, if_match=tags, requester=requester)
        return label_view(label, vocabulary)

    label = await context.while_connected(request, work)
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
    revision = await context.in_label_thread(request, lambda: labeler.remove(label_id, if_match=tags))
    return Response(status_code=204, headers={REVISION_HEADER: str(revision)})


def _response(outcome: Outcome, vocabulary: Vocabulary, path: str) -> Response:
    assert isinstance(outcome, RegisteredLabel)  # the error of a single label was raised
    (label,) = label_views([outcome.label], vocabulary)
    headers = {"Location": f"{path}/{label.id}"} | etag_header(label)
    return json_response(label, headers=headers, status=201 if outcome.created else 200)


def _batch_response(outcomes: Sequence[Outcome], vocabulary: Vocabulary) -> Response:
    labels = [outcome.label for outcome in outcomes if isinstance(outcome, RegisteredLabel)]
    views = iter(label_views(labels, vocabulary, max_metadata_bytes=MAX_BATCH_ANSWER_BYTES))
    items: list[LabelResultView | LabelFailureView] = []
    for i, outcome in enumerate(outcomes):
        if isinstance(outcome, Refusal):
            problem = ProblemView(**outcome.problem)
            items.append(LabelFailureView(index=i, status=outcome.problem["status"], error=problem))
        else:
            items.append(LabelResultView(index=i, status=201 if outcome.created else 200, label=next(views)))
    return json_response(LabelBatchView(data=items))
