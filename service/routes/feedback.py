"""/feedback: judgements of users, and thresholds that are fitted to them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response

from vidlex.service.bounds import DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE
from vidlex.service.feedback.feedback import ChangedThreshold, Feedback
from vidlex.service.feedback.records import NewJudgement
from vidlex.service.http.caller import client_of
from vidlex.service.http.conditional import parse_if_match
from vidlex.service.http.context import VocabularyOfRequest, context_of
from vidlex.service.http.openapi.document import json_body
from vidlex.service.http.openapi.headers import NAMESPACE_PARAMETER, REVISION_HEADER, header_refs
from vidlex.service.http.path_ids import with_ids
from vidlex.service.http.responses import json_response
from vidlex.service.routes.labels import IfMatch, LabelId
from vidlex.service.schemas.base import validate
from vidlex.service.schemas.feedback import (
    MAX_JUDGEMENTS,
    FeedbackView,
    FitView,
    JudgedLabelListView,
    JudgementBatchBody,
    JudgementBody,
    JudgementListView,
    ThresholdVersionListView,
    ThresholdVersionView,
)
from vidlex.service.views.feedback import feedback_view, fit_view, judged_label_view, judgement_view, version_view

router = APIRouter(tags=["feedback"])

JudgementId = Annotated[str, Path(description="Id of the judgement.", examples=["jdg_01jd0q7w4k8t3x5m2n9p6r1c"])]
Limit = Annotated[int, Query(ge=1, le=MAX_PAGE_SIZE, description="Objects per page.")]
After = Annotated[str | None, Query(max_length=100, description="The `last_id` of the previous page.")]
TargetPrecision = Annotated[
    float | None,
    Query(
        gt=0,
        lt=1,
        description="Precision to reach on the judged videos, by the fit, with the lowest threshold. Default: the "
        "threshold at which the label is as likely right as wrong.",
        examples=[0.9],
    ),
]


@router.post(
    "/feedback",
    status_code=201,
    response_model=FeedbackView,
    response_description="The stored judgements.",
    summary="Judge labels of videos",
    description=f"Stores a judgement, or up to {MAX_JUDGEMENTS} as `judgements`, all or none: whether a label applies "
    "to a video or a segment. A newer judgement of the same video or segment and label replaces an older one. The "
    "score of a kept video is computed from its features, also for later models; else the submitted one is used.",
    openapi_extra=json_body(JudgementBody, JudgementBatchBody) | NAMESPACE_PARAMETER,
)
async def create_feedback(request: Request, vocabulary: VocabularyOfRequest) -> Response:
    context, feedback = context_of(request), _feedback(request)
    new, pointer = await context.spool.read_json(request, _parse)
    client = client_of(request)

    def work() -> FeedbackView:
        return feedback_view(feedback.add(vocabulary, new, client, pointer), feedback.min_judgements)

    return json_response(await context.in_label_thread(request, work), status=201)


@router.get(
    "/feedback",
    response_model=JudgementListView,
    response_description="A page of judgements.",
    summary="List judgements",
    description="Lists the judgements of a label, newest first.",
    openapi_extra=NAMESPACE_PARAMETER,
)
async def list_feedback(
    request: Request,
    vocabulary: VocabularyOfRequest,
    *,
    label_id: Annotated[
        str, Query(max_length=64, description="Id of the label.", examples=["lbl_000000020000wn88xex5bvdb"])
    ],
    limit: Limit = DEFAULT_PAGE_SIZE,
    after: After = None,
) -> Response:
    feedback = _feedback(request)

    def work() -> JudgementListView:
        page = feedback.page(vocabulary, label_id, limit=limit, after=after)
        data = [judgement_view(judgement) for judgement in page.data]
        first, last = (data[0].id, data[-1].id) if data else (None, None)
        return JudgementListView(data=data, has_more=page.has_more, first_id=first, last_id=last)

    return json_response(await context_of(request).in_label_thread(request, work))


@router.delete(
    "/feedback/{judgement_id}",
    status_code=204,
    response_description="The judgement is removed.",
    summary="Remove a judgement",
    description="Removes a judgement. A threshold that was fitted with it stays as it is.",
    openapi_extra=NAMESPACE_PARAMETER,
)
async def delete_feedback(request: Request, vocabulary: VocabularyOfRequest, judgement_id: JudgementId) -> Response:
    feedback = _feedback(request)
    namespace = vocabulary.namespace
    await context_of(request).in_label_thread(request, lambda: feedback.remove(namespace, judgement_id))
    return Response(status_code=204)


@router.get(
    "/feedback:labels",
    response_model=JudgedLabelListView,
    response_description="A page of labels.",
    summary="List judged labels",
    description="Lists the labels that have judgements, in order of creation.",
    openapi_extra=NAMESPACE_PARAMETER,
)
async def list_judged_labels(
    request: Request, vocabulary: VocabularyOfRequest, *, limit: Limit = DEFAULT_PAGE_SIZE, after: After = None
) -> Response:
    feedback = _feedback(request)

    def work() -> JudgedLabelListView:
        found = feedback.labels(vocabulary, limit + 1, after)
        data = [
            judged_label_view(count.label_id, name, count.num_judgements, feedback.min_judgements)
            for name, count in found[:limit]
        ]
        first, last = (data[0].label_id, data[-1].label_id) if data else (None, None)
        return JudgedLabelListView(data=data, has_more=len(found) > limit, first_id=first, last_id=last)

    return json_response(await context_of(request).in_label_thread(request, work))


@router.get(
    with_ids("/feedback/fits/{label_id}"),
    response_model=FitView,
    response_description="The proposal.",
    summary="Fit a threshold",
    description="Fits the label's threshold to its judgements, with the precision and recall of the old and the new "
    "one. Stores nothing.",
    openapi_extra=NAMESPACE_PARAMETER,
)
async def get_fit(
    request: Request, vocabulary: VocabularyOfRequest, label_id: LabelId, *, target_precision: TargetPrecision = None
) -> Response:
    feedback = _feedback(request)

    def work() -> FitView:
        return fit_view(feedback.proposal(vocabulary, label_id, target_precision), vocabulary.facts)

    return json_response(await context_of(request).in_label_thread(request, work))


@router.post(
    with_ids("/feedback/fits/{label_id}:apply"),
    response_model=ThresholdVersionView,
    response_description="The stored threshold.",
    responses={200: header_refs(REVISION_HEADER)},
    summary="Apply a fitted threshold",
    description="Makes the proposed threshold that of the label, on every replica, and keeps a version of it.",
    openapi_extra=NAMESPACE_PARAMETER,
)
async def apply_threshold(
    request: Request,
    vocabulary: VocabularyOfRequest,
    label_id: LabelId,
    *,
    target_precision: TargetPrecision = None,
    proposal: Annotated[
        str | None,
        Query(
            max_length=64,
            description="`proposal` of the fit that is confirmed; 412 if the judgements give another one by now.",
            examples=["3f1c9a7be2d04568"],
        ),
    ] = None,
    if_match: IfMatch = None,
) -> Response:
    feedback, client = _feedback(request), client_of(request)
    tags = parse_if_match(if_match)

    def work() -> ChangedThreshold:
        return feedback.apply(
            vocabulary, label_id, client, target_precision=target_precision, expected=proposal, if_match=tags
        )

    return _changed(await context_of(request).in_label_thread(request, work))


@router.post(
    with_ids("/feedback/fits/{label_id}:revert"),
    response_model=ThresholdVersionView,
    response_description="The restored threshold.",
    responses={200: header_refs(REVISION_HEADER)},
    summary="Revert a fitted threshold",
    description="Restores the threshold from before the newest applied fit. Repeating it goes back further.",
    openapi_extra=NAMESPACE_PARAMETER,
)
async def revert_threshold(
    request: Request, vocabulary: VocabularyOfRequest, label_id: LabelId, *, if_match: IfMatch = None
) -> Response:
    feedback, client = _feedback(request), client_of(request)
    tags = parse_if_match(if_match)

    def work() -> ChangedThreshold:
        return feedback.revert(vocabulary, label_id, client, if_match=tags)

    return _changed(await context_of(request).in_label_thread(request, work))


@router.get(
    with_ids("/feedback/fits/{label_id}/versions"),
    response_model=ThresholdVersionListView,
    response_description="The versions.",
    summary="List versions of a threshold",
    description="Lists what feedback has changed of a label's threshold, newest first.",
    openapi_extra=NAMESPACE_PARAMETER,
)
async def list_threshold_versions(request: Request, vocabulary: VocabularyOfRequest, label_id: LabelId) -> Response:
    feedback = _feedback(request)

    def work() -> ThresholdVersionListView:
        data = [version_view(version) for version in feedback.versions(vocabulary, label_id)]
        first, last = (data[0].id, data[-1].id) if data else (None, None)
        return ThresholdVersionListView(data=data, has_more=False, first_id=first, last_id=last)

    return json_response(await context_of(request).in_label_thread(request, work))


def _changed(changed: ChangedThreshold) -> Response:
    return json_response(version_view(changed.version), headers={REVISION_HEADER: str(changed.revision)})


def _feedback(request: Request) -> Feedback:
    return context_of(request).require_parts().background.feedback


def _parse(body: object) -> tuple[list[NewJudgement], str]:
    """With the pointer to each in the body. Raises InvalidParameter."""
    if isinstance(body, dict) and "judgements" in body:
        return [_new_judgement(item) for item in validate(JudgementBatchBody, body).judgements], "/judgements/{}"
    return [_new_judgement(validate(JudgementBody, body))], ""


def _new_judgement(body: JudgementBody) -> NewJudgement:
    return NewJudgement(**body.model_dump())
