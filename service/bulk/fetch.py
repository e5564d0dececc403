"""A source -> a file of this machine, with its sha256. Local files stay where they are."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from vidlex.service.bulk import remote
from vidlex.service.bulk.engine import LocalFile
from vidlex.service.bulk.results import TagFailure
from vidlex.service.bulk.source import VideoSource
from vidlex.service.bulk.sources import local_path, remote_problem

CHUNK_BYTES = 1 << 20
BLOCK_BYTES = 16 << 20  # of one request to an object store
DEFAULT_MAX_FILE_BYTES = 16 << 30
DEFAULT_MAX_SPOOL_BYTES = 32 << 30
DEFAULT_TIMEOUT_SECONDS = 3600.0
_PREFIX = "vidlex-tag-"


class FetchError(Exception):
    """``failure`` is what the row of the video says."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.failure = TagFailure(code, detail)


class Cancelled(Exception):
    """The run ends: no row."""


@dataclass(frozen=True)
class Fetched:
    file: LocalFile
    version: str | None
    fetch_ms: float
    release: Callable[[], None] = field(repr=False)  # once the file is no longer needed


class Fetcher:
    """Thread-safe. Downloads lie in ``folder``, by default a temporary one, at most ``max_spool_bytes`` at a time."""

    def __init__(
        self,
        *,
        max_file_bytes: int = DEFAULT_MAX_FILE_BYTES,
        max_spool_bytes: int = DEFAULT_MAX_SPOOL_BYTES,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        folder: Path | None = None,
    ) -> None:
        self.max_file_bytes = min(max_file_bytes, max_spool_bytes)
        self.timeout_seconds = timeout_seconds
        self._space = _Space(max_spool_bytes)
        self._lock = threading.Lock()
        self._folder = folder
        self._number = 0

    def version(self, source: VideoSource) -> str | None:
        """Changes with the content; None where that cannot be seen without reading it. Raises FetchError."""
        if source.version is not None:
            return source.version
        path = local_path(source.uri)
        if path is not None:
            return _version(_stat(path))
        try:
            return remote.version_of(remote.describe(source.uri) or {})
        except Exception:  # reported when the file is fetched
            return None

    def fetch(self, source: VideoSource, cancelled: threading.Event) -> Fetched:
        """Raises FetchError, Cancelled."""
        started = time.monotonic()
        path = local_path(source.uri)
        if path is not None:
            file, version = self._hash(path, source, cancelled)
            return Fetched(file, version, _ms_since(started), lambda: None)
        try:
            return self._download(source, cancelled, started)
        except (FetchError, Cancelled, remote.MissingPackage):
            raise
        except Exception as error:  # each store has its own exceptions
            raise FetchError("file_not_readable", f"The file cannot be read: {remote_problem(error)}") from error

    def close(self) -> None:
        with self._lock:
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)
                self._folder = None

    def _hash(self, path: Path, source: VideoSource, cancelled: threading.Event) -> tuple[LocalFile, str]:
        _stat(path)  # opening a device or a pipe would wait, or worse
        try:
            with path.open("rb", buffering=0) as file:
                before = os.fstat(file.fileno())
                self._check_size(before.st_size)
                sha256, num_bytes = self._copy(file, None, cancelled)
                after = os.fstat(file.fileno())
        except OSError as error:
            raise _not_readable(error) from error
        if _version(before) != _version(after):
            raise FetchError("file_changed", "The file changed while it was read")
        return _file_of(path, source, sha256, num_bytes), _version(after)

    def _download(self, source: VideoSource, cancelled: threading.Event, started: float) -> Fetched:
        with _opened(source.uri) as (remote_file, info):
            return self._save(source, remote_file, info, cancelled, started)

    def _save(
        self,
        source: VideoSource,
        remote_file: BinaryIO,
        info: dict[str, Any],
        cancelled: threading.Event,
        started: float,
    ) -> Fetched:
        if info.get("type") == "directory":
            raise FetchError("file_not_readable", "The file cannot be read: nothing there")
        size = info.get("size")
        reserved = int(size) if isinstance(size, int) and size >= 0 else self.max_file_bytes
        self._check_size(reserved)
        self._space.take(reserved, cancelled)
        path = self._new_path(source.uri)

        def release() -> None:
            path.unlink(missing_ok=True)
            self._space.give(reserved)

        try:
            with path.open("wb") as out:
                sha256, num_bytes = self._copy(remote_file, out, cancelled, reserved)
            if size is not None and num_bytes != size:
                raise FetchError("file_changed", "The file changed while it was read")
        except BaseException:
            release()
            raise
        file = _file_of(path, source, sha256, num_bytes)
        return Fetched(file, remote.version_of(info), _ms_since(started), release)

    def _copy(
        self, source: BinaryIO, out: BinaryIO | None, cancelled: threading.Event, max_bytes: int | None = None
    ) -> tuple[str, int]:
        digest, num_bytes = hashlib.sha256(), 0
        limit = self.max_file_bytes if max_bytes is None else max_bytes
        deadline = time.monotonic() + self.timeout_seconds
        while chunk := source.read(CHUNK_BYTES):
            num_bytes += len(chunk)
            self._check_size(num_bytes, limit)
            digest.update(chunk)
            if out is not None:
                out.write(chunk)
            if cancelled.is_set():
                raise Cancelled
            if time.monotonic() > deadline:
                raise FetchError("file_timeout", f"The file was not read within {self.timeout_seconds:g} seconds")
        return digest.hexdigest(), num_bytes

    def _check_size(self, num_bytes: int, limit: int | None = None) -> None:
        if num_bytes > (self.max_file_bytes if limit is None else limit):
            raise FetchError("file_too_large", f"The file has more than {self.max_file_bytes} bytes")

    def _new_path(self, uri: str) -> Path:
        with self._lock:
            if self._folder is None:
                _remove_left_folders()
                self._folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
            self._number += 1
            suffix = Path(uri.partition("?")[0]).suffix
            return self._folder / f"{self._number}{suffix if suffix.isascii() and len(suffix) <= 8 else ''}"


