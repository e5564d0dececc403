"""The output and the error file of a batch: each line of the manifest is in exactly one of them, once.

Every run of the job writes files of its own, which begin with what the runs before have written and are named by the
start of its attempt: a process that lost its lease without noticing writes into files that are not read any more, and
leaves those of later attempts alone. What was torn when a process was killed, or by a loss of power, is cut off and
done again.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, Literal, Self

from vidlex.service.errors import FULL_DISK_ERRORS, NotFound, StorageFull, StoreUnavailable

BatchFileKind = Literal["output", "errors"]
KINDS: tuple[BatchFileKind, ...] = ("output", "errors")
MAX_LINE_BYTES = 64 << 20  # of a result: an answer is at most 16 MiB
_SYNC_LINES = 100
_BLOCK_BYTES = 1 << 16
_START_DIGITS = 15  # of Unix milliseconds, so that names sort by them


@dataclass(frozen=True)
class BatchFile:
    name: str  # in the job's output folder
    num_lines: int
    num_bytes: int


class BatchOutputs:
    """Thread-safe. ``take_bytes`` is called before each write, and may raise."""

    def __init__(self, folder: Path, take_bytes: Callable[[int], None], *, started_at_ms: int) -> None:
        """``started_at_ms``: of the attempt, by the clock of the store. Raises StorageFull."""
        self._folder = folder
        self._take_bytes = take_bytes
        self._lock = threading.Lock()
        self._run = f"{started_at_ms:0{_START_DIGITS}}-{secrets.token_hex(8)}"
        self._files: dict[BatchFileKind, FileIO] = {}
        self._num_lines: dict[BatchFileKind, int] = dict.fromkeys(KINDS, 0)
        self._num_unsynced = 0
        self.done: set[int] = set()
        """Numbers of the manifest's lines."""
        with _disk_errors():
            before = {kind: [path for path in _runs(folder, kind) if _start_of(path) < started_at_ms] for kind in KINDS}
            try:
                for kind in KINDS:
                    self._files[kind] = (folder / self._name(kind)).open("xb", buffering=0)
                    for path in before[kind]:
                        self._continue(kind, path)
                self._sync()
            except BaseException:
                self.close()
                raise
        for path in (*before["output"], *before["errors"]):
            path.unlink(missing_ok=True)

    def _continue(self, kind: BatchFileKind, path: Path) -> None:
        for number, raw in _whole_lines(path):
            if number not in self.done:
                self._append(kind, number, raw)

    def _append(self, kind: BatchFileKind, number: int, raw: bytes) -> None:
        """Whole or not at all, unless the process ends."""
        file = self._files[kind]
        start, rest = file.tell(), memoryview(raw)
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(start)
                file.seek(start)
            raise
        self.done.add(number)
        self._num_lines[kind] += 1

    def _name(self, kind: BatchFileKind) -> str:
        return f"{self._run}.{kind}.jsonl"

    @property
    def num_failed(self) -> int:
        return self._num_lines["errors"]

    def write(self, kind: BatchFileKind, number: int, line: Mapping[str, Any]) -> None:
        """Raises StorageFull, and what ``take_bytes`` raises."""
        raw = json.dumps({"line": number, **line}, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
        with self._lock, _disk_errors():
            if number in self.done:
                return
            self._take_bytes(len(raw))
            self._append(kind, number, raw)  # a kill -9 of this process does not lose it
            self._num_unsynced += 1
            if self._num_unsynced >= _SYNC_LINES:
                self._sync()

    def finish(self) -> dict[BatchFileKind, BatchFile]:
        """Both files are on the disk when this returns.

        Raises StorageFull, and StoreUnavailable if they are not in the folder any more: another attempt goes on.
        """
        with self._lock, _disk_errors():
            for kind, file in self._files.items():
                if not _is_at(file, self._folder / self._name(kind)):
                    raise StoreUnavailable("The files of this batch were removed", internal=str(self._folder))
            self._sync()
            descriptor = os.open(self._folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            return {
                kind: BatchFile(self._name(kind), self._num_lines[kind], file.tell())
                for kind, file in self._files.items()
            }

    def _sync(self) -> None:
        for file in self._files.values():
            os.fsync(file.fileno())
        self._num_unsynced = 0

    def close(self) -> None:
        for file in self._files.values():
            with contextlib.suppress(OSError):
                file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def published_file(folder: Path, kind: BatchFileKind, result: bytes | None) -> Path:
    """Of a batch that is finished. ``result``: that of a batch that has succeeded; None: what the last run has written.

    Raises NotFound.
    """
    if result is not None:
        path = folder / str(json.loads(result)[kind]["name"])
        if path.is_file():
            return path
    else:
        runs = _runs(folder, kind)
        if runs:
            _cut_torn_end(runs[-1])
            return runs[-1]
    raise NotFound("This file of the job is not here")


def _runs(folder: Path, kind: BatchFileKind) -> list[Path]:
    """By the start of their attempts."""
    return sorted(folder.glob(f"*.{kind}.jsonl"), key=lambda path: (_start_of(path), path.name))


def _start_of(path: Path) -> int:
    start = path.name.partition("-")[0]
    return int(start) if start.isdecimal() and len(start) == _START_DIGITS else 0


def _is_at(file: FileIO, path: Path) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _cut_torn_end(path: Path) -> None:
    with path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - _BLOCK_BYTES)
            file.seek(start)
            cut = file.read(end - start).rfind(b"\n") + 1
            if cut:
                file.truncate(start + cut)
                return
            end = start
        file.truncate(0)


def _whole_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Number and bytes of each line up to the first damaged one. Nothing if the file is gone."""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        while raw := file.readline(MAX_LINE_BYTES):
            try:
                number = json.loads(raw)["line"]
            except (ValueError, KeyError, TypeError):
                return
            if not raw.endswith(b"\n") or not isinstance(number, int):
                return
            yield number, raw


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in FULL_DISK_ERRORS:
            raise StorageFull(internal=str(error)) from error
        raise
