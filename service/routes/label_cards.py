"""/labels/{id}/card and /labels:preview: how the model represents a label, stored or not."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from vidlex.service.bounds import MAX_PREVIEWS
from vidlex.service.classification.cards import Card, card_of, preview
from vidlex.service.errors import VidlexError
from vidlex.service.http.context import VocabularyOfRequest, context_of
from vidlex.service.http.label_bodies import for_valid_labels, parse_labels
from vidlex.service.http.openapi.document import json_body
from vidlex.service.http.openapi.headers import NAMESPACE_PARAMETER
from vidlex.service.http.problems import problem_of, request_id_of
from vidlex.service.http.responses import json_response
from vidlex.service.models.served_model import Vocabulary
from vidlex.service.routes.labels import LabelId
from vidlex.service.schemas.base import ProblemView, WarningView
from vidlex.service.schemas.cards import (
    CardBatchView,
    CardFailureView,
    CardResultView,
    CardView,
    NeighbourView,
    PreviewBatchBody,
)
from vidlex.service.schemas.classify import ModelView
from vidlex.service.schemas.labels import NewLabelBody

router = APIRouter(tags=["labels"])


@router.get(
    "/labels/{label_id}/card",
    response_model=CardView,
    response_description="The card.",
    summary="Get a label's card",
    description="Shows how the served model represents a label: its prompts, the language model's words, the nearest "
    "labels, and warnings.",
    openapi_extra=NAMESPACE_PARAMETER,
)
async def get_label_card(request: Request, label_id: LabelId, vocabulary: VocabularyOfRequest) -> Response:
    card = await context_of(request).while_connected(
        request, lambda requester: card_of(vocabulary, label_id, requester)
    )
    return json_response(_view(card, vocabulary))


@router.post(
    "/labels:preview",
    response_model=Annotated[CardView | CardBatchView, Field(discriminator="object")],
    response_description="The card, or the results of a batch.",
    summary="Preview labels",
    description=f"Returns the card that a label would have, or those of up to {MAX_PREVIEWS} as `labels`. Stores "
    "nothing.",
    openapi_extra=json_body(NewLabelBody, PreviewBatchBody) | NAMESPACE_PARAMETER,
)
async def preview_labels(request: Request, vocabulary: VocabularyOfRequest) -> Response:
    context = context_of(request)
    sent = await context.spool.read_json(request, lambda body: parse_labels(body, PreviewBatchBody))
    results = await context.while_connected(
        request, lambda requester: for_valid_labels(sent.items, lambda labels: preview(vocabulary, labels, requester))
    )
    if sent.is_batch:
        request_id = request_id_of(request)
        items = [_item(i, result, vocabulary, request_id) for i, result in enumerate(results)]
        return json_response(CardBatchView(data=items))
    (card,) = results
    if isinstance(card, VidlexError):
        raise card
    return json_response(_view(card, vocabulary))


def _item(
    index: int, result: Card | VidlexError, vocabulary: Vocabulary, request_id: str
) -> CardResultView | CardFailureView:
    if isinstance(result, VidlexError):
        problem = ProblemView(**problem_of(result, request_id))
        return CardFailureView(index=index, status=result.status, error=problem)
    return CardResultView(index=index, status=200, card=_view(result, vocabulary))


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
