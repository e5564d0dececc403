"""Reading the annotation files of public datasets: strictly, because a file read wrongly still gives numbers.

Every fault names the file, the line and the remedy. Byte order marks and CRLF are faults too: a file that carries them
went through an editor or a spreadsheet, which also changes ids (a leading ``-``, ``1E5...``).
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


class AnnotationError(ValueError):
    """An annotation file is not what it should be. The message names file, line and remedy."""

    def __init__(self, path: Path, line: int | None, problem: str, remedy: str) -> None:
        place = str(path) if line is None else f"{path}:{line}"
        super().__init__(f"{place}: {problem}. Remedy: {remedy}.")


@dataclass(frozen=True)
class Row:
    """One record of a CSV file, and where it stands."""

    path: Path
    line: int
    values: Mapping[str, str]

    def __getitem__(self, column: str) -> str:
        return self.values[column]

    def error(self, problem: str, remedy: str) -> AnnotationError:
        return AnnotationError(self.path, self.line, problem, remedy)

    def integer(self, column: str, *, low: int = 0, high: int | None = None) -> int:
        """A whole number; ``10.0`` counts as one, as some copies write times so."""
        text = self[column]
        try:
            number = float(text)
            value = int(number)
        except (ValueError, OverflowError):
            number = value = -1
        if value != number or value < low or (high is not None and value > high):
            limits = f"at least {low}" if high is None else f"in {low}..{high}"
            raise self.error(f"{column} is {text!r}, not a whole number {limits}", _FETCH_AGAIN)
        return value

    def youtube_id(self, column: str) -> str:
        """Eleven characters, any of which may be ``-`` or ``_``; never stripped, never lower-cased."""
        text = self[column]
        if not is_youtube_id(text):
            raise self.error(f"{column} is {text!r}, not a YouTube id of 11 characters", _FETCH_AGAIN)
        return text


_FETCH_AGAIN = "take the file as published; a spreadsheet or an editor may have changed this line"


def is_youtube_id(text: str) -> bool:
    return len(text) == 11 and text.isascii() and all(c.isalnum() or c in "-_" for c in text)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_text(path: Path) -> str:
    """A UTF-8 file with neither byte order mark nor carriage returns. Raises AnnotationError."""
    if not path.is_file():
        raise AnnotationError(path, None, "there is no such file", "give the path of the published annotation file")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise AnnotationError(path, None, f"the file is larger than {MAX_FILE_BYTES} bytes", "is this the right file?")
    raw = path.read_bytes()
    if raw.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        remedy = "take the file as published, or remove the mark: sed -i '1s/^\\xEF\\xBB\\xBF//' FILE"
        raise AnnotationError(path, 1, "the file begins with a byte order mark", remedy)
    if (found := raw.find(b"\r")) >= 0:
        line = raw.count(b"\n", 0, found) + 1
        remedy = "take the file as published, or convert it: sed -i 's/\\r$//' FILE"
        raise AnnotationError(path, line, "the line ends with a carriage return (CRLF)", remedy)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise AnnotationError(path, line, "the line is not UTF-8", _FETCH_AGAIN) from None


def read_csv(path: Path, columns: Sequence[str], *, missing_column: str = "") -> list[Row]:
    """Records of a CSV file with a header; columns are found by name, others are kept as well.

    ``missing_column`` is a remedy of the dataset's own. Raises AnnotationError.
    """
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    rows: list[Row] = []
    header: list[str] = []
    start = 1
    try:
        for fields in reader:
            line, start = start, reader.line_num + 1
            if not header:
                header = fields
                _check_header(path, header, columns, missing_column)
            elif fields and len(fields) != len(header):
                raise AnnotationError(
                    path, line, f"{len(fields)} fields where the header has {len(header)}", _FETCH_AGAIN
                )
            elif fields:
                rows.append(Row(path, line, dict(zip(header, fields, strict=True))))
    except csv.Error as error:
        raise AnnotationError(path, start, f"not a CSV line ({error})", _FETCH_AGAIN) from None
    if not header:
        raise AnnotationError(path, 1, "the file is empty", _FETCH_AGAIN)
    return rows


def _check_header(path: Path, header: Sequence[str], columns: Sequence[str], remedy: str) -> None:
    for column in columns:
        if column not in header:
            found = ", ".join(header)[:200]
            problem = f"no column {column!r} in the header ({found})"
            raise AnnotationError(path, 1, problem, remedy or f"the file needs the columns {', '.join(columns)}")


def read_json(path: Path, kind: type[ModelT], *, remedy: str = _FETCH_AGAIN) -> ModelT:
    """A JSON file of the given form; members that ``kind`` does not name are ignored. Raises AnnotationError."""
    text = read_text(path)
    try:
        json.loads(text)
        return kind.model_validate_json(text)
    except json.JSONDecodeError as error:
        raise AnnotationError(path, error.lineno, f"not JSON ({error.msg})", remedy) from None
    except RecursionError:
        raise AnnotationError(path, 1, "JSON nested too deeply", remedy) from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(step) for step in first["loc"]) or "the whole"
        raise AnnotationError(path, line_of(text, first["loc"]), f"{where}: {first['msg']}", remedy) from None


def line_of(text: str, place: Sequence[int | str]) -> int:
    """The line on which the value at ``place`` (keys and indices from the outside in) begins, as far as it exists."""
    decoder = json.JSONDecoder()
    position = _skip(text, 0)
    for step in place:
        found = _step(decoder, text, position, step)
        if found is None:
            break
        position = found
    return text.count("\n", 0, position) + 1


def _step(decoder: json.JSONDecoder, text: str, position: int, step: int | str) -> int | None:
    """Where the member ``step`` of the object or list at ``position`` begins."""
    is_object = text[position] == "{"
    if text[position] not in "{[":
        return None
    end = _skip(text, position + 1)
    index = 0
    while text[end] not in "}]":
        key: int | str = index
        if is_object:
            key, end = decoder.raw_decode(text, end)
            end = _skip(text, _skip(text, end) + 1)  # behind the colon
        if key == step:
            return end
        _, end = decoder.raw_decode(text, end)
        end = _skip(text, end)
        if text[end] == ",":
            end = _skip(text, end + 1)
        index += 1
    return None


def _skip(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\n\r":
        position += 1
    return position
