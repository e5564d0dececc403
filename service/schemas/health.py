from __future__ import annotations

from typing import Literal

from pydantic import Field

from vidlex.service.schemas.base import View


class LiveView(View):
    """The process answers."""

    status: Literal["alive"] = Field(default="alive", description="Always `alive`.")


class CheckView(View):
    """State of one part of the service."""

    ok: bool = Field(description="Whether the part works.")
    detail: str = Field(description="Explanation for people.", examples=["answers"])


class ReadyView(View):
    """Whether the service can answer requests."""

    status: Literal["ready", "starting", "not_ready", "stopping"] = Field(
        description="`ready`: every check is ok. `starting`: the model is loading. `not_ready`: a check has failed. "
        "`stopping`: the service is shutting down."
    )
    checks: dict[str, CheckView] = Field(
        description="By part: `store`, `schema`, `model`, `encoder`, `index`, `decoders`, `isolation`, and `start` "
        "until the start is complete."
    )
