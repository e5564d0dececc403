"""Reads the manifest of a batch, line by line. A bad line fails alone; a manifest without limits fails whole."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vidlex.service.errors import InvalidParameter, InvalidRequest, VidlexError
from vidlex.service.labels.store.metadata_limits import clean_metadata
from vidlex.service.schemas.base import validate
from vidlex.service.schemas.batch import BatchLine
from vidlex.service.schemas.json_text import parse_json

MAX_LINE_BYTES = 1 << 20
MAX_LINES = 50_000
MAX_MANIFEST_BYTES = 256 << 20


@dataclass(frozen=True)
class ManifestLine:
    number: int  # from 1, without empty lines
    line: BatchLine | None
    error: VidlexError | None  # instead of ``line``


def count_lines(path: Path) -> int:
    """Raises InvalidParameter for a manifest that is too large, has too many lines or none."""
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise InvalidParameter(f"The manifest has more than {MAX_MANIFEST_BYTES} bytes")
    num_lines = 0
    for _ in _raw_lines(path):
        num_lines += 1
        if num_lines > MAX_LINES:
            raise InvalidParameter(f"The manifest has more than {MAX_LINES} lines")
    if not num_lines:
        raise InvalidParameter("The manifest has no lines")
    return num_lines


def read_manifest(path: Path) -> Iterator[ManifestLine]:
    """Of a manifest that ``count_lines`` accepts."""
    first_lines: dict[bytes, int] = {}  # digest of the custom id -> number
    for number, raw in enumerate(_raw_lines(path), 1):
        try:
            line = _parse(raw)
            digest = hashlib.sha256(line.custom_id.encode("utf-8", "surrogatepass")).digest()[:16]
            first = first_lines.setdefault(digest, number)
            if first != number:
                raise InvalidParameter(f"Line {first} has this custom_id too")
        except VidlexError as error:
            yield ManifestLine(number, None, error)
        else:
            yield ManifestLine(number, line, None)


def _parse(raw: bytes | None) -> BatchLine:
    if raw is None:
        raise InvalidRequest(f"The line is longer than {MAX_LINE_BYTES} bytes")
    line = validate(BatchLine, parse_json(raw, name="The line"))
    if line.metadata is not None:
        line.metadata = clean_metadata(line.metadata)
    return line


def _raw_lines(path: Path) -> Iterator[bytes | None]:
    """Lines that are not empty, without their end; None for one that is too long."""
    with path.open("rb") as file:
        is_first, is_inside = True, False  # of a line that is too long
        while raw := file.readline(MAX_LINE_BYTES + 2):
            is_end = raw.endswith(b"\n")
            if is_inside:
                is_inside = not is_end
                continue
            if is_first:
                raw, is_first = raw.removeprefix(b"\xef\xbb\xbf"), False
            text = raw.strip()
            if len(text) > MAX_LINE_BYTES:
                is_inside = not is_end
                yield None
            elif text:
                yield text
