"""/calibration: scores that are comparable between labels, from unlabelled videos of the namespace's own domain."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from vidlex.service.bounds import MAX_PAGE_SIZE
from vidlex.service.errors import InvalidParameter
from vidlex.service.http.context import VocabularyOfRequest, context_of
from vidlex.service.http.openapi.document import json_body
from vidlex.service.http.openapi.headers import NAMESPACE_PARAMETER, REVISION_HEADER, header_refs
from vidlex.service.http.responses import json_response
from vidlex.service.models.applied_calibration import AppliedCalibration
from vidlex.service.models.calibration import (
    calibration_of,
    fit,
    label_effects,
    parse_statistics,
)
from vidlex.service.models.recent_statistics import RecentStatistics
from vidlex.service.models.served_model import Vocabulary
from vidlex.service.schemas.base import validator_of
from vidlex.service.schemas.calibration import CalibrationBody, CalibrationView, LabelEffectView
from vidlex.service.schemas.classify import ModelView

router = APIRouter(tags=["calibration"])

Limit = Annotated[int, Query(ge=0, le=MAX_PAGE_SIZE, description="Labels to return.")]
_DEFAULT_LABELS = 20


@router.get(
    "/calibration",
    response_model=CalibrationView,
    response_description="The calibration, or that there is none.",
    summary="Get the calibration",
    description="Returns the calibration of the served model's scores in the namespace.",
    openapi_extra=NAMESPACE_PARAMETER,
)
async def get_calibration(
    request: Request, vocabulary: VocabularyOfRequest, limit: Limit = _DEFAULT_LABELS
) -> Response:
    context = context_of(request)
    recent = context.require_parts().recent_statistics
    view = await context.in_label_thread(request, lambda: _view(vocabulary, calibration_of(vocabulary), recent, limit))
    return json_response(view)


@router.put(
    "/calibration",
    response_model=CalibrationView,
    response_description="The calibration.",
    summary="Calibrate",
    description="Computes a calibration from statistics of unlabelled videos and applies it to all scores of the "
    "served model in the namespace, on every replica. Replaces an earlier one. Needs at least 8 videos.",
    openapi_extra=json_body(CalibrationBody) | NAMESPACE_PARAMETER,
)
async def put_calibration(
    request: Request, vocabulary: VocabularyOfRequest, limit: Limit = _DEFAULT_LABELS
) -> Response:
    context = context_of(request)
    recent = context.require_parts().recent_statistics
    body = await context.spool.read_json(request, validator_of(CalibrationBody))

    def work() -> CalibrationView:
        calibration = _fit(vocabulary, body, recent)
        if not body.dry_run:
            revision = vocabulary.store.put_calibration(vocabulary.facts.fingerprint, calibration.stored)
            vocabulary.labeler.wait_for_index()
            return _view(vocabulary, calibration, recent, limit, revision=revision)
        return _view(vocabulary, calibration, recent, limit, is_stored=False)

    return json_response(await context.in_label_thread(request, work))


@router.delete(
    "/calibration",
    status_code=204,
    response_description="There is no calibration.",
    responses={204: header_refs(REVISION_HEADER)},
    summary="Remove the calibration",
    description="Returns to the model's own scores, on every replica. Repeating the request has no effect.",
    openapi_extra=NAMESPACE_PARAMETER,
)
async def delete_calibration(request: Request, vocabulary: VocabularyOfRequest) -> Response:
    def work() -> int:
        revision = vocabulary.store.put_calibration(vocabulary.facts.fingerprint, None)
        vocabulary.labeler.wait_for_index()
        return revision

    revision = await context_of(request).in_label_thread(request, work)
    return Response(status_code=204, headers={REVISION_HEADER: str(revision)})


def _fit(vocabulary: Vocabulary, body: CalibrationBody, recent: RecentStatistics) -> AppliedCalibration:
    facts = vocabulary.facts
    platt = None if body.platt is None else (body.platt.slope, body.platt.intercept)
    if body.statistics is not None:
        values = body.statistics.model_dump(exclude={"model"})
        return fit(vocabulary, parse_statistics(values, body.statistics.model, facts), "videos", platt)
    if not recent.is_enabled:
        raise InvalidParameter("This service does not collect statistics; set VIDLEX_COLLECT_STATISTICS")
    statistics = recent.of(vocabulary.namespace, facts.fingerprint)
    if statistics is None:
        raise InvalidParameter("No video has been classified here since the start of this replica")
    return fit(vocabulary, statistics, "recent", platt)


def _view(
    vocabulary: Vocabulary,
    calibration: AppliedCalibration | None,
    recent: RecentStatistics,
    limit: int,
    *,
    revision: int | None = None,
    is_stored: bool = True,
) -> CalibrationView:
    facts = vocabulary.facts
    stored = None if calibration is None else calibration.stored
    effects = [] if calibration is None or not limit else label_effects(vocabulary, calibration, limit)
    collected = recent.of(vocabulary.namespace, facts.fingerprint)
    return CalibrationView(
        fingerprint=None if stored is None else stored.fingerprint,
        model=ModelView(id=facts.id, fingerprint=facts.fingerprint),
        source=None if stored is None else stored.source,
        num_videos=0 if stored is None else stored.num_videos,
        created_at_ms=None if stored is None else stored.created_at_ms,
        has_platt=stored is not None and stored.has_platt,
        num_recent_videos=0 if collected is None else collected.num_videos,
        stored=is_stored and stored is not None,
        vocabulary_revision=vocabulary.index.revision if revision is None else revision,
        labels=[
            LabelEffectView(
                id=effect.label.id,
                name=effect.label.name,
                mean_similarity=effect.mean,
                std_similarity=effect.std,
                share_before=effect.share_before,
                share_after=effect.share_after,
                hub=effect.is_hub,
            )
            for effect in effects
        ],
    )
