from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator
from typing_extensions import TypeAliasType

from vidlex.service.bounds import NAMESPACE_PATTERN
from vidlex.service.schemas.base import WHOLE, Int64, Strict, View

_RATE = "Rate limit per replica; null: as in the settings; 0: unlimited."
_BURST = "Requests that may be sent at once; null: as in the settings."
_MAX_LABELS = "With this many labels in the namespace, the key cannot add further ones; null: as in the settings."
_NAMESPACE_OR_ANY = rf"^(\*|{NAMESPACE_PATTERN})$"


Scope = TypeAliasType(
    "Scope",
    Annotated[
        Literal["read", "write", "admin"],
        Field(
            description="`read`: list labels and classify. `write`: also change labels. `admin`: everything, including "
            "keys and models."
        ),
    ],
)


class NewKeyBody(Strict):
    """An API key to create."""

    name: str = Field("", max_length=128, description="A note on the key's purpose.", examples=["importer"])
    scope: Scope = Field(description="What the key may do.")
    namespace: str = Field(
        "*",
        pattern=_NAMESPACE_OR_ANY,
        description="The only namespace that the key can reach; `*`: any.",
        examples=["zoo"],
    )
    expires_in_seconds: Annotated[int, Field(ge=1, le=10 * 366 * 86_400), WHOLE] | None = Field(
        None, description="Lifetime in seconds; null: unlimited.", examples=[2_592_000]
    )
    requests_per_second: float | None = Field(None, ge=0, le=1e6, description=_RATE)
    burst: Annotated[int, Field(ge=1, le=10**6), WHOLE] | None = Field(None, description=_BURST)
    max_labels: Annotated[int, Field(ge=0, le=10**8), WHOLE] | None = Field(
        None, description=f"{_MAX_LABELS} At most that of the creating key."
    )

    @field_validator("name")
    @classmethod
    def _printable(cls, name: str) -> str:
        if not name.isprintable():  # lists of keys are printed on terminals
            raise ValueError("must not contain control or format characters")
        return name


class ApiKeyView(View):
    """An API key without its secret."""

    object: Literal["api_key"] = Field(default="api_key", description="Type of this object.")
    id: str = Field(description="Public part of the key, for logs and revocation.", examples=["051f58579272"])
    name: str = Field(description="A note on the key's purpose.", examples=["importer"])
    scope: Scope = Field(description="What the key may do.")
    namespace: str = Field(description="The only namespace that the key can reach; `*`: any.", examples=["*"])
    created_at_ms: Int64 = Field(description="Unix time in milliseconds.", examples=[1796057582554])
    expires_at_ms: Int64 | None = Field(description="Unix time in milliseconds; null: never.")
    last_used_at_ms: Int64 | None = Field(
        description="Unix time in milliseconds, rounded down to the minute and up to a minute old; null: never used."
    )
    requests_per_second: float | None = Field(description=_RATE)
    burst: int | None = Field(description=_BURST)
    max_labels: int | None = Field(description=_MAX_LABELS)


class NewApiKeyView(ApiKeyView):
    """A created API key. The only response that contains its secret."""

    key: str = Field(
        description="The key to send. It cannot be retrieved again.", examples=["vdx_051f58579272_" + "0" * 64]
    )


class ApiKeyListView(View):
    """API keys without their secrets."""

    object: Literal["list"] = Field(default="list", description="Type of this object.")
    data: list[ApiKeyView] = Field(description="The keys.")
