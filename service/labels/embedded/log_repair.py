"""Checks and repairs the embedded server's append-only files, which hold every write.

``valkey-check-aof`` cuts a file at its first damaged byte and so loses everything behind it. Here only the damaged
transaction is left out: what follows is found again at the next whole command. The snapshot that a rewrite of the files
begins with is in another format and cannot be repaired.
"""

from __future__ import annotations

import mmap
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

LOG_FOLDER = "appendonlydir"
MANIFEST = "appendonly.aof.manifest"
_MANIFEST_LINE = re.compile(r"file (?P<name>[\w.-]+) seq (?P<seq>\d+) type (?P<type>[bih])\b.*")
_FILE = re.compile(r"appendonly\.aof\.(?P<seq>\d+)\.(?:(?P<base>base)\.(?:rdb|aof)|incr\.aof)")
_SNAPSHOT_MAGIC = (b"REDIS", b"VALKEY")
_MAX_ARGUMENTS = 1 << 20
_MAX_ARGUMENT_BYTES = 1 << 29
_MAX_LINE_BYTES = 32
_NAME = re.compile(rb"[A-Za-z]{2,20}")


@dataclass
class LogReport:
    """``problems`` are solved by a repair, ``lost`` are not: a backup is needed. ``dropped``: (file, start, end)."""

    num_files: int = 0
    num_bytes: int = 0
    problems: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    dropped: list[tuple[str, int, int]] = field(default_factory=list)
    copy: Path | None = None  # of the files as they were

    @property
    def is_whole(self) -> bool:
        return not (self.problems or self.lost)


def check_log(store_folder: Path) -> LogReport:
    """Reads every command. No server may be running. Raises OSError."""
    return _examine(store_folder / LOG_FOLDER, LogReport())


def repair_log(store_folder: Path) -> LogReport:
    """Keep a copy of the files, then write them without their damage. Raises OSError."""
    folder = store_folder / LOG_FOLDER
    report = check_log(store_folder)
    if report.lost or not report.problems:
        return report
    report.copy = set_log_aside(store_folder, keep=True)
    names = _names(folder) or _names_by_files(folder)
    for name in names:
        path = folder / name
        if path.stat().st_size and not _is_snapshot(path):
            _rewrite(path, [(start, end) for file, start, end in report.dropped if file == name])
    lines = "".join(f"file {name} seq {_sequence(name)} type {'b' if '.base.' in name else 'i'}\n" for name in names)
    _replace(folder / MANIFEST, lines.encode())
    return report


def set_log_aside(store_folder: Path, *, keep: bool) -> Path:
    """Copy (``keep``) or move the files to a folder of another name, which is returned. Raises OSError."""
    folder = store_folder / LOG_FOLDER
    target = folder.with_name(f"{LOG_FOLDER}.{time.strftime('%Y%m%d-%H%M%S')}.{os.getpid()}")
    if keep:
        shutil.copytree(folder, target)
    else:
        folder.rename(target)
    return target


def log_problem(store_folder: Path, *, has_data: bool) -> str:
    """Why a server must not be started here: it would begin without the data. Empty if it may. Reads only names."""
    folder = store_folder / LOG_FOLDER
    if not (folder / MANIFEST).exists():
        if _names_by_files(folder):
            return "the manifest of its files is missing"
        return "its files are missing" if has_data else ""
    missing = [name for name in _names(folder) if not (folder / name).is_file()]
    return f"{len(missing)} of its files are missing" if missing else ""


def _examine(folder: Path, report: LogReport) -> LogReport:
    names = _names(folder)
    if not names:
        names = _names_by_files(folder)
        if not names:
            report.lost.append("there are no append-only files")
            return report
        report.problems.append("the manifest is missing or unreadable; it is written from the names of the files")
    for name in names:
        path = folder / name
        if not path.is_file():
            report.lost.append(f"{name} is missing")
            continue
        size = path.stat().st_size
        report.num_files += 1
        report.num_bytes += size
        if size == 0 or _is_snapshot(path):
            continue
        for start, end in _damage(path):
            report.dropped.append((name, start, end))
            report.problems.append(f"{name}: bytes {start} to {end} of {size} are no whole transaction")
    return report


def _names(folder: Path) -> list[str]:
    """Of the files to load, in order, as the manifest has them."""
    try:
        lines = (folder / MANIFEST).read_text("ascii").splitlines()
    except (OSError, ValueError):
        return []
    found = [_MANIFEST_LINE.fullmatch(line) for line in lines if line.strip()]
    if any(match is None for match in found):
        return []
    return [match["name"] for match in found if match is not None and match["type"] != "h"]  # h: already superseded


