from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from vidlex.service.bounds import FINGERPRINT_PATTERN
from vidlex.service.schemas.base import WHOLE, Int64, Strict, View
from vidlex.service.schemas.classify import ModelView

_MAX_BASE64_CHARS = 8 * 2**20


class StatisticsBody(Strict):
    """Mean and covariance of the feature vectors of unlabelled videos, as `vidlex calibrate` computes them."""

    model: str = Field(
        pattern=f"^{FINGERPRINT_PATTERN}$", description="Fingerprint of the model that encoded the videos."
    )
    num_videos: Annotated[int, Field(ge=1, lt=2**53), WHOLE] = Field(description="Number of the videos.", examples=[16])
    mean: str = Field(
        max_length=_MAX_BASE64_CHARS,
        description="Mean vector: base64 of D little-endian float32 numbers.",
        examples=["AACAPgAAgD4AAIA+"],
    )
    basis: str = Field(
        max_length=_MAX_BASE64_CHARS,
        description="Principal directions, orthogonal, each times its standard deviation: base64 of r x D numbers.",
        examples=["zczMPQAAAAAAAAAA"],
    )
    residual: float = Field(
        ge=0, description="Variance in each direction orthogonal to the basis.", examples=[0.0001], allow_inf_nan=False
    )


class PlattBody(Strict):
    """Platt scaling, fitted to labelled videos on this calibration's logits."""

    slope: float = Field(gt=0, le=1e6, description="Factor of the logit.", examples=[1.2])
    intercept: float = Field(ge=-1e6, le=1e6, description="Added to it.", examples=[-0.4])


class CalibrationBody(Strict):
    """A calibration to compute, from uploaded statistics or from the service's own traffic."""

    source: Literal["statistics", "recent"] = Field(
        description="`statistics`: those of `statistics`. `recent`: of the videos that this replica has classified in "
        "the namespace since it started, if `VIDLEX_COLLECT_STATISTICS` is on."
    )
    statistics: StatisticsBody | None = Field(None, description="With `source=statistics`.")
    platt: PlattBody | None = Field(None, description="Null: no labelled videos.")
    dry_run: bool = Field(False, description="Return the calibration without storing it.")

    @model_validator(mode="after")
    def _consistent(self) -> CalibrationBody:
        if (self.source == "statistics") != (self.statistics is not None):
            raise ValueError("statistics is required with source=statistics, and only then")
        return self


class LabelEffectView(View):
    """What a calibration changes for a label. Shares assume normally distributed similarities."""

    id: str = Field(description="Id of the label.", examples=["lbl_000000020000wn88xex5bvdb"])
    name: str = Field(description="Name of the label.", examples=["golden retriever"])
    mean_similarity: float = Field(description="Mean similarity over the domain's videos.", examples=[0.21])
    std_similarity: float = Field(description="Its standard deviation.", examples=[0.03])
    share_before: float = Field(description="Share of the videos that match without the calibration.", examples=[0.41])
    share_after: float = Field(description="Share of the videos that match with it.", examples=[0.02])
    hub: bool = Field(description="Whether the label is close to nearly every video.")


class CalibrationView(View):
    """The calibration of the served model's scores in the namespace."""

    object: Literal["calibration"] = Field(default="calibration", description="Type of this object.")
    fingerprint: str | None = Field(
        description="Identifies the calibration; responses of `classify_video` name it. Null: there is none.",
        examples=["5b0c7ad91e3f2468"],
    )
    model: ModelView = Field(description="The served model.")
    source: Literal["videos", "recent"] | None = Field(description="Where the videos came from; null without any.")
    num_videos: Int64 = Field(description="Videos that it was computed from; 0 without any.", examples=[16])
    created_at_ms: Int64 | None = Field(
        description="Unix time in milliseconds; null without any.", examples=[1796057582384]
    )
    has_platt: bool = Field(description="Whether labelled videos were used.")
    num_recent_videos: Int64 = Field(
        description="Videos whose statistics this replica has collected for `source=recent`.", examples=[0]
    )
    stored: bool = Field(description="Whether it is applied; false for a dry run, and without a calibration.")
    vocabulary_revision: Int64 = Field(description="Revision of the vocabulary that has it.", examples=[3])
    labels: list[LabelEffectView] = Field(
        description="Labels that are close to nearly every video, then those whose share of matching videos changes "
        "most. Empty without a calibration."
    )
