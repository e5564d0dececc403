"""What /readyz tells."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel


class CheckView(BaseModel):
    ok: bool
    detail: str


class ReadyView(BaseModel):
    status: Literal["ready", "starting", "not_ready", "stopping"]
    checks: dict[str, CheckView]
