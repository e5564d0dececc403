"""Label cards as answers show them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from vidlex.service.schemas.base import Strict
from vidlex.service.schemas.classify import ModelView, WarningView

MAX_PREVIEWS = 32


class PreviewBatchBody(Strict):
    """Several labels to preview. Each is validated and answered by itself."""

    labels: list[Any] = Field(min_length=1, max_length=MAX_PREVIEWS)


class NeighbourView(BaseModel):
    id: str
    name: str
    similarity: float = Field(description="cosine of the two labels' vectors")
    distance: float = Field(description="1 - cosine, as a share of its mean over the vocabulary")


class CardView(BaseModel):
    object: Literal["label.card"] = "label.card"
    id: str | None = Field(description="null for a preview")
    name: str
    prompts: list[str] = Field(description="the texts that the encoder reads, with the label in them")
    attributes: list[list[str]] = Field(
        description="what the language model wrote, its likeliest words: a list for each prefix; none without an LLM"
    )
    neighbours: list[NeighbourView]
    warnings: list[WarningView]
    model: ModelView
    vocabulary_revision: int


class PreviewItemView(BaseModel):
    index: int
    status: int = Field(description="200, else the error's status")
    card: CardView | None = None
    error: dict[str, Any] | None = None


class PreviewBatchView(BaseModel):
    object: Literal["list"] = "list"
    data: list[PreviewItemView]
