"""Results on their way to OUT: durable parts while the run goes on, merged in the order of the sources at its end.

The parts lie in ``.NAME.parts`` next to OUT. Each is a Parquet file of some seconds of work, written whole. A run that
was killed leaves them; the next one continues from them.
"""

from __future__ import annotations

import fcntl
import io
import logging
import re
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from vidlex.service.bulk import formats, storage
from vidlex.service.bulk.engine import EngineIdentity
from vidlex.service.bulk.known import COLUMNS, KnownIndex, Place
from vidlex.service.bulk.options import TagOptions
from vidlex.service.bulk.results import TagResult
from vidlex.service.bulk.rows import (
    Row,
    result_of,
    row_of,
    rows_of,
    schema,
    segment_rows,
    segment_schema,
    table_of,
)
from vidlex.service.bulk.run import Tagged
from vidlex.service.bulk.target import OutputError, target_of

if TYPE_CHECKING:
    import pyarrow as pa

CHECKPOINT_ROWS = 1000
CHUNK_ROWS = 64  # that become Arrow at once: no other thread runs meanwhile
CHECKPOINT_SECONDS = 5.0
REMOTE_CHECKPOINT_SECONDS = 30.0
MAX_BUFFERED_VALUES = 4_000_000  # of feature vectors
GROUP_ROWS = 4096  # rows of the finished file that are written together
GROUP_BYTES = 16 << 20
NUM_CACHED_PARTS = 4
NUM_READERS = 8  # of parts at the start
_PART = re.compile(r"part-(\d{4})-(\d{8})\.parquet")
_LOCK = "lock"
_IMPORTED = 0  # number of the run that stands for a finished OUT

log = logging.getLogger("vidlex.bulk")


