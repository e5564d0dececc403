"""The manifest of a batch job: one JSON object per line."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from vidlex.service.schemas.base import Strict
from vidlex.service.schemas.classify import ClassifyParams

MAX_CUSTOM_ID_CHARS = 512
MAX_URL_CHARS = 8192

Url = Annotated[str, Field(min_length=1, max_length=MAX_URL_CHARS)]


class BatchLine(Strict):
    """A video of a batch."""

    custom_id: str = Field(
        min_length=1,
        max_length=MAX_CUSTOM_ID_CHARS,
        description="Id of the client, unique in the manifest; its result line has it too.",
        examples=["video-17"],
    )
    url: Url | None = Field(None, description="https:// or s3:// address of the video.")
    uri: Url | None = Field(None, description="The same as `url`.")
    params: ClassifyParams | None = Field(None, description="Options; null: those of the job.")
    metadata: dict[str, Any] | None = Field(None, description="Returned in the result line as it is.")

    @model_validator(mode="after")
    def _one_address(self) -> BatchLine:
        if (self.url is None) == (self.uri is None):
            raise ValueError("needs one of url and uri")
        return self

    @property
    def address(self) -> str:
        return self.url or self.uri or ""
