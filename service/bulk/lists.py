"""Lists of videos: text, CSV, JSON Lines (the manifests of `vidlex data build` too) and Parquet.

Each has a column ``uri``, ``path`` or ``video``, optionally ``id`` (or ``native_id``); the other columns become
metadata. Relative paths are relative to the list. Every reader is bounded, and names file and line of what is wrong.
"""

from __future__ import annotations

import csv
import io
import json
import os
import posixpath
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote_to_bytes, urlsplit

from vidlex.service.bounds import MAX_METADATA_BYTES
from vidlex.service.bulk.remote import SCHEMES, filesystem_and_path, is_remote, scheme_of
from vidlex.service.bulk.source import VideoSource

LIST_SUFFIXES = frozenset({".txt", ".csv", ".jsonl", ".ndjson", ".parquet"})
URI_COLUMNS = ("uri", "path", "video")
ID_COLUMNS = ("id", "native_id")
MAX_LINE_BYTES = 1 << 20
MAX_URI_CHARS = 8192
MAX_ID_CHARS = 512
MAX_COLUMNS = 256
MAX_ROW_GROUP_BYTES = 1 << 31
MAX_PARQUET_METADATA_BYTES = 64 << 20
_NOT_TEXT = re.compile("[\0\ud800-\udfff]")


class SourceError(ValueError):
    """A SRC that cannot be used. The message names it, and the line of a list."""


class _LineError(Exception):
    """A problem of one line; the caller knows which."""


def read_list(location: str) -> Iterator[VideoSource]:
    """Of a path or a URI. Raises SourceError, OSError."""
    suffix = posixpath.splitext(urlsplit(location).path if is_remote(location) else location)[1].lower()
    reader = {".txt": _read_text, ".csv": _read_csv, ".parquet": _read_parquet}.get(suffix, _read_json)
    with _opened(location) as file:
        yield from reader(location, file)


@contextmanager
def _opened(location: str) -> Iterator[BinaryIO]:
    if is_remote(location):
        store, path = filesystem_and_path(location)
        with store.open(path, "rb") as file:
            yield io.BufferedReader(file)  # its own ``readline`` takes no limit
    else:
        with Path(location).open("rb") as file:
            yield file


def _lines(location: str, file: BinaryIO) -> Iterator[tuple[int, str]]:
    """Number and text of each line, without its end and without a byte order mark."""
    number = 0
    while raw := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(raw) > MAX_LINE_BYTES:
            raise SourceError(f"{location}:{number}: the line is longer than {MAX_LINE_BYTES} bytes")
        try:
            yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise SourceError(f"{location}:{number}: the line is not UTF-8") from None


def _read_text(location: str, file: BinaryIO) -> Iterator[VideoSource]:
    for number, line in _lines(location, file):
        if uri := line.strip():
            yield _numbered(location, number, {"uri": uri}, ("uri", None))


def _read_csv(location: str, file: BinaryIO) -> Iterator[VideoSource]:
    position = _Position()
    reader = csv.reader(position.follow(_lines(location, file)), strict=True)
    header: list[str] = []
    columns: tuple[str, str | None] = ("", None)
    try:
        for fields in reader:
            line, position.first = position.first, position.last + 1
            if not fields:
                continue
            if not header:
                header = [field.strip() for field in fields]
                columns = _columns(location, line, header)
            elif len(fields) != len(header):
                raise SourceError(f"{location}:{line}: {len(fields)} fields where the header has {len(header)}")
            else:
                yield _numbered(location, line, dict(zip(header, fields, strict=True)), columns)
    except csv.Error as error:
        raise SourceError(f"{location}:{position.first}: not a CSV line ({error})") from None
    if not header:
        raise SourceError(f"{location}:1: no header; a column must be named {' or '.join(URI_COLUMNS)}")


class _Position:
    """Lines of the present record. A quoted field may span several."""

    def __init__(self) -> None:
        self.first = 1
        self.last = 0
        self._num_bytes = 0

    def follow(self, lines: Iterable[tuple[int, str]]) -> Iterator[str]:
        for number, text in lines:
            self._num_bytes = len(text) + (self._num_bytes if number > self.first else 0)
            if self._num_bytes > MAX_LINE_BYTES:
                raise csv.Error(f"a record of more than {MAX_LINE_BYTES} characters; is a quote not closed?")
            self.last = number
            yield text


def _read_json(location: str, file: BinaryIO) -> Iterator[VideoSource]:
    for number, line in _lines(location, file):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            problem = "nested too deeply" if isinstance(error, RecursionError) else str(error)
            raise SourceError(f"{location}:{number}: not JSON ({problem})") from None
        if not isinstance(row, dict):
            raise SourceError(f"{location}:{number}: not a JSON object")
        columns = _columns(location, number, list(row))
        yield _numbered(location, number, row, columns)


