"""The JSON of the HTTP interface: what every part of it shares. Imports vidlex.service.errors alone.

Values are in the units that their names say, scores are 0..1. Unknown members are refused: a misspelt option that is
silently ignored is worse than an error.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vidlex.service.errors import InvalidParameter

BodyT = TypeVar("BodyT", bound=BaseModel)

Name = Annotated[str, Field(description="1 to 128 characters after NFKC; no control or bidirectional characters")]
Probability = Annotated[float, Field(ge=0, le=1)]
Revision = Annotated[int, Field(ge=0, lt=2**63)]
Milliseconds = Annotated[int, Field(ge=0, le=10**12)]


_WORDS = {
    "missing": "is missing",
    "extra_forbidden": "is not known here",
    "model_type": "must be a JSON object",
    "dict_type": "must be a JSON object",
    "list_type": "must be a JSON list",
    "string_type": "must be a text",
}
"""By pydantic's type of error: what its own message says in Python's words, or with the name of a class of ours."""


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class ProblemView(BaseModel):
    """RFC 9457, as application/problem+json."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str
    errors: list[dict[str, str]] | None = None


def problems_of(error: ValidationError) -> list[dict[str, str]]:
    """``[{pointer, detail}]`` with JSON pointers (RFC 6901). Never repeats what was sent."""
    return problem_items(list(error.errors(include_url=False, include_input=False, include_context=False)))


def problem_items(items: list[Any]) -> list[dict[str, str]]:
    """The same from pydantic's error dictionaries."""
    found = []
    for item in items[:100]:
        place = "".join(f"/{_escape(part)}" for part in item["loc"])
        text = _WORDS.get(item["type"]) or str(item["msg"]).removeprefix("Value error, ")
        found.append({"pointer": place, "detail": text})
    return found


def validate(model: type[BodyT], value: Any) -> BodyT:
    """``value`` (parsed JSON) as ``model``. Raises InvalidParameter with ``errors``."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        problems = problems_of(error)
        detail = "; ".join(f"{p['pointer'] or '/'}: {p['detail']}" for p in problems[:3])
        raise InvalidParameter(detail, errors=problems) from None


def _escape(part: object) -> str:
    text = "".join(c if c.isprintable() else "?" for c in str(part))[:64]
    return text.replace("~", "~0").replace("/", "~1")
