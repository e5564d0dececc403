"""Strict readers for the annotation files of public datasets.

Every error names the file, the line and the remedy. Byte order marks and CRLF are errors: they show that the file went
through an editor or a spreadsheet, which may also have changed ids (a leading ``-``, ``1E5...``).
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

MAX_FILE_BYTES = 1 << 30
ModelT = TypeVar("ModelT", bound=BaseModel)
_REFETCH_REMEDY = "take the file as published; a spreadsheet or an editor may have changed this line"


class AnnotationError(ValueError):
    def __init__(self, path: Path, line: int | None, problem: str, remedy: str) -> None:
        location = str(path) if line is None else f"{path}:{line}"
        super().__init__(f"{location}: {problem}. Remedy: {remedy}.")


@dataclass(frozen=True)
class Row:
    path: Path
    line: int  # the first of the record
    values: Mapping[str, str]

    def __getitem__(self, column: str) -> str:
        return self.values[column]

    def error(self, problem: str, remedy: str) -> AnnotationError:
        return AnnotationError(self.path, self.line, problem, remedy)

    def integer(self, column: str, *, low: int = 0, high: int | None = None) -> int:
        text = self[column]
        try:
            number = float(text)  # "10.0" is valid
            value = int(number)
        except (ValueError, OverflowError):
            number = value = -1
        if value != number or value < low or (high is not None and value > high):
            limits = f"at least {low}" if high is None else f"in {low}..{high}"
            raise self.error(f"{column} is {text!r}, not a whole number {limits}", _REFETCH_REMEDY)
        return value

    def youtube_id(self, column: str) -> str:
        text = self[column]
        if not is_youtube_id(text):
            raise self.error(f"{column} is {text!r}, not a YouTube id of 11 characters", _REFETCH_REMEDY)
        return text


def is_youtube_id(text: str) -> bool:
    return len(text) == 11 and text.isascii() and all(c.isalnum() or c in "-_" for c in text)


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_text(path: Path) -> str:
    """UTF-8 without byte order mark and carriage returns. Raises AnnotationError."""
    if not path.is_file():
        raise AnnotationError(path, None, "file not found", "give the path of the published annotation file")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise AnnotationError(path, None, f"the file is larger than {MAX_FILE_BYTES} bytes", "is this the right file?")
    raw = path.read_bytes()
    if raw.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        remedy = "take the file as published, or remove the mark: sed -i '1s/^\\xEF\\xBB\\xBF//' FILE"
        raise AnnotationError(path, 1, "the file begins with a byte order mark", remedy)
    if (position := raw.find(b"\r")) >= 0:
        line = raw.count(b"\n", 0, position) + 1
        remedy = "take the file as published, or convert it: sed -i 's/\\r$//' FILE"
        raise AnnotationError(path, line, "the line ends with a carriage return (CRLF)", remedy)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise AnnotationError(path, line, "the line is not UTF-8", _REFETCH_REMEDY) from None


def read_csv(path: Path, columns: Sequence[str], *, missing_column_remedy: str = "") -> list[Row]:
    """A CSV file with a header that contains at least ``columns``. Raises AnnotationError."""
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    rows: list[Row] = []
    header: list[str] = []
    next_line = 1
    try:
        for fields in reader:
            line, next_line = next_line, reader.line_num + 1
            if not header:
                header = fields
                _check_header(path, header, columns, missing_column_remedy)
            elif fields and len(fields) != len(header):
                raise AnnotationError(
                    path, line, f"{len(fields)} fields where the header has {len(header)}", _REFETCH_REMEDY
                )
            elif fields:
                rows.append(Row(path, line, dict(zip(header, fields, strict=True))))
    except csv.Error as error:
        raise AnnotationError(path, next_line, f"not a CSV line ({error})", _REFETCH_REMEDY) from None
    if not header:
        raise AnnotationError(path, 1, "the file is empty", _REFETCH_REMEDY)
    return rows


def _check_header(path: Path, header: Sequence[str], columns: Sequence[str], remedy: str) -> None:
    for column in columns:
        if column not in header:
            names = ", ".join(header)[:200]
            problem = f"no column {column!r} in the header ({names})"
            raise AnnotationError(path, 1, problem, remedy or f"the file needs the columns {', '.join(columns)}")


def read_json(path: Path, model: type[ModelT], *, remedy: str = _REFETCH_REMEDY) -> ModelT:
    text = read_text(path)
    try:
        json.loads(text)
        return model.model_validate_json(text)
    except json.JSONDecodeError as error:
        raise AnnotationError(path, error.lineno, f"not JSON ({error.msg})", remedy) from None
    except RecursionError:
        raise AnnotationError(path, 1, "JSON nested too deeply", remedy) from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = ".".join(str(key) for key in first["loc"]) or "the document"
        raise AnnotationError(path, json_line(text, first["loc"]), f"{name}: {first['msg']}", remedy) from None


def json_line(text: str, keys: Sequence[int | str]) -> int:
    """The line on which the value at ``keys`` (outermost first) begins, or that of its innermost existing parent."""
    decoder = json.JSONDecoder()
    position = _skip_whitespace(text, 0)
    for key in keys:
        member = _member_position(decoder, text, position, key)
        if member is None:
            break
        position = member
    return text.count("\n", 0, position) + 1


def _member_position(decoder: json.JSONDecoder, text: str, position: int, wanted: int | str) -> int | None:
    is_object = text[position] == "{"
    if text[position] not in "{[":
        return None
    end = _skip_whitespace(text, position + 1)
    index = 0
    while text[end] not in "}]":
        key: int | str = index
        if is_object:
            key, end = decoder.raw_decode(text, end)
            end = _skip_whitespace(text, _skip_whitespace(text, end) + 1)  # past the colon
        if key == wanted:
            return end
        _, end = decoder.raw_decode(text, end)
        end = _skip_whitespace(text, end)
        if text[end] == ",":
            end = _skip_whitespace(text, end + 1)
        index += 1
    return None


def _skip_whitespace(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\n\r":
        position += 1
    return position
