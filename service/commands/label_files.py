"""Label lists as files: what `vidlex labels import`, `diff` and `apply` read and `vidlex labels export` writes.

.jsonl  one label a line: {"name": ..., "aliases": [...], "categories": [...], "parents": [names], "threshold": ...,
        "metadata": {...}}
.json   a list of such objects, or {"labels": [...]}
.csv    columns name, aliases, categories, parents, threshold, metadata; "|" parts several values in one cell
.txt    one name a line; empty lines and lines that begin with "#" are skipped

All but .json are read and written label by label, so that their size does not matter.
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

from vidlex.service.commands.output import EXIT_USAGE, CommandError

FileFormat = Literal["jsonl", "json", "csv", "txt"]
FORMATS: tuple[FileFormat, ...] = ("jsonl", "json", "csv", "txt")
LISTS = ("aliases", "categories", "parents")
FIELDS = ("name", *LISTS, "threshold", "metadata")
CELL_SEPARATOR = "|"
_EMPTY: dict[str, Any] = {"aliases": [], "categories": [], "parents": [], "threshold": None, "metadata": {}}


def format_of(path: Path, chosen: FileFormat | None) -> FileFormat:
    """The format by choice, else by suffix; JSON Lines for a pipe."""
    if chosen is not None:
        return chosen
    if str(path) == "-":
        return "jsonl"
    for known in FORMATS:
        if path.suffix.lower() == f".{known}":
            return known
    raise CommandError(f"{path}: what format is it? Give --format, one of {', '.join(FORMATS)}", exit_code=EXIT_USAGE)


@contextmanager
def opened(path: Path) -> Iterator[TextIO]:
    """A label file (or standard input for -) for ``read``; every fault becomes a CommandError."""
    try:
        if str(path) == "-":
            yield io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8-sig", newline="\n") if _has_buffer() else sys.stdin
            return
        with path.open(encoding="utf-8-sig", newline="\n") as stream:
            yield stream
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"{path}: {getattr(error, 'strerror', None) or error}") from None


def read(stream: TextIO, kind: FileFormat) -> Iterator[dict[str, Any]]:
    """Labels as ``POST /labels`` takes them, one by one. Raises CommandError that names the line."""
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
            raise CommandError('the file must hold a list of labels, or {"labels": [...]}')
        yield from (_entry(entry, f"entry {number}") for number, entry in enumerate(entries, 1))
    else:
        for number, line in enumerate(stream, 1):
            if line.strip():
                yield _entry(_loads(line, f"line {number}"), f"line {number}")


def read_declared(stream: TextIO, kind: FileFormat) -> Iterator[dict[str, Any]]:
    """The same, each with all that the file decides about: what JSON leaves out is empty, what a CSV file has no
    column for is not its business, and a list of names decides about names alone."""
    if kind == "csv":
        yield from _read_csv(stream)
    elif kind == "txt":
        yield from read(stream, kind)
    else:
        yield from (_EMPTY | entry for entry in read(stream, kind))


def write(stream: TextIO, labels: Iterable[dict[str, Any]], kind: FileFormat) -> int:
    """The part of each label that its user wrote, so that it can be imported elsewhere. Returns the number."""
    num_labels = 0
    writer = csv.DictWriter(stream, FIELDS, lineterminator="\n")
    if kind == "csv":
        writer.writeheader()
    if kind == "json":
        stream.write('{"labels": [')
    for num_labels, label in enumerate(labels, 1):
        entry = _user_part(label)
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


def _has_buffer() -> bool:
    return hasattr(sys.stdin, "buffer")


def _user_part(label: dict[str, Any]) -> dict[str, Any]:
    """Parents by name: ids differ from one store to another."""
    entry = {key: label[key] for key in FIELDS if label.get(key) not in (None, [], {})}
    if "parents" in entry:
        entry["parents"] = [x["name"] if isinstance(x, dict) else x for x in entry["parents"]]
    return entry


def _read_csv(stream: TextIO) -> Iterator[dict[str, Any]]:
    reader = csv.DictReader(stream)
    columns = reader.fieldnames or ()
    if "name" not in columns:
        raise CommandError("line 1: the first line of a CSV file must name its columns, and one must be `name`")
    for row in reader:
        entry: dict[str, Any] = {"name": row["name"]}
        for column in LISTS:
            if column in columns:
                parts = [part.strip() for part in (row[column] or "").split(CELL_SEPARATOR)]
                entry[column] = [part for part in parts if part]
        if "threshold" in columns:
            try:
                entry["threshold"] = float(row["threshold"]) if row["threshold"] else None
            except ValueError:
                raise CommandError(f"line {reader.line_num}: threshold {row['threshold']!r} is no number") from None
        if "metadata" in columns:
            where = f"line {reader.line_num}, metadata"
            entry["metadata"] = _loads(row["metadata"], where) if row["metadata"] else {}
        yield entry


def _csv_row(entry: dict[str, Any]) -> dict[str, Any]:
    lists = [key for key in LISTS if key in entry]
    for value in (part for key in lists for part in entry[key]):
        if CELL_SEPARATOR in value:
            raise CommandError(f"{value!r} contains {CELL_SEPARATOR!r}, which CSV uses here; export as jsonl")
    metadata = {"metadata": json.dumps(entry["metadata"], ensure_ascii=False)} if "metadata" in entry else {}
    return entry | {key: CELL_SEPARATOR.join(entry[key]) for key in lists} | metadata


def _entry(value: Any, where: str) -> dict[str, Any]:
    if isinstance(value, str):
        return {"name": value}
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise CommandError(f"{where}: a label is a name or an object with a `name`")
    return {key: value[key] for key in FIELDS if value.get(key) is not None}


def _loads(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise CommandError(f"{where} is not JSON: {error}") from None
