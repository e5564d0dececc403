"""Label lists as files: what `vidlex labels import` reads and `vidlex labels export` writes.

.jsonl  one label a line: {"name": ..., "aliases": [...], "categories": [...], "threshold": ..., "metadata": {...}}
.json   a list of such objects, or {"labels": [...]}
.csv    columns name, aliases, categories, threshold (several values in one cell are parted by "|")
.txt    one name a line; empty lines and lines that begin with "#" are skipped
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from service.commands.output import EXIT_USAGE, CommandError

FileFormat = Literal["jsonl", "json", "csv", "txt"]
FORMATS: tuple[FileFormat, ...] = ("jsonl", "json", "csv", "txt")
FIELDS = ("name", "aliases", "categories", "threshold", "metadata")
CELL_SEPARATOR = "|"


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


def parse(text: str, kind: FileFormat) -> list[dict[str, Any]]:
    """Labels as ``POST /labels`` takes them. Raises CommandError that names the line."""
    if kind == "txt":
        lines = (line.strip() for line in _lines(text))
        return [{"name": line} for line in lines if line and not line.startswith("#")]
    if kind == "csv":
        return _parse_csv(text)
    if kind == "json":
        document = _loads(text, "the file")
        entries = document.get("labels", document.get("data")) if isinstance(document, dict) else document
        if not isinstance(entries, list):
            raise CommandError('the file must hold a list of labels, or {"labels": [...]}')
        return [_entry(entry, f"entry {number}") for number, entry in enumerate(entries, 1)]
    numbered = ((number, line) for number, line in enumerate(_lines(text), 1) if line.strip())
    return [_entry(_loads(line, f"line {number}"), f"line {number}") for number, line in numbered]


def dump(labels: Iterable[dict[str, Any]], kind: FileFormat) -> str:
    """The part of each label that its user wrote, so that it can be imported elsewhere."""
    entries = [{key: label[key] for key in FIELDS if label.get(key) not in (None, [], {})} for label in labels]
    if kind == "json":
        return json.dumps({"labels": entries}, ensure_ascii=False, indent=2) + "\n"
    if kind == "txt":
        return "".join(f"{entry['name']}\n" for entry in entries)
    if kind == "csv":
        return _dump_csv(entries)
    return "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)


def _lines(text: str) -> list[str]:
    """Lines as editors and JSON see them; str.splitlines would also break at characters that a name may hold."""
    return text.replace("\r\n", "\n").split("\n")


def _parse_csv(text: str) -> list[dict[str, Any]]:
    reader = csv.DictReader(io.StringIO(text.removeprefix("\ufeff")))
    if "name" not in (reader.fieldnames or ()):
        raise CommandError("line 1: the first line of a CSV file must name its columns, and one must be `name`")
    entries = []
    for row in reader:
        entry: dict[str, Any] = {"name": row["name"]}
        for column in ("aliases", "categories"):
            parts = [part.strip() for part in (row.get(column) or "").split(CELL_SEPARATOR)]
            if any(parts):
                entry[column] = [part for part in parts if part]
        if row.get("threshold"):
            try:
                entry["threshold"] = float(row["threshold"])
            except ValueError:
                raise CommandError(f"line {reader.line_num}: threshold {row['threshold']!r} is no number") from None
        if row.get("metadata"):
            entry["metadata"] = _loads(row["metadata"], f"line {reader.line_num}, metadata")
        entries.append(entry)
    return entries


def _dump_csv(entries: list[dict[str, Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, FIELDS, lineterminator="\n")
    writer.writeheader()
    for entry in entries:
        lists = [key for key in ("aliases", "categories") if key in entry]
        for value in (part for key in lists for part in entry[key]):
            if CELL_SEPARATOR in value:
                raise CommandError(f"{value!r} contains {CELL_SEPARATOR!r}, which CSV uses here; export as jsonl")
        metadata = {"metadata": json.dumps(entry["metadata"], ensure_ascii=False)} if "metadata" in entry else {}
        writer.writerow(entry | {key: CELL_SEPARATOR.join(entry[key]) for key in lists} | metadata)
    return buffer.getvalue()


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
