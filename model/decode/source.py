"""What is decoded: a path, or a file that is open already, which a process without access to any path can read."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path
from typing import BinaryIO

from vidlex.model.decode.limits import DecodeError


class OpenFile:
    """A seekable file by its descriptor, which stays the caller's. Each ``open`` reads at a position of its own."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def open(self, mode: str = "rb") -> BinaryIO:
        if mode != "rb":
            raise ValueError(f"the file is opened for reading, not as {mode!r}")
        return io.BufferedReader(_Reader(self.descriptor, is_owned=False))


VideoSource = Path | OpenFile


def open_unbuffered(source: VideoSource) -> io.RawIOBase:
    """Raises OSError."""
    if isinstance(source, OpenFile):
        return _Reader(source.descriptor, is_owned=False)
    return _Reader(os.open(source, os.O_RDONLY | os.O_CLOEXEC), is_owned=True)


def num_bytes_of(source: VideoSource) -> int:
    """Raises DecodeError for a path that is not that of a file, OSError if it cannot be read."""
    if isinstance(source, OpenFile):
        return os.lseek(source.descriptor, 0, os.SEEK_END)
    facts = source.stat()
    if not stat.S_ISREG(facts.st_mode):
        raise DecodeError("unsupported_media", "This is not a file.")
    return facts.st_size


class _Reader(io.RawIOBase):
    # Not io.FileIO, which has the position of the descriptor, shared by all decoders of a file, and asks for the file's
    # facts by a system call that also takes paths.

    def __init__(self, descriptor: int, *, is_owned: bool) -> None:
        self._descriptor = descriptor
        self._is_owned = is_owned
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        if whence == os.SEEK_CUR:
            offset += self._position
        elif whence == os.SEEK_END:
            offset += os.lseek(self._descriptor, 0, os.SEEK_END)
        if offset < 0:
            raise ValueError(f"a position of {offset}")
        self._position = offset
        return offset

    def read(self, size: int = -1, /) -> bytes:
        if size < 0:
            return self.readall()
        data = os.pread(self._descriptor, size, self._position)
        self._position += len(data)
        return data

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if self._is_owned and not self.closed:
            os.close(self._descriptor)
        super().close()
