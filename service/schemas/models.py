from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from vidlex.service.bounds import FINGERPRINT_PATTERN
from vidlex.service.schemas.base import Strict, View


class PrepareModelBody(Strict):
    """A model to load."""

    model: str = Field(
        min_length=1,
        max_length=1000,
        description="`VIDLEX_MODEL`, the name of a model of the zoo, or one of `VIDLEX_ALLOWED_MODELS`.",
        examples=["photo-small"],
    )


class DropModelBody(Strict):
    """A model to unload."""

    fingerprint: str = Field(
        pattern=f"^{FINGERPRINT_PATTERN}$", description="Fingerprint of the model.", examples=["dummy-1"]
    )


class LoadedModelView(View):
    """A model and how far it has encoded the labels."""

    model: str = Field(description="What was passed to `prepare_model`, or `VIDLEX_MODEL`.", examples=["photo-small"])
    id: str = Field(description="Name of the model.", examples=["photo-small"])
    fingerprint: str = Field(description="Identifies the model and its label vectors.", examples=["dummy-1"])
    loaded: bool = Field(description="Whether the responding replica has loaded it.")
    num_encoded: int = Field(description="Labels of all namespaces with a vector of this model.", examples=[230])
    num_refused: int = Field(description="Labels that the model cannot encode, as known to this replica.", examples=[0])
    complete: bool = Field(description="Whether every label that the model can encode has a vector.")


class GenerationView(View):
    """Number of stored vectors of one model in one namespace."""

    namespace: str = Field(description="The namespace.", examples=["default"])
    fingerprint: str = Field(description="Fingerprint of the model.", examples=["dummy-1"])
    num_labels: int = Field(description="Labels with a vector.", examples=[230])


class ModelsView(View):
    """The served model, and models that can replace it."""

    object: Literal["models"] = Field(default="models", description="Type of this object.")
    configured: str = Field(description="`VIDLEX_MODEL` of the responding replica.", examples=["photo-small"])
    served: LoadedModelView = Field(description="The model that answers requests.")
    previous: LoadedModelView | None = Field(description="The model that `rollback_model` serves again.")
    prepared: LoadedModelView | None = Field(description="The model that `activate_model` serves.")
    loading: str | None = Field(description="The model that this replica is loading.")
    problem: str | None = Field(description="Why the last load failed.")
    num_labels: int = Field(description="Labels of all namespaces.", examples=[230])
    generations: list[GenerationView] = Field(description="Stored vectors by namespace and model.")


class LabelShiftView(View):
    """How a label's scores differ between two models. Means are over the videos."""

    id: str = Field(description="Id of the label.", examples=["lbl_000000020000wn88xex5bvdb"])
    name: str = Field(description="Name of the label.", examples=["golden retriever"])
    mean_shift: float = Field(description="Mean of the new score minus the old score.", examples=[0.21])
    mean_score_old: float = Field(description="Mean score by the served model.", examples=[0.4])
    mean_score_new: float = Field(description="Mean score by the other model.", examples=[0.61])
    num_gained: int = Field(description="Videos that only the new model matches.", examples=[3])
    num_lost: int = Field(description="Videos that only the old model matches.", examples=[0])
    mean_rank_move: float = Field(description="Mean change of rank; negative: up.", examples=[-1.5])


class ModelDiffView(View):
    """The served model compared with the prepared (else the previous) one on the namespace's recent videos."""

    object: Literal["model.diff"] = Field(default="model.diff", description="Type of this object.")
    old: str = Field(description="Fingerprint of the served model.", examples=["dummy-1"])
    new: str = Field(description="Fingerprint of the other model.", examples=["dummy-2"])
    num_videos: int = Field(description="Videos that were compared.", examples=[16])
    num_labels: int = Field(description="Labels that both models have encoded.", examples=[230])
    resized: bool = Field(description="The models' input sizes differ: the recorded frames were resized.")
    rank_correlation: list[Annotated[float, Field(ge=-1, le=1)] | None] = Field(
        description="Spearman's correlation of the labels' ranks, one per video; null if a model gives all labels the "
        "same score.",
        examples=[[0.97, 0.95]],
    )
    labels: list[LabelShiftView] = Field(description="The labels, largest mean shift first.")
