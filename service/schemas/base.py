"""Shared types and validation of the HTTP interface's JSON.

Units are part of the names; scores are 0 to 1. Bodies with unknown members are refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from vidlex.service.bounds import MAX_NAME_CHARS
from vidlex.service.errors import InvalidParameter

BodyT = TypeVar("BodyT", bound=BaseModel)

Name = Annotated[
    str,
    Field(
        description=f"1 to {MAX_NAME_CHARS} characters after NFKC normalisation, without control or bidirectional "
        "characters.",
        examples=["golden retriever"],
    ),
]


def _whole(value: object) -> object:
    """Serializers of languages with one type of number write 0.0 or 1e3 for integers."""
    if isinstance(value, float) and math.isinf(value):
        raise ValueError("Input should be a valid integer; this number is too large")
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE = BeforeValidator(_whole)
"""Marks every integer of a request body, after its bounds: pydantic loses those that follow in the JSON schema."""
Probability = Annotated[float, Field(ge=0, le=1)]
Int64 = Annotated[int, Field(json_schema_extra={"format": "int64"})]
Revision = Annotated[int, Field(ge=0, lt=2**63, json_schema_extra={"format": "int64"}), WHOLE]
Milliseconds = Annotated[int, Field(ge=0, le=10**12, json_schema_extra={"format": "int64"}), WHOLE]
Names = Annotated[list[Name], Field(fail_fast=True)]
Texts = Annotated[list[str], Field(fail_fast=True)]
_MAX_PROBLEMS = 100
_MAX_POINTER_PART_CHARS = 64
# By type of pydantic error whose message names Python types or classes.
_MESSAGES = {
    "missing": "is missing",
    "extra_forbidden": "is not a known member",
    "model_type": "must be a JSON object",
    "dict_type": "must be a JSON object",
    "list_type": "must be a JSON list",
    "string_type": "must be a string",
}


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _bounded(cls, value: object) -> object:
        # pydantic makes an error for each unknown member.
        if isinstance(value, dict) and len(value) > len(cls.model_fields) + _MAX_PROBLEMS:
            raise ValueError("has too many members")
        return value


class View(BaseModel):
    """Every field is sent, with null if it has no value."""

    model_config = ConfigDict(json_schema_serialization_defaults_required=True)


class WarningView(View):
    """A fact that may make a result less useful than it looks."""

    code: str = Field(description="Stable identifier.", examples=["vocabulary_empty"])
    detail: str = Field(description="Explanation for people.", examples=["No label is registered yet"])


class ProblemItemView(View):
    """One invalid member or parameter."""

    pointer: str = Field(
        description="JSON pointer (RFC 6901) to the invalid member of the body, or `/` and the name of a parameter.",
        examples=["/name"],
    )
    detail: str = Field(description="What is wrong with it.", examples=["is missing"])


def _is_none(value: object) -> bool:
    return value is None


def _drop_null(schema: dict[str, Any]) -> None:
    schema.update(schema.pop("anyOf")[0])
    schema.pop("default", None)


def _member(description: str, **more: Any) -> Any:
    """Sent only with some codes, and never as null."""
    return Field(None, description=description, exclude_if=_is_none, json_schema_extra=_drop_null, **more)


class ProblemView(View):
    """An error (RFC 9457). A `code` may add members that are not listed here."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(description="Always `about:blank`; see `code`.", examples=["about:blank"])
    title: str = Field(description="What the code means.", examples=["Not found"])
    status: int = Field(description="The HTTP status, or that of a batch's item.", examples=[404])
    detail: str = Field(description="What went wrong in this request, for people.", examples=["There is no such label"])
    code: str = Field(
        description="Stable identifier of the kind of error; each response of this document lists its codes.",
        examples=["not_found"],
    )
    request_id: str = Field(
        description="The `X-Request-Id` of the response. The service's log contains it too.",
        examples=["0eebd98abb12c582eadd684670a3c118"],
    )
    errors: list[ProblemItemView] | None = _member("The invalid members, with some codes of status 400 and 422.")
    existing_id: str | None = _member("With `label_exists`: id of the label that has the name or alias.")
    current_revision: Int64 | None = _member("With `revision_not_reached`: the replica's revision.")
    max_bytes: Int64 | None = _member("With `upload_too_large`: the limit.")
    num_missing: int | None = _member("With `model_conflict`: labels that the prepared model has not encoded yet.")
    limit: str | None = _member(
        "With `share_exceeded` and `overloaded`: which limit was reached; the service's documents list them.",
        examples=["queued_labels"],
    )
    retry_after_ms: int | None = _member("When to retry, as in the header `Retry-After`.", ge=1000)


def problem_items(errors: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """JSON pointers (RFC 6901) and messages. Never contains the input."""
    items = []
    for error in errors[:_MAX_PROBLEMS]:
        pointer = "".join(f"/{_escape(part)}" for part in error["loc"])
        detail = _MESSAGES.get(error["type"]) or str(error["msg"]).removeprefix("Value error, ")
        items.append({"pointer": pointer, "detail": detail})
    return items


def validate(model: type[BodyT], value: object, *, max_problems: int = _MAX_PROBLEMS) -> BodyT:
    """Raises InvalidParameter with up to ``max_problems`` ``errors``."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        problems = problem_items(error.errors(include_url=False, include_input=False, include_context=False))
        problems = problems[:max_problems]
        detail = "; ".join(f"{p['pointer'] or '/'}: {p['detail']}" for p in problems[:3])
        raise InvalidParameter(detail, errors=problems) from None


def validator_of(model: type[BodyT]) -> Callable[[object], BodyT]:
    return partial(validate, model)


def _escape(part: object) -> str:
    text = "".join(c if c.isprintable() else "?" for c in str(part))[:_MAX_POINTER_PART_CHARS]
    return text.replace("~", "~0").replace("/", "~1")
