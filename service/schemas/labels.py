"""Labels as requests write them and answers show them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from vidlex.service.schemas.base import Name, Probability, Strict

MAX_BATCH_LABELS = 1000


class NewLabelBody(Strict):
    """A label to register."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"name": "golden retriever", "aliases": ["goldie"], "categories": ["animal"]}]}
    )

    name: Name
    aliases: list[Name] = Field(default=[], max_length=16)
    categories: list[str] = Field(default=[], max_length=32)
    parents: list[str] = Field(default=[], max_length=16, description="names or ids of labels that are there")
    threshold: Probability | None = Field(None, description="score from which it counts as matched; null: the model's")
    metadata: dict[str, Any] = Field(default={}, description="any JSON of yours, at most 16384 bytes")


class LabelChangesBody(Strict):
    """Members to replace; the others stay. A new name is encoded anew."""

    name: Name | None = None
    aliases: list[Name] | None = Field(None, max_length=16)
    categories: list[str] | None = Field(None, max_length=32)
    parents: list[str] | None = Field(None, max_length=16)
    threshold: Probability | None = None
    metadata: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _only_threshold_may_be_null(self) -> LabelChangesBody:
        for name in self.model_fields_set - {"threshold"}:
            if getattr(self, name) is None:
                raise ValueError(f"{name} cannot be null")
        if not self.model_fields_set:
            raise ValueError("nothing to change is given")
        return self


class LabelBatchBody(Strict):
    """Several labels. Each is validated and answered by itself, so one bad one spoils nothing."""

    labels: list[Any] = Field(min_length=1, max_length=MAX_BATCH_LABELS)


class ParentView(BaseModel):
    id: str
    name: str


class LabelView(BaseModel):
    object: Literal["label"] = "label"
    id: str
    name: str
    aliases: list[str]
    categories: list[str]
    parents: list[ParentView]
    threshold: float | None
    metadata: dict[str, Any]
    created_at_ms: int
    updated_at_ms: int
    revision: int
    etag: str = Field(description="of this state of the label, for If-Match")


class LabelListView(BaseModel):
    object: Literal["list"] = "list"
    data: list[LabelView]
    has_more: bool
    first_id: str | None
    last_id: str | None


class BatchItemView(BaseModel):
    index: int
    status: int = Field(description="201 stored, 200 existed (with if_exists=return), else the error's status")
    label: LabelView | None = None
    error: dict[str, Any] | None = None


class BatchView(BaseModel):
    object: Literal["list"] = "list"
    data: list[BatchItemView]