def _names_by_files(folder: Path) -> list[str]:
    """The newest base and the increments from its number on."""
    if not folder.is_dir():
        return []
    matches = [match for path in folder.iterdir() if (match := _FILE.fullmatch(path.name)) is not None]
    bases = sorted((int(match["seq"]), match.string) for match in matches if match["base"])
    increments = sorted((int(match["seq"]), match.string) for match in matches if not match["base"])
    # After a rewrite the older files are removed, so the increments that exist follow the newest base.
    return [name for _, name in bases[-1:]] + [name for _, name in increments]


def _sequence(name: str) -> int:
    match = _FILE.fullmatch(name)
    return 1 if match is None else int(match["seq"])


def _is_snapshot(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(6).startswith(_SNAPSHOT_MAGIC)


def _damage(path: Path) -> list[tuple[int, int]]:
    """Ranges of bytes, in order, without which the file consists of whole commands and transactions."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return list(_merged(_damage_of(data)))


def _damage_of(data: mmap.mmap) -> Iterator[tuple[int, int]]:
    position, size = 0, len(data)
    transaction: int | None = None  # where it began
    after_damage: int | None = None  # where the commands begin that may be the rest of a damaged transaction
    while position < size:
        command = _command(data, position)
        if command is None:
            start = position if transaction is None else transaction
            position = _next_command(data, position + 1)
            yield start, position
            transaction, after_damage = None, position
            continue
        name, end = command
        if name == b"MULTI":
            if transaction is not None:
                yield transaction, position
            transaction, after_damage = position, None
        elif name == b"EXEC":
            if transaction is None:
                yield (position if after_damage is None else after_damage), end
            transaction = after_damage = None
        position = end
    if transaction is not None:
        yield transaction, size


def _merged(ranges: Iterator[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    start = end = 0
    for next_start, next_end in ranges:
        if next_start > end:
            if end > start:
                yield start, end
            start = next_start
        end = max(end, next_end)
    if end > start:
        yield start, end


def _command(data: mmap.mmap, position: int) -> tuple[bytes, int] | None:
    """The name of the command at ``position``, and where it ends; None if there is no whole command."""
    if data[position : position + 1] == b"#":  # an annotation, such as a time
        end = data.find(b"\r\n", position, position + 1024)
        return None if end < 0 else (b"#", end + 2)
    count, position = _number(data, position, b"*")
    if not 1 <= count <= _MAX_ARGUMENTS:
        return None
    name = b""
    for index in range(count):
        length, position = _number(data, position, b"$")
        if not 0 <= length <= _MAX_ARGUMENT_BYTES or data[position + length : position + length + 2] != b"\r\n":
            return None
        if index == 0:
            name = data[position : position + length]
        position += length + 2
    return (name.upper(), position) if _NAME.fullmatch(name) else None


def _number(data: mmap.mmap, position: int, mark: bytes) -> tuple[int, int]:
    """The number of a line such as ``*3``, -1 if there is none, and where the line ends."""
    end = data.find(b"\r\n", position, position + _MAX_LINE_BYTES)
    digits = data[position + 1 : end] if end > position else b""
    if data[position : position + 1] != mark or not digits.isdigit():
        return -1, position
    return int(digits), end + 2


def _next_command(data: mmap.mmap, position: int) -> int:
    while True:
        position = data.find(b"*", position)
        if position < 0:
            return len(data)
        if _command(data, position) is not None:
            return position
        position += 1


def _rewrite(path: Path, dropped: list[tuple[int, int]]) -> None:
    if not dropped:
        return
    temporary = path.with_name(f"{path.name}.repaired")
    with path.open("rb") as source, temporary.open("wb") as target:
        position = 0
        for start, end in [*dropped, (path.stat().st_size, 0)]:
            source.seek(position)
            _copy(source, target, start - position)
            position = end
        target.flush()
        os.fsync(target.fileno())
    shutil.copymode(path, temporary)
    temporary.replace(path)


def _copy(source: IO[bytes], target: IO[bytes], num_bytes: int) -> None:
    while num_bytes > 0:
        chunk = source.read(min(num_bytes, 1 << 20))
        if not chunk:
            return
        target.write(chunk)
        num_bytes -= len(chunk)


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f"{path.name}.repaired")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
