"""/labels/{id}/card and /labels:preview: how the model reads a label, before or after it is stored."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from vidlex.service.classification.cards import Card, card_of, preview
from vidlex.service.errors import VidlexError
from vidlex.service.http.context import VocabularyOfRequest, context_of
from vidlex.service.http.problems import problem_of, request_id_of
from vidlex.service.labels.store.records import NewLabel
from vidlex.service.models.served_model import Vocabulary
from vidlex.service.routes.labels import new_label, read_item
from vidlex.service.schemas.base import ProblemView, validate
from vidlex.service.schemas.cards import CardView, NeighbourView, PreviewBatchBody, PreviewBatchView, PreviewItemView
from vidlex.service.schemas.classify import ModelView, WarningView
from vidlex.service.schemas.labels import NewLabelBody

router = APIRouter(tags=["labels"], responses={"default": {"model": ProblemView, "description": "problem+json"}})

_SCHEMAS = [NewLabelBody.model_json_schema(), PreviewBatchBody.model_json_schema()]
_BODY: dict[str, Any] = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": {"anyOf": _SCHEMAS}}}}
}


@router.get("/labels/{label_id}/card", response_model=CardView, summary="How the model reads a label")
async def get_card(request: Request, label_id: str, vocabulary: VocabularyOfRequest) -> Response:
    card = await context_of(request).in_label_thread(lambda: card_of(vocabulary, label_id))
    return _json(_view(card, vocabulary))


@router.post(
    "/labels:preview",
    response_model=CardView | PreviewBatchView,
    summary="The card of a label, or of up to 32 as {labels: [...]}, without storing anything",
    openapi_extra=_BODY,
)
async def preview_labels(request: Request, vocabulary: VocabularyOfRequest) -> Response:
    context = context_of(request)
    body = await context.spool.read_json(request)
    if isinstance(body, dict) and "labels" in body:
        read = [read_item(item) for item in validate(PreviewBatchBody, body).labels]
        good = [item for item in read if isinstance(item, NewLabel)]
        outcomes = iter(await context.in_label_thread(lambda: preview(vocabulary, good)))
        results = [next(outcomes) if isinstance(item, NewLabel) else item for item in read]
        request_id = request_id_of(request)
        items = [_item(i, result, vocabulary, request_id) for i, result in enumerate(results)]
        return _json(PreviewBatchView(data=items))
    new = new_label(validate(NewLabelBody, body))
    (card,) = await context.in_label_thread(lambda: preview(vocabulary, [new]))
    if isinstance(card, VidlexError):
        raise card
    return _json(_view(card, vocabulary))


def _item(index: int, result: Card | VidlexError, vocabulary: Vocabulary, request_id: str) -> PreviewItemView:
    if isinstance(result, VidlexError):
        return PreviewItemView(index=index, status=result.status, error=problem_of(result, request_id))
    return PreviewItemView(index=index, status=200, card=_view(result, vocabulary))


def _view(card: Card, vocabulary: Vocabulary) -> CardView:
    return CardView(
        id=None if card.label is None else card.label.id,
        name=card.name,
        prompts=list(card.description.prompts),
        attributes=[list(texts) for texts in card.description.attributes],
        neighbours=[
            NeighbourView(id=n.label.id, name=n.label.name, similarity=n.similarity, distance=n.distance)
            for n in card.neighbours
        ],
        warnings=[WarningView(code=code, detail=detail) for code, detail in card.warnings],
        model=ModelView(id=vocabulary.facts.id, fingerprint=vocabulary.facts.fingerprint),
        vocabulary_revision=card.revision,
    )


def _json(view: CardView | PreviewBatchView) -> Response:
    return Response(view.model_dump_json(), media_type="application/json")
