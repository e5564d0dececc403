from __future__ import annotations

from typing import Literal

from pydantic import Field, SkipValidation

from vidlex.service.bounds import MAX_PREVIEWS
from vidlex.service.schemas.base import Int64, ProblemView, Strict, View, WarningView
from vidlex.service.schemas.classify import ModelView
from vidlex.service.schemas.labels import NewLabelBody


class PreviewBatchBody(Strict):
    """Labels to preview, validated independently: an invalid one does not affect the others."""

    labels: list[SkipValidation[NewLabelBody]] = Field(
        min_length=1, max_length=MAX_PREVIEWS, description="The labels; the response lists them in this order."
    )


class NeighbourView(View):
    """A stored label near another one in the model's space."""

    id: str = Field(description="Id of the neighbour.", examples=["lbl_000000010000vn7hc6x9xe2f"])
    name: str = Field(description="Name of the neighbour.", examples=["labrador"])
    similarity: float = Field(description="Cosine of the two labels' vectors.", examples=[0.81])
    distance: float = Field(
        description="1 - cosine, divided by its mean over the vocabulary: 1 is an average pair.", examples=[0.31]
    )


class CardView(View):
    """How the model represents a label."""

    object: Literal["label.card"] = Field(default="label.card", description="Type of this object.")
    id: str | None = Field(description="Id of the label; null for a preview.")
    name: str = Field(description="Name of the label.", examples=["golden retriever"])
    prompts: list[str] = Field(
        description="The text encoder's inputs, which contain the name.", examples=[["a video of a golden retriever"]]
    )
    attributes: list[list[str]] = Field(
        description="The language model's most likely words, one list per prefix; empty without a language model.",
        examples=[[["dog", "fur", "golden"]]],
    )
    neighbours: list[NeighbourView] = Field(description="The nearest stored labels, nearest first.")
    warnings: list[WarningView] = Field(
        description="`near_duplicate`: the model hardly distinguishes it from another label. `label_exists`: another "
        "label has the name or alias. `label_not_encoded`: the served model has not encoded it yet. "
        "`hub_label`: it is close to nearly every video."
    )
    model: ModelView = Field(description="The model that made this card.")
    vocabulary_revision: Int64 = Field(description="Revision of the vocabulary that was compared with.", examples=[2])


class CardResultView(View):
    """An item of a batch that has a card."""

    index: int = Field(description="Position in the request's `labels`, from 0.")
    status: Literal[200] = Field(description="Always 200.")
    card: CardView = Field(description="The card.")
    error: None = Field(default=None, description="Always null.")


class CardFailureView(View):
    """An item of a batch that was refused."""

    index: int = Field(description="Position in the request's `labels`, from 0.")
    status: int = Field(ge=400, le=599, description="Status of the error.")
    card: None = Field(default=None, description="Always null.")
    error: ProblemView = Field(description="Why the item was refused.")


class CardBatchView(View):
    """Results of a batch, one per item, in the order of the request."""

    object: Literal["list"] = Field(default="list", description="Type of this object.")
    data: list[CardResultView | CardFailureView] = Field(description="The results.")
