from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field, SkipValidation, model_validator

from vidlex.service.bounds import (
    MAX_ALIASES,
    MAX_BATCH_LABELS,
    MAX_CATEGORIES,
    MAX_METADATA_BYTES,
    MAX_METADATA_KEYS,
    MAX_METADATA_LEVELS,
    MAX_PARENTS,
)
from vidlex.service.schemas.base import Int64, Name, Names, Probability, ProblemView, Strict, Texts, View, WarningView

_ALIASES = "Other names of the label, for lookups and filters; the model reads only `name`."
_CATEGORIES = "Groups to filter by; case is ignored."
_PARENTS = "Ids, names or aliases of existing labels."
_METADATA = (
    f"Any JSON object of at most {MAX_METADATA_BYTES} bytes, {MAX_METADATA_KEYS} keys and {MAX_METADATA_LEVELS} levels "
    "of objects and lists. The service only stores it."
)
_THRESHOLD = "Lowest score at which the label matches a video; null: the model's default."


class NewLabelBody(Strict):
    """A label to register."""

    name: Name = Field(description="Text that the model encodes. Unique in the namespace, ignoring case.")
    aliases: Names = Field(default=[], max_length=MAX_ALIASES, description=_ALIASES, examples=[["goldie"]])
    categories: Texts = Field(default=[], max_length=MAX_CATEGORIES, description=_CATEGORIES, examples=[["animal"]])
    parents: Texts = Field(default=[], max_length=MAX_PARENTS, description=_PARENTS, examples=[["dog"]])
    threshold: Probability | None = Field(None, description=_THRESHOLD)
    metadata: dict[str, Any] = Field(default={}, description=_METADATA, examples=[{"team": "pets"}])


class LabelChangesBody(Strict):
    """Members to replace. At least one is required; only `threshold` may be null."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})

    name: Name | None = Field(None, description="New name; it is encoded.")
    aliases: Names | None = Field(None, max_length=MAX_ALIASES, description=_ALIASES)
    categories: Texts | None = Field(None, max_length=MAX_CATEGORIES, description=_CATEGORIES)
    parents: Texts | None = Field(None, max_length=MAX_PARENTS, description=_PARENTS)
    threshold: Probability | None = Field(None, description=_THRESHOLD)
    metadata: dict[str, Any] | None = Field(None, description=_METADATA)

    @model_validator(mode="after")
    def _only_threshold_may_be_null(self) -> LabelChangesBody:
        for name in self.model_fields_set - {"threshold"}:
            if getattr(self, name) is None:
                raise ValueError(f"{name} cannot be null")
        if not self.model_fields_set:
            raise ValueError("at least one member is required")
        return self


class LabelBatchBody(Strict):
    """Labels to register, validated independently: an invalid one does not affect the others."""

    labels: list[SkipValidation[NewLabelBody]] = Field(
        min_length=1, max_length=MAX_BATCH_LABELS, description="The labels; the response lists them in this order."
    )


class ParentView(View):
    """A label that another label names as its parent."""

    id: str = Field(description="Id of the parent.", examples=["lbl_000000010000vn7hc6x9xe2f"])
    name: str = Field(description="Current name of the parent.", examples=["dog"])


class LabelView(View):
    """A stored label."""

    object: Literal["label"] = Field(default="label", description="Type of this object.")
    id: str = Field(description="Id, unique in the namespace.", examples=["lbl_000000020000wn88xex5bvdb"])
    name: str = Field(description="Text that the model encodes.", examples=["golden retriever"])
    aliases: list[str] = Field(description=_ALIASES, examples=[["goldie"]])
    categories: list[str] = Field(description=_CATEGORIES, examples=[["animal"]])
    parents: list[ParentView] = Field(description="Labels that this one belongs to.")
    threshold: float | None = Field(description=_THRESHOLD)
    metadata: dict[str, Any] = Field(description=_METADATA)
    created_at_ms: Int64 = Field(description="Unix time in milliseconds.", examples=[1796057582384])
    updated_at_ms: Int64 = Field(description="Unix time of the last change in milliseconds.", examples=[1796057582384])
    revision: Int64 = Field(
        description="The vocabulary's revision after the last change; usable as `min_revision`.", examples=[2]
    )
    warnings: list[WarningView] = Field(
        description="`hub_label`: the label is close to nearly every video of the calibrated domain, or of those that "
        "the model knows; its score tells them apart poorly. `metadata_not_shown`: the metadata, stored by an earlier "
        "version, is too deeply nested to be sent, or the answer to a batch would be too large with it."
    )
    etag: str = Field(
        description="The entity tag without quotes, for `If-Match` and `If-None-Match`.", examples=["2-1a22d5fcb30"]
    )


class LabelListView(View):
    """A page of labels."""

    object: Literal["list"] = Field(default="list", description="Type of this object.")
    data: list[LabelView] = Field(description="The labels of this page.")
    has_more: bool = Field(description="Whether another page follows; request it with `after` = `last_id`.")
    first_id: str | None = Field(description="Id of the page's first label; null if the page is empty.")
    last_id: str | None = Field(description="Id of the page's last label; null if the page is empty.")


class LabelResultView(View):
    """An item of a batch that has a label."""

    index: int = Field(description="Position in the request's `labels`, from 0.")
    status: Literal[200, 201] = Field(description="201: created; 200: existed, with `if_exists=return`.")
    label: LabelView = Field(description="The label.")
    error: None = Field(default=None, description="Always null.")


class LabelFailureView(View):
    """An item of a batch that was refused."""

    index: int = Field(description="Position in the request's `labels`, from 0.")
    status: int = Field(ge=400, le=599, description="Status of the error.")
    label: None = Field(default=None, description="Always null.")
    error: ProblemView = Field(description="Why the item was refused.")


class LabelBatchView(View):
    """Results of a batch, one per item, in the order of the request."""

    object: Literal["list"] = Field(default="list", description="Type of this object.")
    data: list[LabelResultView | LabelFailureView] = Field(description="The results.")
