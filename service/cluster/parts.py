"""Rows -> Parquet files of a folder or a bucket, each written whole, by the nodes; and which rows are there already."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from ray.data import Dataset, Datasink
from ray.data.block import BlockAccessor

from vidlex.service.bulk.engine import EngineIdentity
from vidlex.service.bulk.known import COLUMNS, is_of, names_content
from vidlex.service.bulk.options import TagOptions
from vidlex.service.bulk.storage import storage_of
from vidlex.service.cluster.checkpoint import DoneRows

if TYPE_CHECKING:
    from ray.data._internal.execution.interfaces import TaskContext

_SUFFIX = ".parquet"

log = logging.getLogger("vidlex.bulk")


def write_parts(results: Dataset, out: str, *, min_rows_per_file: int = 1000) -> int:
    """Executes the dataset. Returns the number of rows.

    A file is there whole or not at all, and a write that Ray repeats replaces the one before: no row is there twice.
    What a killed job has written stays; `tag(resume_from=out)` leaves it out of the next one.
    """
    sink = _Parts(out, min_rows_per_file)
    results.write_datasink(sink, ray_remote_args={"num_cpus": 0})  # the workers may hold all CPUs
    return sink.num_rows


class _Parts(Datasink[int]):
    def __init__(self, out: str, min_rows_per_file: int) -> None:
        self._out = out
        self._min_rows = min_rows_per_file
        self.num_rows = 0

    def write(self, blocks: Iterable[Any], ctx: TaskContext) -> int:
        tables = [BlockAccessor.for_block(block).to_arrow() for block in blocks]
        tables = [table for table in tables if len(table)]
        if not tables:
            return 0
        table = pa.concat_tables(tables)
        data = io.BytesIO()
        pq.write_table(table, data, compression="zstd")
        # The same name when Ray repeats this task.
        name = f"part-{ctx.kwargs['write_uuid'][:12]}-{ctx.task_idx:06}{_SUFFIX}"
        storage_of(self._out).write(name, data.getvalue())
        return len(table)

    def on_write_complete(self, write_result: Any) -> None:
        self.num_rows = int(sum(write_result.write_returns))

    @property
    def min_rows_per_write(self) -> int:
        return self._min_rows


def done_rows(out: str, identity: EngineIdentity, options: TagOptions, *, retry_failed: bool = False) -> DoneRows:
    """Rows in the files of ``out`` that a run with this identity and these options would write again.

    A row of a file without a version does not count: its content may be another one. Nor do files that are not whole,
    of another writer.
    """
    storage = storage_of(out)
    found: list[tuple[str, str | None]] = []
    for name in storage.names():
        if not name.endswith(_SUFFIX) or name.startswith("."):
            continue
        try:
            with storage.open(name) as file:
                table = pq.read_table(io.BytesIO(file.read()), columns=list(COLUMNS))
        except (pa.ArrowException, KeyError) as error:
            log.warning("%s is not a file of results: %s", name, type(error).__name__)
            continue
        for row in table.to_pylist():
            is_repeated = retry_failed and row["error_code"] is not None
            if not is_repeated and is_of(row, identity, options) and names_content(row):
                found.append((row["uri"], row["file_version"]))
    return DoneRows(found)
