"""Files of features: rows of equal size behind a header, only ever appended to by one process.

Which rows count is not in the file but in the store. A file that a crash left with a torn end is therefore whole up to
the last row that counts, because its bytes were on the disk before the store named the row.

    header, 1024 bytes     magic, size and CRC-32 of its JSON, the JSON: whose rows these are
    row                    packed id (15), 1 unused, start_ms (8), end_ms (8), CRC-32 (4), number in its video (4),
                           D float16, zeros up to a multiple of 8 bytes; all little-endian
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidlex.service.errors import FULL_DISK_ERRORS, StorageFull, StoreUnavailable
from vidlex.service.videos.records import KeptSegment

HEADER_BYTES = 1024
SUFFIX = ".features"
_MAGIC = b"VIDLEXF1"
_LENGTHS = struct.Struct("<8sII")
_META_BYTES = 40
_CRC_AT = 32
_NUM_FOLDERS = 5  # that are new with a part: of its encoder, history, namespace; of all videos, and its place

Rows = NDArray[np.void]  # of ``row_type(D)``; np.concatenate would make it another type


class PartDamaged(Exception):
    """A file is missing, too short, or not what the store says."""


@dataclass(frozen=True)
class PartHead:
    namespace: str
    history: str
    fingerprint: str
    part: str
    dim: int


def row_bytes(dim: int) -> int:
    return _META_BYTES + (2 * dim + 7) // 8 * 8


@lru_cache(maxsize=64)
def row_type(dim: int) -> np.dtype[Any]:
    return np.dtype(
        {
            "names": ["id", "start_ms", "end_ms", "crc", "number", "vector"],
            "formats": [("u1", (15,)), "<i8", "<i8", "<u4", "<u4", ("<f2", (dim,))],
            "offsets": [0, 16, 24, _CRC_AT, 36, _META_BYTES],
            "itemsize": row_bytes(dim),
        }
    )


def make_rows(packed_id: bytes, segments: Sequence[KeptSegment], vectors: NDArray[np.float16]) -> Rows:
    rows = np.zeros(len(segments), row_type(vectors.shape[1]))
    rows["start_ms"] = [segment.start_ms for segment in segments]
    rows["end_ms"] = [segment.end_ms for segment in segments]
    rows["number"] = np.arange(len(segments))
    rows["vector"] = vectors
    return sign(rows, packed_id)


def sign(rows: Rows, packed_id: bytes) -> Rows:
    rows["id"] = np.frombuffer(packed_id, np.uint8)
    rows["crc"] = 0
    rows["crc"] = _checksums(rows)
    return rows


def check_rows(rows: Rows, packed_id: bytes) -> None:
    """Raises PartDamaged unless these are the rows of this video, as they were written."""
    if (rows["id"] != np.frombuffer(packed_id, np.uint8)).any() or (rows["number"] != np.arange(len(rows))).any():
        raise PartDamaged("the rows are those of another video")
    unsigned = np.frombuffer(bytearray(rows.tobytes()), rows.dtype)  # copy() leaves the bytes between fields undefined
    unsigned["crc"] = 0
    if (_checksums(unsigned) != rows["crc"]).any():
        raise PartDamaged("the rows have another checksum")


def create(path: Path, head: PartHead) -> None:
    """Durable on return, with its folders. Raises StorageFull, StoreUnavailable."""
    text = json.dumps(asdict(head)).encode()
    header = _LENGTHS.pack(_MAGIC, len(text), zlib.crc32(text)) + text
    write_whole(path, header.ljust(HEADER_BYTES, b"\0"))


def write_whole(path: Path, content: bytes) -> None:
    """A new file. Durable on return, with its folders. Raises StorageFull, StoreUnavailable."""
    with file_errors():
        for folder in reversed(path.parents):
            if not folder.is_dir():
                folder.mkdir(mode=0o700, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            _write(handle, content, 0)
            os.fsync(handle)
        finally:
            os.close(handle)
        for folder in list(path.parents)[:_NUM_FOLDERS]:
            _sync_folder(folder)


def append(path: Path, head: PartHead, rows: Rows, at_row: int) -> None:
    """Durable on return.

    Raises PartDamaged before it writes; StorageFull, StoreUnavailable, after which the end of the file is undefined.
    """
    with file_errors():
        try:
            handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise PartDamaged(f"{path.name} is missing") from error
        try:
            _check_head(os.pread(handle, HEADER_BYTES, 0), head)
            _write(handle, rows.tobytes(), HEADER_BYTES + at_row * rows.dtype.itemsize)
            os.fdatasync(handle)
        finally:
            os.close(handle)


def read_rows(path: Path, head: PartHead, row: int, num_rows: int) -> Rows:
    """Raises PartDamaged."""
    kind = row_type(head.dim)
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise PartDamaged(f"{path.name}: {error}") from error
    try:
        _check_head(os.pread(handle, HEADER_BYTES, 0), head)
        raw = bytearray()
        while len(raw) < num_rows * kind.itemsize:
            at = HEADER_BYTES + row * kind.itemsize + len(raw)
            piece = os.pread(handle, num_rows * kind.itemsize - len(raw), at)
            if not piece:
                raise PartDamaged(f"{path.name} is too short")
            raw += piece
        return np.frombuffer(raw, kind)
    except OSError as error:
        raise PartDamaged(f"{path.name}: {error}") from error
    finally:
        os.close(handle)


def map_rows(path: Path, head: PartHead, num_rows: int) -> Rows:
    """At least ``num_rows`` rows, as a view of the file. Raises PartDamaged."""
    kind = row_type(head.dim)
    try:
        with path.open("rb") as file:
            _check_head(file.read(HEADER_BYTES), head)
            found = (os.fstat(file.fileno()).st_size - HEADER_BYTES) // kind.itemsize
            if found < num_rows:
                raise PartDamaged(f"{path.name} has {found} rows instead of {num_rows}")
            if not found:
                return np.zeros(0, kind)
            # np.asarray: a memmap makes each slice of it slow
            return np.asarray(np.memmap(file, kind, "r", HEADER_BYTES, (found,)))
    except (OSError, ValueError) as error:
        raise PartDamaged(f"{path.name}: {error}") from error


def num_rows_in(path: Path, dim: int) -> int | None:
    """None if there is no such file."""
    with suppress(OSError):
        return max(0, path.stat().st_size - HEADER_BYTES) // row_bytes(dim)
    return None


@contextmanager
def file_errors() -> Iterator[None]:
    """Errors of the disk become StorageFull or StoreUnavailable."""
    try:
        yield
    except OSError as error:
        internal = f"{type(error).__name__}: {error}"
        if error.errno in FULL_DISK_ERRORS:
            raise StorageFull("The disk of the kept videos is full", internal=internal) from error
        raise StoreUnavailable("The folder of the kept videos cannot be used", internal=internal) from error


def _check_head(raw: bytes, expected: PartHead) -> None:
    """Raises PartDamaged."""
    try:
        magic, length, crc = _LENGTHS.unpack_from(raw)
        text = raw[_LENGTHS.size : _LENGTHS.size + length]
        if magic != _MAGIC or zlib.crc32(text) != crc:
            raise PartDamaged("it has no valid header")
        found = PartHead(**json.loads(text))
    except (struct.error, ValueError, TypeError) as error:
        raise PartDamaged(f"it has no valid header: {error}") from error
    if found != expected:
        raise PartDamaged(f"its header says {found}")


def _checksums(rows: Rows) -> NDArray[np.uint32]:
    raw, size = rows.tobytes(), rows.dtype.itemsize
    return np.array([zlib.crc32(raw[at : at + size]) for at in range(0, len(raw), size)], np.uint32)


def _write(handle: int, raw: bytes, offset: int) -> None:
    view = memoryview(raw)
    while view:
        num = os.pwrite(handle, view, offset)
        view, offset = view[num:], offset + num


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
