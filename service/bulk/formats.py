"""File formats of results: written from a stream of tables, read back as one."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

from vidlex.service.bulk.csv_cells import guarded, unguarded
from vidlex.service.bulk.rows import Row, rows_of, schema, table_of

if TYPE_CHECKING:
    import pyarrow as pa

Format = Literal["parquet", "jsonl", "csv", "lance", "folder"]
SUFFIXES: dict[str, Format] = {
    ".parquet": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".lance": "lance",
    "": "folder",
}
MAX_ROWS_PER_FILE = 100_000  # of a folder
CHUNK_ROWS = 1000
_MAX_CELL_CHARS = 1 << 28  # the labels and segments of a video as JSON


def write(kind: Format, path: Path, tables: Iterable[pa.Table], columns: pa.Schema) -> None:
    """``path`` does not exist."""
    {
        "parquet": _write_parquet,
        "jsonl": _write_jsonl,
        "csv": _write_csv,
        "lance": _write_lance,
        "folder": _write_folder,
    }[kind](path, tables, columns)


def read(kind: Format, path: Path) -> Iterator[pa.Table]:
    """Of what ``write`` wrote with ``rows.schema()``. Raises ValueError if it is something else, OSError."""
    import pyarrow as pa

    reader = {
        "parquet": _read_parquet,
        "jsonl": _read_jsonl,
        "csv": _read_csv,
        "lance": _read_lance,
        "folder": _read_folder,
    }[kind]
    wanted = schema()
    try:
        for table in reader(path):
            yield table.select(wanted.names).cast(wanted)
    except (KeyError, TypeError, csv.Error, pa.ArrowException) as error:
        raise ValueError(f"not a file of results: {type(error).__name__}") from error


def _write_parquet(path: Path, tables: Iterable[pa.Table], columns: pa.Schema) -> None:
    import pyarrow.parquet as pq

    with pq.ParquetWriter(path, columns, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table)


def _read_parquet(path: Path) -> Iterator[pa.Table]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for batch in pq.ParquetFile(path).iter_batches(batch_size=CHUNK_ROWS):
        yield pa.Table.from_batches([batch])


def _write_folder(path: Path, tables: Iterable[pa.Table], columns: pa.Schema) -> None:
    path.mkdir(parents=True)
    batches = (table.slice(start, CHUNK_ROWS) for table in tables for start in range(0, len(table), CHUNK_ROWS))
    for number, group in enumerate(_groups(batches)):
        _write_parquet(path / f"part-{number:05}.parquet", group, columns)


def _groups(tables: Iterator[pa.Table]) -> Iterator[Iterable[pa.Table]]:
    """Each is to be read before the next; at least one, which may be empty."""
    per_file = MAX_ROWS_PER_FILE // CHUNK_ROWS
    first = next(tables, None)
    if first is None:
        yield []
    while first is not None:
        yield chain([first], islice(tables, per_file - 1))
        first = next(tables, None)


def _read_folder(path: Path) -> Iterator[pa.Table]:
    for part in sorted(path.glob("*.parquet")):
        yield from _read_parquet(part)


def _write_jsonl(path: Path, tables: Iterable[pa.Table], columns: pa.Schema) -> None:
    with path.open("w", encoding="utf-8") as file:
        for table in tables:
            for row in rows_of(table):
                file.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n")


def _read_jsonl(path: Path) -> Iterator[pa.Table]:
    with path.open(encoding="utf-8") as file:
        yield from _tables(json.loads(line) for line in file)


def _write_csv(path: Path, tables: Iterable[pa.Table], columns: pa.Schema) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)  # "\r\n", so that a cell with either is quoted
        writer.writerow(columns.names)
        for table in tables:
            for row in rows_of(table):
                writer.writerow([_cell(row[name]) for name in columns.names])


def _cell(value: Any) -> Any:
    """Nested values as JSON. Text that a spreadsheet would take for a formula begins with "'"."""
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return guarded(value, every_quote=True) if isinstance(value, str) else value


def _read_csv(path: Path) -> Iterator[pa.Table]:
    with path.open(encoding="utf-8", newline="") as file:
        yield from _tables(_csv_rows(file))


def _csv_rows(file: TextIO) -> Iterator[Row]:
    import pyarrow as pa

    csv.field_size_limit(_MAX_CELL_CHARS)  # of the process: nothing else sets it
    types = {field.name: field.type for field in schema()}

    def value(name: str, cell: str) -> Any:
        kind = types[name]
        if cell == "":
            return None
        if pa.types.is_nested(kind):
            return json.loads(cell)
        if pa.types.is_integer(kind):
            return int(cell)
        if pa.types.is_floating(kind):
            return float(cell)
        return unguarded(cell, every_quote=True)

    for row in csv.DictReader(file, strict=True):
        yield {name: value(name, row[name]) for name in types}


def _tables(rows: Iterator[Row]) -> Iterator[pa.Table]:
    while chunk := list(islice(rows, CHUNK_ROWS)):
        yield table_of(chunk)


def _write_lance(path: Path, tables: Iterable[pa.Table], columns: pa.Schema) -> None:
    import lance
    import pyarrow as pa

    batches = (batch for table in tables for batch in table.to_batches())
    lance.write_dataset(pa.RecordBatchReader.from_batches(columns, batches), str(path), mode="create")


def _read_lance(path: Path) -> Iterator[pa.Table]:
    import lance
    import pyarrow as pa

    for batch in lance.dataset(str(path)).to_batches(batch_size=CHUNK_ROWS):
        yield pa.Table.from_batches([batch])
