"""What a body may be written in: no content coding such as gzip."""

from __future__ import annotations

from starlette.requests import Request

from vidlex.service.errors import UnsupportedMedia

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


def _codings(request: Request) -> str:
    """Those of all Content-Encoding headers but `identity`, separated by commas."""
    values = ",".join(request.headers.getlist("content-encoding")).split(",")
    names = (_printable(value.strip().lower()) for value in values)
    return ", ".join(name for name in names if name not in ("", "identity"))


def _printable(text: str) -> str:
    return "".join(c if c.isascii() and c.isprintable() else "?" for c in text)
