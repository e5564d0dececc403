"""A backup file: gzip of JSON lines.

    {"kind":"vidlex-backup","version":1,...}      first; with the id of the store
    {"kind":...,...}                              see entries.py
    {"kind":"end","lines":N,"sha256":"..."}       last; of all lines before it

``zcat FILE | head`` shows it. A reader holds one line at a time, and trusts nothing before it has seen the last line.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, NoReturn

FORMAT = "vidlex-backup"
VERSION = 1
# The longest line is a label: at most 40 KB of text, and a vector for each of its encoders.
MAX_LINE_BYTES = 8 * 2**20
_COMPRESSION_LEVEL = 3  # vectors hardly become smaller with more

Line = dict[str, Any]


class BackupError(Exception):
    """Why a backup or a restore failed, in one sentence for the operator."""


class LineWriter:
    """Call ``write`` for each line and ``finish`` last. Raises OSError."""

    def __init__(self, file: BinaryIO, **header: Any) -> None:
        self._file = gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=_COMPRESSION_LEVEL, mtime=0)
        self._digest = hashlib.sha256()
        self._num_lines = 0
        self.write(FORMAT, version=VERSION, **header)

    def write(self, kind: str, **fields: Any) -> None:
        line = _to_bytes({"kind": kind, **fields})
        if len(line) > MAX_LINE_BYTES:
            raise BackupError(f"an entry of kind {kind} has {len(line)} bytes, more than a backup's line may have")
        self._file.write(line)
        self._digest.update(line)
        self._num_lines += 1

    def finish(self) -> None:
        self._file.write(_to_bytes({"kind": "end", "lines": self._num_lines, "sha256": self._digest.hexdigest()}))
        self._file.close()  # writes gzip's own checksum; leaves the underlying file open


def read_lines(file: BinaryIO) -> Iterator[tuple[int, Line]]:
    """Number and content of each line but the last; the header first. Raises BackupError, at the latest at the end."""
    digest = hashlib.sha256()
    with gzip.GzipFile(fileobj=file, mode="rb") as unzipped:
        number = 0
        while True:
            raw = _read_line(unzipped, number + 1)
            line = _parse(raw, number + 1)
            if number == 0:
                _check_header(line)
            if line.get("kind") == "end":
                if line.get("lines") != number or line.get("sha256") != digest.hexdigest():
                    raise BackupError("the file is damaged: its checksum does not match its content")
                if _read_line(unzipped, number + 2, may_end=True):
                    raise BackupError("the file is damaged: something follows its last line")
                return
            digest.update(raw)
            number += 1
            yield number, line


def _check_header(line: Line) -> None:
    if line.get("kind") != FORMAT:
        raise BackupError("the file is not a backup of Vidlex")
    version = line.get("version")
    if version != VERSION:
        raise BackupError(f"the file has version {version!r} of the format, this version of Vidlex reads {VERSION}")


def _read_line(file: gzip.GzipFile, number: int, *, may_end: bool = False) -> bytes:
    try:
        raw = file.readline(MAX_LINE_BYTES + 1)
    except EOFError:
        raise BackupError(f"the file is incomplete: it ends in line {number}") from None
    except (gzip.BadGzipFile, zlib.error):
        if number == 1:
            raise BackupError("the file is not a backup of Vidlex") from None
        raise BackupError(f"the file is damaged at line {number}") from None
    if len(raw) > MAX_LINE_BYTES:
        raise BackupError(f"line {number} is longer than {MAX_LINE_BYTES} bytes")
    if not raw.endswith(b"\n") and not (may_end and not raw):
        raise BackupError(f"the file is incomplete: it ends in line {number}")
    return raw


def _parse(raw: bytes, number: int) -> Line:
    try:
        line = json.loads(raw, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise BackupError(
            "the file is not a backup of Vidlex" if number == 1 else f"line {number} is no JSON"
        ) from None
    if not isinstance(line, dict):
        raise BackupError(f"line {number} is no JSON object")
    return line


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(text)  # NaN and Infinity, which are no JSON


def _to_bytes(line: Line) -> bytes:
    return json.dumps(line, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode() + b"\n"
