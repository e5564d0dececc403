"""Files of labels, read by `vidlex labels import`, `diff` and `apply` and by bulk runs, written by `labels export`.

.jsonl  one label per line: {"name": ..., "aliases": [...], "categories": [...], "parents": [names], "threshold": ...,
        "metadata": {...}}
.json   a list of such objects, or {"labels": [...]}
.csv    columns name, aliases, categories, parents, threshold, metadata; "|" separates the values of a list.
        Cells that a spreadsheet would take for a formula begin with "'", which is removed when the file is read
.txt    one name per line; empty lines and lines that start with "#" are skipped

All formats except .json are streamed.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TextIO

from vidlex.service.bulk.csv_cells import guarded, unguarded

FileFormat = Literal["jsonl", "json", "csv", "txt"]
FORMATS: tuple[FileFormat, ...] = ("jsonl", "json", "csv", "txt")
LISTS = ("aliases", "categories", "parents")
FIELDS = ("name", *LISTS, "threshold", "metadata")
CELL_SEPARATOR = "|"
_IGNORED = frozenset(
    {"object", "id", "created_at_ms", "updated_at_ms", "revision", "warnings", "etag"}
)  # of GET /labels
_EMPTY: dict[str, Any] = {"aliases": [], "categories": [], "parents": [], "threshold": None, "metadata": {}}


class LabelFileError(Exception):
    """The file cannot be read or written, or is not valid."""


class UnknownFormat(LabelFileError): ...


def format_of(path: Path, chosen: FileFormat | None) -> FileFormat:
    """The chosen format, else that of the suffix; JSON Lines for "-"."""
    if chosen is not None:
        return chosen
    if str(path) == "-":
        return "jsonl"
    for known in FORMATS:
        if path.suffix.lower() == f".{known}":
            return known
    raise UnknownFormat(f"{path}: unknown format; set --format to one of {', '.join(FORMATS)}")


@contextmanager
def opened(path: Path) -> Iterator[TextIO]:
    """Open a label file, or standard input for "-". Raises LabelFileError for unreadable files."""
    try:
        if str(path) == "-":
            yield io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8-sig", newline="\n")
            return
        with path.open(encoding="utf-8-sig", newline="\n") as stream:
            yield stream
    except (OSError, UnicodeDecodeError) as error:
        raise LabelFileError(f"{path}: {getattr(error, 'strerror', None) or error}") from None


def read(stream: TextIO, kind: FileFormat) -> Iterator[dict[str, Any]]:
    """Labels in the format of ``POST /labels``. Raises LabelFileError with the line number."""
    if kind == "txt":
        lines = (line.strip() for line in stream)
        yield from ({"name": line} for line in lines if line and not line.startswith("#"))
    elif kind == "csv":
        for entry in _read_csv(stream):
            yield {key: value for key, value in entry.items() if value not in (None, [], {})}
    elif kind == "json":
        document = _loads(stream.read(), "the file")
        entries = document.get("labels", document.get("data")) if isinstance(document, dict) else document
        if not isinstance(entries, list):
            raise LabelFileError('the file must contain a list of labels, or {"labels": [...]}')
        yield from (_entry(entry, f"entry {number}") for number, entry in enumerate(entries, 1))
    else:
        for number, line in enumerate(stream, 1):
            if line.strip():
                yield _entry(_loads(line, f"line {number}"), f"line {number}")


def read_declared(stream: TextIO, kind: FileFormat) -> Iterator[dict[str, Any]]:
    """Labels with every field that the file declares: all fields for JSON, the columns for CSV, the name for text."""
    if kind == "csv":
        yield from _read_csv(stream)
    elif kind == "txt":
        yield from read(stream, kind)
    else:
        yield from (_EMPTY | entry for entry in read(stream, kind))


def write(stream: TextIO, labels: Iterable[dict[str, Any]], kind: FileFormat) -> int:
    """Write the importable fields of each label. Returns the number of labels."""
    num_labels = 0
    writer = csv.DictWriter(stream, FIELDS, lineterminator="\n")
    if kind == "csv":
        writer.writeheader()
    if kind == "json":
        stream.write('{"labels": [')
    for num_labels, label in enumerate(labels, 1):
        entry = _exported(label)
        if kind == "txt":
            stream.write(f"{entry['name']}\n")
        elif kind == "csv":
            writer.writerow(_csv_row(entry))
        elif kind == "json":
            stream.write(("," if num_labels > 1 else "") + "\n  " + json.dumps(entry, ensure_ascii=False))
        else:
            stream.write(json.dumps(entry, ensure_ascii=False) + "\n")
    if kind == "json":
        stream.write("\n]}\n")
    return num_labels


def _exported(label: dict[str, Any]) -> dict[str, Any]:
    """The fields in FIELDS; parents by name, because ids differ between stores."""
    entry = {key: label[key] for key in FIELDS if label.get(key) not in (None, [], {})}
    if "parents" in entry:
        entry["parents"] = [parent["name"] if isinstance(parent, dict) else parent for parent in entry["parents"]]
    return entry


def _read_csv(stream: TextIO) -> Iterator[dict[str, Any]]:
    reader = csv.DictReader(stream)
    try:
        yield from _csv_entries(reader)
    except csv.Error as error:
        raise LabelFileError(f"line {reader.reader.line_num} is not CSV: {error}") from None


def _csv_entries(reader: csv.DictReader[str]) -> Iterator[dict[str, Any]]:
    columns = reader.fieldnames or ()
    if "name" not in columns:
        raise LabelFileError("line 1: a CSV file needs a header line with a column `name`")
    _require_known(columns, "line 1", "column")
    for raw in reader:
        row = {column: unguarded(raw[column] or "") for column in columns}
        entry: dict[str, Any] = {"name": row["name"]}
        for column in LISTS:
            if column in columns:
                parts = [part.strip() for part in row[column].split(CELL_SEPARATOR)]
                entry[column] = [part for part in parts if part]
        if "threshold" in columns:
            try:
                entry["threshold"] = float(row["threshold"]) if row["threshold"] else None
            except ValueError:
                problem = f"threshold {row['threshold']!r} is not a number"
                raise LabelFileError(f"line {reader.line_num}: {problem}") from None
        if "metadata" in columns:
            entry["metadata"] = _loads(row["metadata"], f"line {reader.line_num}, metadata") if row["metadata"] else {}
        yield entry


def _csv_row(entry: dict[str, Any]) -> dict[str, Any]:
    lists = [key for key in LISTS if key in entry]
    for value in (part for key in lists for part in entry[key]):
        if CELL_SEPARATOR in value:
            raise LabelFileError(f"{value!r} contains the list separator {CELL_SEPARATOR!r}; use another format")
    metadata = {"metadata": json.dumps(entry["metadata"], ensure_ascii=False)} if "metadata" in entry else {}
    row = entry | {key: CELL_SEPARATOR.join(entry[key]) for key in lists} | metadata
    return {key: guarded(value) if isinstance(value, str) else value for key, value in row.items()}


def _entry(value: Any, where: str) -> dict[str, Any]:
    if isinstance(value, str):
        return {"name": value}
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise LabelFileError(f"{where}: a label must be a name, or an object with a `name`")
    _require_known(value, where, "member")
    return {key: value[key] for key in FIELDS if value.get(key) is not None}


def _require_known(names: Iterable[str], where: str, kind: str) -> None:
    for name in names:
        if name and name not in FIELDS and name not in _IGNORED:  # a trailing comma makes an empty column
            raise LabelFileError(f"{where}: unknown {kind} {name!r}; known: {', '.join(FIELDS)}")


def _loads(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        raise LabelFileError(f"{where} has too many levels of objects and lists") from None
    except ValueError as error:
        raise LabelFileError(f"{where} is not JSON: {error}") from None