def _read_parquet(location: str, file: BinaryIO) -> Iterator[VideoSource]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    limits = {"thrift_string_size_limit": MAX_PARQUET_METADATA_BYTES, "thrift_container_size_limit": 1_000_000}
    try:
        table = pq.ParquetFile(file, **limits)
        for index in range(table.num_row_groups):
            if table.metadata.row_group(index).total_byte_size > MAX_ROW_GROUP_BYTES:
                raise SourceError(f"{location}: row group {index} has more than {MAX_ROW_GROUP_BYTES} bytes")
        columns = _columns(location, None, table.schema_arrow.names)
        number = 0
        for batch in table.iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield _numbered(location, number, row, columns, unit="row")
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{location}: not a Parquet file that can be read ({type(error).__name__})") from None


def _columns(location: str, line: int | None, names: list[str]) -> tuple[str, str | None]:
    place = location if line is None else f"{location}:{line}"
    if len(names) > MAX_COLUMNS:
        raise SourceError(f"{place}: more than {MAX_COLUMNS} columns")
    if len(set(names)) < len(names):
        raise SourceError(f"{place}: two columns have the same name")
    uri_column, id_column = find_columns(names)
    if uri_column is None:
        there = ", ".join(names)[:200] or "none"
        raise SourceError(f"{place}: no column {', '.join(URI_COLUMNS[:-1])} or {URI_COLUMNS[-1]}; there are {there}")
    return uri_column, id_column


def find_columns(names: Collection[str]) -> tuple[str | None, str | None]:
    """Those of the addresses and of the ids."""
    uri_column = next((column for column in URI_COLUMNS if column in names), None)
    return uri_column, next((column for column in ID_COLUMNS if column in names), None)


def _numbered(
    location: str, number: int, row: Mapping[str, Any], columns: tuple[str, str | None], *, unit: str = ""
) -> VideoSource:
    try:
        return _source(location, row, *columns)
    except _LineError as error:
        place = f"{location}: {unit} {number}" if unit else f"{location}:{number}"
        raise SourceError(f"{place}: {error}") from None


def _source(location: str, row: Mapping[str, Any], uri_column: str, id_column: str | None) -> VideoSource:
    uri = row[uri_column]
    if not isinstance(uri, str) or not uri.strip():
        raise _LineError(f"{uri_column} is empty or not text")
    if len(uri) > MAX_URI_CHARS or _NOT_TEXT.search(uri):
        raise _LineError(f"{uri_column} is longer than {MAX_URI_CHARS} characters or not valid text")
    client_id = row[id_column] if id_column is not None else None
    if isinstance(client_id, int):
        client_id = str(client_id)
    if client_id is not None and not _is_id(client_id):
        raise _LineError(f"{id_column} must be text of at most {MAX_ID_CHARS} characters")
    metadata = {
        key: text_of(value) for key, value in row.items() if key not in (uri_column, id_column) and value is not None
    }
    if sum(len(key) + len(value) for key, value in metadata.items()) > MAX_METADATA_BYTES:
        raise _LineError(f"the other columns have more than {MAX_METADATA_BYTES} characters")
    if any(_NOT_TEXT.search(text) for pair in metadata.items() for text in pair):
        raise _LineError("a column is not valid text")
    return VideoSource(absolute_uri(uri.strip(), location), client_id or None, metadata)


def _is_id(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MAX_ID_CHARS and not _NOT_TEXT.search(value)


def text_of(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str, separators=(",", ":"))


def absolute_uri(uri: str, location: str) -> str:
    """Of an entry of the list ``location``. Raises _LineError for a scheme that is not read."""
    scheme = scheme_of(uri)
    if scheme == "file":
        path = path_of(uri)
        return uri if _NOT_TEXT.search(path) else path
    if scheme is not None:
        if scheme not in SCHEMES:
            raise _LineError(f"{scheme}:// is not read; file, {', '.join(SCHEMES)} are")
        return uri
    if is_remote(location):
        base, _, rest = location.partition("://")
        folder = posixpath.dirname(rest.partition("?")[0] if base.startswith("http") else rest)
        return f"{base}://{posixpath.normpath(posixpath.join(folder, uri.lstrip('/')))}"
    return os.path.normpath(Path(location).absolute().parent / uri)


def path_of(file_uri: str) -> str:
    """Of a file:// URI, which encodes bytes: names need not be text."""
    return os.fsdecode(unquote_to_bytes(urlsplit(file_uri).path))
