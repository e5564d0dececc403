"""The folder of jobs' uploads and outputs, which processes may share.

``place`` holds a random id: a job whose input is an upload can be taken by the processes that see the same id. Files
lie in a folder per client (a digest of its name), whose bytes are its share:

    place
    inputs/CLIENT/REF
    outputs/CLIENT/NAMESPACE.JOB/...
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import structlog

from vidlex.service.errors import FULL_DISK_ERRORS, NotFound, StorageFull
from vidlex.service.jobs.records import Job, JobInput
from vidlex.service.sharing.shares import Shares

ORPHAN_SECONDS = 900.0
_REF = re.compile(r"[0-9a-f]{16}/[0-9a-f]{32}")
_PLACE = re.compile(r"[0-9a-f]{32}")
_COPY_BYTES = 1 << 20

_log = structlog.get_logger("vidlex.jobs")


class JobFiles:
    """Thread-safe. ``open`` first.

    ``max_bytes`` are those of all clients; one may hold as many as are free, half of them if it is alone. What other
    processes have added is counted at each ``sweep``.
    """

    def __init__(self, root: Path, max_bytes: int) -> None:
        self._root = root
        self._inputs, self._outputs = root / "inputs", root / "outputs"
        self._shares = Shares(max_bytes, "job_bytes", "bytes of jobs' files")
        self._lock = threading.Lock()
        self._changes: Counter[str] | None = None  # of bytes by client, while the folder is counted
        self._place = ""

    @property
    def place(self) -> str:
        assert self._place, "call open() first"
        return self._place

    @property
    def num_bytes(self) -> int:
        return self._shares.num_held

    def open(self) -> None:
        """Raises StorageFull, OSError."""
        with _disk_errors():
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            for folder in (self._inputs, self._outputs):
                folder.mkdir(mode=0o700, exist_ok=True)
            self._place = _place_of(self._root)
            _sync(self._root)
        self._count()

    # -- uploads

    def adopt(self, path: Path, *, client: str, sha256: str, num_bytes: int) -> JobInput:
        """Takes over a received file, which is moved. It and its name are on the disk when this returns.

        Raises ShareExceeded or Overloaded (limit ``job_bytes``), StorageFull.
        """
        owner = _owner(client)
        ref = f"{owner}/{secrets.token_hex(16)}"
        self._take(owner, num_bytes)
        try:
            with _disk_errors():
                self._move(path, self._inputs / ref)
        except BaseException:
            self._give_back(owner, num_bytes)
            raise
        return JobInput("upload", ref, self.place, sha256, num_bytes)

    def path(self, job_input: JobInput) -> Path:
        """Raises NotFound, also for an upload of another place."""
        path = self._input_path(job_input)
        if path is None or not path.is_file():
            raise NotFound("The upload of this job is gone")
        return path

    def is_gone(self, job_input: JobInput) -> bool:
        """An upload that was in this place. Those of other places are not looked for."""
        path = self._input_path(job_input)
        return path is not None and not path.is_file()

    def remove(self, job_input: JobInput) -> None:
        """Does nothing if it is no upload of this place, or gone."""
        path = self._input_path(job_input)
        if path is not None:
            self._remove_file(path)

    def _input_path(self, job_input: JobInput) -> Path | None:
        if job_input.kind != "upload" or job_input.place != self.place or not _REF.fullmatch(job_input.ref):
            return None
        return self._inputs / job_input.ref

    def _move(self, source: Path, target: Path) -> None:
        os.utime(source)  # its age as an orphan counts from now
        _sync(source)
        for is_last in (False, True):
            if not target.parent.is_dir():
                target.parent.mkdir(mode=0o700, exist_ok=True)
                _sync(self._inputs)
            try:
                _rename(source, target)
                break
            except FileNotFoundError:  # a sweep has removed the empty folder
                if is_last:
                    raise
        _sync(target.parent)

    # -- outputs

    def output_folder(self, job: Job) -> Path:
        """For the files that the job writes; made if it does not exist. Raises StorageFull."""
        folder = self._output_folder(job)
        with _disk_errors():
            if not folder.is_dir():
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                for made in (self._outputs, folder.parent):
                    _sync(made)
        return folder

    def find_output_folder(self, job: Job) -> Path:
        """Raises NotFound."""
        folder = self._output_folder(job)
        if not folder.is_dir():
            raise NotFound("The files of this job are not here")
        return folder

    def _output_folder(self, job: Job) -> Path:
        return self._outputs / _owner(job.client) / f"{job.namespace}.{job.id}"

    def take_bytes(self, client: str, num_bytes: int) -> None:
        """Before they are written to an output. Raises ShareExceeded, Overloaded."""
        self._take(_owner(client), num_bytes)

    # -- removal

    def remove_files_of(self, job: Job) -> None:
        """Of a job that is finished for good: its upload and its outputs, as far as they are here."""
        if job.input is not None:
            self.remove(job.input)
        self._remove_folder(self._output_folder(job))

    def sweep(
        self,
        inputs_in_use: Callable[[Sequence[str]], Collection[str]],
        existing: Callable[[Sequence[str]], Collection[str]],
        *,
        orphan_seconds: float = ORPHAN_SECONDS,
    ) -> int:
        """Removes files without a job that are older than ``orphan_seconds``; returns their number.

        ``inputs_in_use(refs)`` are those that a job has, ``existing(ids)`` those that are jobs; both may raise.
        """
        before = time.time() - orphan_seconds
        old = [path for path in _grandchildren(self._inputs) if _is_older(path, before)]
        refs = {f"{path.parent.name}/{path.name}": path for path in old}
        in_use = set(inputs_in_use(sorted(refs))) if refs else set()
        orphans = [path for ref, path in refs.items() if ref not in in_use]
        for path in orphans:
            self._remove_file(path)
        folders = [path for path in _grandchildren(self._outputs) if _is_older(path, before)]
        jobs = {path.name.partition(".")[2]: path for path in folders}
        kept = set(existing(sorted(jobs))) if jobs else set()
        gone = [path for job_id, path in jobs.items() if job_id not in kept]
        for folder in gone:
            self._remove_folder(folder)
        for owner in (*_children(self._inputs), *_children(self._outputs)):
            if _is_older(owner, before):
                with contextlib.suppress(OSError):  # not empty
                    owner.rmdir()
        num_removed = len(orphans) + len(gone)
        if num_removed:
            _log.info("job_orphans_removed", num_files=num_removed)
        self._count()
        return num_removed

    def _remove_file(self, path: Path) -> None:
        with contextlib.suppress(OSError):
            num_bytes = path.stat().st_size
            path.unlink()
            self._give_back(path.parent.name, num_bytes)

    def _remove_folder(self, folder: Path) -> None:
        num_bytes = _size(folder)
        shutil.rmtree(folder, ignore_errors=True)
        self._give_back(folder.parent.name, num_bytes)

    # -- bytes

    def _take(self, owner: str, num_bytes: int) -> None:
        self._shares.take(owner, num_bytes)
        self._note(owner, num_bytes)

    def _give_back(self, owner: str, num_bytes: int) -> None:
        self._shares.give_back(owner, num_bytes)
        self._note(owner, -num_bytes)

    def _note(self, owner: str, change: int) -> None:
        with self._lock:
            if self._changes is not None:
                self._changes[owner] += change

    def _count(self) -> None:
        """What changes meanwhile may be counted twice, until the next count."""
        with self._lock:
            self._changes = Counter()
        found: Counter[str] = Counter()
        for path in _grandchildren(self._inputs):
            with contextlib.suppress(OSError):
                found[path.parent.name] += path.stat().st_size
        for folder in _grandchildren(self._outputs):
            found[folder.parent.name] += _size(folder)
        with self._lock:
            found.update(self._changes or {})
            self._changes = None
            self._shares.recount(found)


def _owner(client: str) -> str:
    return hashlib.sha256(client.encode()).hexdigest()[:16]


def _place_of(root: Path) -> str:
    path = root / "place"
    while True:
        with contextlib.suppress(FileNotFoundError):
            text = path.read_text(encoding="ascii").strip()
            if not _PLACE.fullmatch(text):
                raise OSError(errno.EINVAL, "the file `place` of the jobs' folder is damaged", str(path))
            return text
        new = root / f".place-{secrets.token_hex(8)}"
        try:
            new.write_text(f"{secrets.token_hex(16)}\n", encoding="ascii")
            _sync(new)
            with contextlib.suppress(FileExistsError):  # of another process, whose id is the place's
                os.link(new, path)
        finally:
            new.unlink(missing_ok=True)


def _children(folder: Path) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        yield from folder.iterdir()


def _grandchildren(folder: Path) -> Iterator[Path]:
    for owner in _children(folder):
        yield from _children(owner)


def _is_older(path: Path, before: float) -> bool:
    try:
        found = path.stat()
    except OSError:
        return False
    return max(found.st_mtime, found.st_ctime) < before


def _size(folder: Path) -> int:
    num_bytes = 0
    for path in _children(folder):
        with contextlib.suppress(OSError):
            num_bytes += path.stat().st_size
    return num_bytes


def _rename(source: Path, target: Path) -> None:
    try:
        source.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _copy(source, target)


def _copy(source: Path, target: Path) -> None:
    new = target.with_name(f"{target.name}.new")
    try:
        with source.open("rb") as read, new.open("xb") as write:
            shutil.copyfileobj(read, write, _COPY_BYTES)
        _sync(new)
        new.rename(target)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    source.unlink()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in FULL_DISK_ERRORS:
            raise StorageFull(internal=str(error)) from error
        raise
