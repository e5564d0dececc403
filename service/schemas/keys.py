"""API keys as requests ask for them and answers show them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from vidlex.service.schemas.base import Strict

_NAMESPACE = r"^(\*|[a-z0-9][a-z0-9_-]{0,63})$"


class NewKeyBody(Strict):
    """A key to make."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "importer", "scope": "write"}]})

    name: str = Field("", max_length=128, description="for people: who or what uses it")
    scope: Literal["read", "write", "admin"] = Field(description="each includes those before it")
    namespace: str = Field("*", pattern=_NAMESPACE, description="the only one it reaches; *: any")
    expires_in_seconds: int | None = Field(None, ge=1, le=10 * 366 * 86_400)
    requests_per_second: float | None = Field(None, ge=0, le=1e6, description="null: the settings'; 0: unlimited")
    burst: int | None = Field(None, ge=1, le=10**6, description="requests at once; null: the settings'")
    max_labels: int | None = Field(
        None, ge=0, le=10**8, description="in its namespace, at most its maker's own; null: the settings'"
    )


class KeyView(BaseModel):
    object: Literal["api_key"] = "api_key"
    id: str
    name: str
    scope: str
    namespace: str
    created_at_ms: int
    expires_at_ms: int | None
    last_used_at_ms: int | None = Field(description="to the minute, and a minute late")
    requests_per_second: float | None
    burst: int | None
    max_labels: int | None


class NewKeyView(KeyView):
    key: str = Field(description="shown this once; nothing can show it again")


class KeyListView(BaseModel):
    object: Literal["list"] = "list"
    data: list[KeyView]
