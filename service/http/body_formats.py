"""What a body may be written in: JSON in UTF-8, and no content coding such as gzip."""

from __future__ import annotations

import json

from starlette.requests import Request

from vidlex.service.bounds import MAX_JSON_LEVELS, MAX_JSON_VALUES
from vidlex.service.errors import InvalidRequest, UnsupportedMedia
from vidlex.service.http.json_limits import check_json

_MAX_CODING_CHARS = 40


def has_content_coding(request: Request) -> bool:
    """Whether a body was compressed for its transfer."""
    return bool(_codings(request))


def unsupported_coding(request: Request) -> UnsupportedMedia:
    """The error of a body with a content coding. Bodies are never expanded: their size would be the sender's choice."""
    return UnsupportedMedia(
        f"Content-Encoding {_codings(request)[:_MAX_CODING_CHARS]} is not supported: send the body without it",
        headers={"Accept-Encoding": "identity"},  # RFC 9110, section 15.5.16
    )


def refuse_part_encoding(value: bytes) -> None:
    """Of a Content-Transfer-Encoding of a multipart part. Raises UnsupportedMedia unless it stands for plain bytes."""
    encoding = value.decode("latin-1").strip().lower()
    if encoding not in ("", "binary", "7bit", "8bit"):
        shown = _printable(encoding)[:_MAX_CODING_CHARS]
        raise UnsupportedMedia(f"Content-Transfer-Encoding {shown} is not supported: send the bytes of the part as is")


def parse_json(data: bytes, *, name: str, max_values: int = MAX_JSON_VALUES) -> object:
    """Accepts a byte order mark, which editors and PowerShell write; refuses NaN and Infinity.

    Raises InvalidRequest, JsonTooComplex.
    """
    check_json(data, name=name, max_values=max_values, max_levels=MAX_JSON_LEVELS)

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        parsed: object = json.loads(data.decode("utf-8-sig"), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{name} is not valid UTF-8 JSON", internal=repr(error)[:200]) from None
    return parsed


def _codings(request: Request) -> str:
    """Those of all Content-Encoding headers but `identity`, separated by commas."""
    values = ",".join(request.headers.getlist("content-encoding")).split(",")
    names = (_printable(value.strip().lower()) for value in values)
    return ", ".join(name for name in names if name not in ("", "identity"))


def _printable(text: str) -> str:
    return "".join(c if c.isascii() and c.isprintable() else "?" for c in text)