class _Space:
    def __init__(self, num_bytes: int) -> None:
        self._left = num_bytes
        self._changed = threading.Condition()

    def take(self, num_bytes: int, cancelled: threading.Event) -> None:
        with self._changed:
            while self._left < num_bytes:
                if cancelled.is_set():
                    raise Cancelled
                self._changed.wait(0.2)
            self._left -= num_bytes

    def give(self, num_bytes: int) -> None:
        with self._changed:
            self._left += num_bytes
            self._changed.notify_all()


def is_unchanged(fetched: Fetched) -> bool:
    """Whether a local file is still what was hashed."""
    if remote.is_remote(fetched.file.uri):
        return True
    try:
        return _version(fetched.file.path.stat()) == fetched.version
    except OSError:
        return False


def _file_of(path: Path, source: VideoSource, sha256: str, num_bytes: int) -> LocalFile:
    return LocalFile(path, source.uri, sha256, num_bytes, source.client_id, source.metadata)


@contextmanager
def _opened(uri: str) -> Iterator[tuple[BinaryIO, dict[str, Any]]]:
    """With its description, of which an object store needs one request: that of the file itself."""
    store, name = remote.filesystem_and_path(uri)
    blocks: dict[str, Any] = {"block_size": BLOCK_BYTES, "cache_type": "readahead"}
    if remote.scheme_of(uri) not in ("http", "https"):
        with store.open(name, "rb", **blocks) as file:
            yield file, file.details
        return
    info = dict(store.info(name))
    with store.open(name, "rb", **(blocks if info.get("size") is not None else {"block_size": 0})) as file:
        yield file, info


def _stat(path: Path) -> os.stat_result:
    try:
        found = path.stat()
    except (OSError, ValueError) as error:
        raise _not_readable(error) from error
    if not stat.S_ISREG(found.st_mode):
        raise FetchError("file_not_readable", "This is not a file")
    return found


def _version(found: os.stat_result) -> str:
    return f"{found.st_size}:{found.st_mtime_ns}"


def _not_readable(error: Exception) -> FetchError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
    return FetchError("file_not_readable", f"The file cannot be read: {reason}")


def _ms_since(started: float) -> float:
    return round(1000 * (time.monotonic() - started), 1)


def _remove_left_folders() -> None:
    """Of processes of this user that were killed; where /proc says which are running."""
    if not Path("/proc/self").exists():
        return
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        number = folder.name.removeprefix(_PREFIX).partition("-")[0]
        try:
            is_own = folder.stat().st_uid == os.getuid()
        except OSError:
            continue
        if number.isdecimal() and is_own and not Path("/proc", number).exists():
            shutil.rmtree(folder, ignore_errors=True)
