"""Where results are written: a folder of this machine or a prefix of an object store. Files appear whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from vidlex.service.bulk.remote import MissingPackage, filesystem_and_path, is_remote


class StorageError(OSError):
    """The store does not answer, or refuses. The message names the kind of fault only."""


class Storage(Protocol):
    """Of one folder or prefix. Names have no folders."""

    def names(self) -> list[str]:
        """Of files, sorted. Empty if the folder does not exist."""

    def open(self, name: str) -> BinaryIO: ...

    def write(self, name: str, data: bytes) -> None:
        """Whole and durable once this returns; replaces."""

    def remove(self) -> None:
        """The folder with all that is in it."""


class LocalStorage:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def names(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir()) if self.folder.is_dir() else []

    def open(self, name: str) -> BinaryIO:
        return (self.folder / name).open("rb")

    def write(self, name: str, data: bytes) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f".{name}.new"
        with path.open("wb") as file:
            file.write(data)
        replace_durably(path, self.folder / name)

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def store_errors() -> Iterator[None]:
    """Each store has its own exceptions, next to those of OSError. Raises StorageError for them."""
    try:
        yield
    except (FileNotFoundError, MissingPackage):
        raise
    except Exception as error:
        reason = "access denied" if isinstance(error, PermissionError) else type(error).__name__
        raise StorageError(f"the store cannot be read or written ({reason})") from error


class RemoteStorage:
    """Raises StorageError."""

    def __init__(self, uri: str) -> None:
        self.store, path = filesystem_and_path(uri)
        self.path = path.rstrip("/")

    def names(self) -> list[str]:
        try:
            with store_errors():
                found = self.store.ls(self.path, detail=True)
        except FileNotFoundError:
            return []
        names = [str(info["name"]) for info in found if info["type"] == "file"]
        return sorted(name.rpartition("/")[2] for name in names if name.startswith(f"{self.path}/"))

    def open(self, name: str) -> BinaryIO:
        with store_errors():
            file: BinaryIO = self.store.open(f"{self.path}/{name}", "rb")
        return file

    def write(self, name: str, data: bytes) -> None:
        with store_errors():
            self.store.pipe_file(f"{self.path}/{name}", data)

    def remove(self) -> None:
        for name in self.names():
            with store_errors():
                self.store.rm_file(f"{self.path}/{name}")


def storage_of(location: str) -> Storage:
    return RemoteStorage(location) if is_remote(location) else LocalStorage(Path(location))


def exists(location: str) -> bool:
    if not is_remote(location):
        return os.path.lexists(location)
    store, path = filesystem_and_path(location)
    with store_errors():
        return bool(store.exists(path))


def delete(location: str) -> None:
    """A file or a folder, if there is one."""
    if is_remote(location):
        store, path = filesystem_and_path(location)
        with store_errors():
            if store.exists(path):
                store.rm(path, recursive=True)
    elif Path(location).is_dir() and not Path(location).is_symlink():
        shutil.rmtree(location)
    else:
        Path(location).unlink(missing_ok=True)


def publish(written: Path, location: str) -> None:
    """Put a finished local file or folder in its place, which may hold an older one."""
    if is_remote(location):
        with store_errors():
            _put(written, location)
        return
    target = Path(location)
    target.parent.mkdir(parents=True, exist_ok=True)
    if not written.is_dir():
        replace_durably(written, target)
        return
    old = target.with_name(f".{target.name}.old")
    delete(str(old))
    if target.exists():
        target.rename(old)
    written.rename(target)
    _sync_folder(target.parent)
    delete(str(old))


def _put(written: Path, location: str) -> None:
    store, path = filesystem_and_path(location)
    if not written.is_dir():
        store.put_file(str(written), path)
        return
    new = sorted(found.name for found in written.iterdir())
    storage = RemoteStorage(location)
    for name in new:
        store.put_file(str(written / name), f"{storage.path}/{name}")
    for name in set(storage.names()) - set(new):
        store.rm_file(f"{storage.path}/{name}")


def replace_durably(written: Path, target: Path) -> None:
    with written.open("rb") as file:
        os.fsync(file.fileno())
    written.replace(target)
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