class TagOutput:
    """Belongs to one thread, but for ``has_source``. ``start`` comes first, ``finish`` if the run is complete."""

    def __init__(
        self,
        target: str,
        *,
        resume: bool = False,
        overwrite: bool = False,
        checkpoint_rows: int = CHECKPOINT_ROWS,
        checkpoint_seconds: float | None = None,
    ) -> None:
        """Checks that OUT can be written. Raises OutputError, MissingPackage, and what a store raises."""
        self.target = target_of(target)
        if checkpoint_seconds is None:
            checkpoint_seconds = REMOTE_CHECKPOINT_SECONDS if self.target.is_remote else CHECKPOINT_SECONDS
        self._checkpoint_rows, self._checkpoint_seconds = checkpoint_rows, checkpoint_seconds
        self._may_replace = resume or overwrite
        self._parts = storage.storage_of(self.target.parts)
        self._refuse_existing(resume, overwrite)
        self._lock = self._take_lock()
        if overwrite:
            for name in self._part_names():
                self._remove_part(name)
        self._run = _IMPORTED + 1
        self._number = 0
        self._num_written = 0
        self._buffer: list[Row] = []  # of the present part, after its chunks
        self._chunks: list[pa.Table] = []  # of CHUNK_ROWS each
        self._num_values = 0
        self._last_checkpoint = time.monotonic()
        self._index: KnownIndex | None = None
        self._cache: dict[str, pa.Table] = {}
        self._imports = resume and self.target.exists()
        self._writes_segments = False

    # --- at the start ----------------------------------------------------------------------------------------------

    def start(self, identity: EngineIdentity, options: TagOptions, *, retry_failed: bool = False) -> int:
        """The number of rows that are there already. Raises OutputError."""
        self._writes_segments = options.segments or options.features
        if self._writes_segments and not self._may_replace and storage.exists(self.target.segments):
            raise OutputError(f"{self.target.segments} exists; replace it with --overwrite")
        self._index = KnownIndex(identity, options, retry_failed=retry_failed)
        if self._imports:
            self._import_finished()
        num_rows = 0
        names = self._part_names()
        with ThreadPoolExecutor(NUM_READERS) as pool:
            for start in range(0, len(names), NUM_READERS):
                some = names[start : start + NUM_READERS]
                for name, table in zip(some, pool.map(self._read_index_columns, some), strict=True):
                    num_rows += len(table)
                    for number, row in enumerate(table):
                        self._index.add(row, (name, number), failures=True)
        self._run = 1 + max((int(name[5:9]) for name in names), default=_IMPORTED)
        return num_rows

    def _refuse_existing(self, resume: bool, overwrite: bool) -> None:
        if resume or overwrite:
            return
        if self._part_names():
            raise OutputError(
                f"{self.target.location}: a run was not finished; continue it with --resume, or begin again with "
                "--overwrite"
            )
        if self.target.exists():
            raise OutputError(f"{self.target.location} exists; add to it with --resume, or replace it with --overwrite")

    def _take_lock(self) -> IO[str] | None:
        """Also a check that the place can be written."""
        if self.target.is_remote:
            self._parts.write(_LOCK, b"")
            return None
        folder = Path(self.target.parts)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = (folder / _LOCK).open("w")
        except OSError as error:
            raise OutputError(f"{self.target.location} cannot be written: {error.strerror}") from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            raise OutputError(f"{self.target.location}: another run writes to it") from None
        return file

    def _import_finished(self) -> None:
        """Rows of a finished OUT become parts, whatever its format is."""
        with tempfile.TemporaryDirectory(prefix="vidlex-tag-resume-") as folder:
            path = self._local_copy(Path(folder))
            try:
                for number, table in enumerate(formats.read(self.target.kind, path)):
                    self._parts.write(_part_name(_IMPORTED, number), _to_parquet(table))
            except (ValueError, OSError) as error:
                raise OutputError(f"{self.target.location} cannot be continued: {error}") from None

    def _local_copy(self, folder: Path) -> Path:
        if not self.target.is_remote:
            return Path(self.target.location)
        copy = folder / "copy"
        if self.target.kind == "folder":
            copy.mkdir()
            source = storage.storage_of(self.target.location)
            for name in source.names():
                with source.open(name) as file:
                    _copy(file, copy / name)
        else:
            with storage.storage_of(self.target.parent).open(self.target.name) as file:
                _copy(file, copy)
        return copy

    def _read_index_columns(self, name: str) -> list[Row]:
        """None of a damaged part, whose videos are tagged again."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        with self._parts.open(name) as file:
            data = file.read()
        try:
            rows: list[Row] = pq.read_table(io.BytesIO(data), columns=list(COLUMNS)).to_pylist()
        except (pa.ArrowException, OSError) as error:
            log.warning("a part of an earlier run is damaged: %s (%s)", name, type(error).__name__)
            return []
        return rows

    # --- results of earlier runs, and of this one ------------------------------------------------------------------

    def has_source(self, uri: str, version: str | None) -> bool:
        return self._index is not None and self._index.of_source(uri, version) is not None

    def of_source(self, uri: str, version: str | None) -> TagResult | None:
        return self._result(self._index.of_source(uri, version) if self._index else None)

    def of_content(self, result_id: str) -> TagResult | None:
        return self._result(self._index.of_content(result_id) if self._index else None)

    def _result(self, place: Place | None) -> TagResult | None:
        if place is None:
            return None
        name, number = place
        if name == _part_name(self._run, self._number):
            chunk, number = divmod(number, CHUNK_ROWS)
            if chunk == len(self._chunks):
                return result_of(self._buffer[number])
            return _result_at(self._chunks[chunk], number)
        if name not in self._cache:
            while len(self._cache) >= NUM_CACHED_PARTS:
                self._cache.pop(next(iter(self._cache)))
            self._cache[name] = self._read_part(name)
        return _result_at(self._cache[name], number)

    def _read_part(self, name: str) -> pa.Table:
        import pyarrow.parquet as pq

        with self._parts.open(name) as file:
            return pq.read_table(io.BytesIO(file.read()))

    # --- new rows --------------------------------------------------------------------------------------------------

    def add(self, tagged: Tagged) -> None:
        """Durable within ``checkpoint_seconds``, if rows keep coming."""
        assert self._index is not None
        row = row_of(tagged.result, tagged.file_version)
        num_rows = self._num_buffered
        self._index.add(row, (_part_name(self._run, self._number), num_rows), failures=False)
        self._buffer.append({"order": tagged.order, **row})
        if len(self._buffer) == CHUNK_ROWS:
            self._chunks.append(table_of(self._buffer, _part_schema()))
            self._buffer = []
        self._num_values += sum(len(segment.features or ()) for segment in tagged.result.segments)
        is_late = time.monotonic() - self._last_checkpoint >= self._checkpoint_seconds
        if is_late or num_rows + 1 >= self._checkpoint_rows or self._num_values >= MAX_BUFFERED_VALUES:
            self.checkpoint()

    @property
    def num_rows(self) -> int:
        """Of this run, so far."""
        return self._num_written + self._num_buffered

    @property
    def _num_buffered(self) -> int:
        return len(self._chunks) * CHUNK_ROWS + len(self._buffer)

    def checkpoint(self) -> None:
        if self._num_buffered:
            import pyarrow as pa

            table = pa.concat_tables([*self._chunks, table_of(self._buffer, _part_schema())])
            self._parts.write(_part_name(self._run, self._number), _to_parquet(table))
            self._number += 1
            self._num_written += len(table)
            self._buffer, self._chunks, self._num_values = [], [], 0
        self._last_checkpoint = time.monotonic()

    # --- the end ---------------------------------------------------------------------------------------------------

    def finish(self) -> list[str]:
        """Write OUT, and the table of segments if there are any; remove the parts. Where they are."""
        self.checkpoint()
        written = []
        if self._writes_segments:
            location = self.target.segments
            self._publish(location, _segment_tables(self._merged()), segment_schema())
            written.append(location)
        self._publish(self.target.location, self._merged(), schema())
        self._parts.remove()
        return [self.target.location, *written]

    def close(self) -> None:
        """Keeps what was added. Parts are there until ``finish``."""
        try:
            self.checkpoint()
        finally:
            if self._index is not None:
                self._index.close()
                self._index = None
            if self._lock is not None:
                self._lock.close()
            if not self._part_names():
                self._parts.remove()

    def _publish(self, location: str, tables: Iterator[pa.Table], columns: pa.Schema) -> None:
        """Written next to OUT, so that a rename is enough; for an object store, to the temporary folder."""
        folder = None if self.target.is_remote else self.target.parts
        with tempfile.TemporaryDirectory(prefix="merged-", dir=folder) as name:
            path = Path(name) / location.rpartition("/")[2]
            formats.write(self.target.kind, path, tables, columns)
            storage.publish(path, location)

    def _merged(self) -> Iterator[pa.Table]:
        """Rows of this run in the order of their sources. Holds those only that came before an earlier one."""
        import pyarrow as pa

        names = [name for name in self._part_names() if name.startswith(f"part-{self._run:04}-")]
        following, held = 0, _part_schema().empty_table()
        group: list[pa.Table] = []
        for name in names:
            held = pa.concat_tables([held, self._read_part(name).cast(_part_schema())]).sort_by("order")
            orders = held["order"].to_pylist()
            ready = next((i for i, order in enumerate(orders) if order != following + i), len(orders))
            following += ready
            group.append(held.slice(0, ready).drop_columns(["order"]))
            held = held.slice(ready)
            if sum(map(len, group)) >= GROUP_ROWS or sum(table.nbytes for table in group) >= GROUP_BYTES:
                yield pa.concat_tables(group).combine_chunks()
                group = []
        if len(held):
            raise OutputError(f"{self.target.location}: {len(held)} rows after number {following} lie in no part")
        if group:
            yield pa.concat_tables(group).combine_chunks()

    def _part_names(self) -> list[str]:
        return [name for name in self._parts.names() if _PART.fullmatch(name)]

    def _remove_part(self, name: str) -> None:
        storage.delete(f"{self.target.parts}/{name}")


def _result_at(table: pa.Table, number: int) -> TagResult:
    (row,) = rows_of(table.slice(number, 1))
    return result_of(row)


def _segment_tables(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    for table in tables:
        for start in range(0, len(table), formats.CHUNK_ROWS):
            rows = rows_of(table.slice(start, formats.CHUNK_ROWS))
            yield table_of(segment_rows(rows), segment_schema())


def _part_schema() -> Any:
    import pyarrow as pa

    return pa.schema([pa.field("order", pa.int64()), *schema()])


def _part_name(run: int, number: int) -> str:
    return f"part-{run:04}-{number:08}.parquet"


def _to_parquet(table: pa.Table) -> bytes:
    import pyarrow.parquet as pq

    out = io.BytesIO()
    pq.write_table(table, out, compression="zstd")
    return out.getvalue()


def _copy(source: Any, target: Path) -> None:
    with target.open("wb") as out:
        while chunk := source.read(1 << 20):
            out.write(chunk)
