"""What the routes about models take and give."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from vidlex.service.schemas.base import Strict


class PrepareBody(Strict):
    model: str = Field(min_length=1, max_length=1000, description="VIDLEX_MODEL, a zoo name or an allowed model")


class DropBody(Strict):
    fingerprint: str = Field(pattern=r"^[!-~]{1,200}$")


class LoadedModelView(BaseModel):
    model: str
    id: str
    fingerprint: str
    loaded: bool = Field(description="by the replica that answers")
    num_encoded: int = Field(description="labels, of all namespaces, that have its vector")
    num_refused: int = Field(description="labels that it cannot encode, as far as this replica has found")
    complete: bool = Field(description="no label lacks its vector, but those that it cannot encode")


class GenerationView(BaseModel):
    namespace: str
    fingerprint: str
    num_labels: int


class ModelsView(BaseModel):
    """The stored choice, and how far the labels are encoded."""

    object: Literal["models"] = "models"
    configured: str = Field(description="VIDLEX_MODEL of the replica that answers")
    served: LoadedModelView
    previous: LoadedModelView | None
    prepared: LoadedModelView | None
    loading: str | None = Field(description="a model that this replica loads now")
    problem: str | None = Field(description="why the last one could not be loaded")
    num_labels: int = Field(description="of all namespaces")
    generations: list[GenerationView]


class LabelShiftView(BaseModel):
    id: str
    name: str
    mean_shift: float = Field(description="mean over the videos of new score minus old score")
    mean_score_old: float
    mean_score_new: float
    num_gained: int = Field(description="videos that only the new model matches")
    num_lost: int = Field(description="videos that only the old model matches")
    mean_rank_move: float = Field(description="mean places down the list (negative: up)")


class ModelDiffView(BaseModel):
    """The served model beside the prepared (else the previous) one, on the namespace's kept videos."""

    object: Literal["model.diff"] = "model.diff"
    old: str
    new: str
    num_videos: int
    num_labels: int = Field(description="that both have encoded")
    resized: bool = Field(description="the models see pictures of different sizes: the kept ones were resized")
    rank_correlation: list[Annotated[float, Field(ge=-1, le=1)] | None] = Field(
        description="Spearman's, one for each video; null where one model scores all labels alike"
    )
    labels: list[LabelShiftView] = Field(description="largest mean shift first")
