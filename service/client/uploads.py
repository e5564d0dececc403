"""A video as a multipart body that is read while it is sent."""

from __future__ import annotations

import io
import json
import os
import secrets
import stat
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import anyio.to_thread

from vidlex.service.client.errors import FileNotReadable

CHUNK_BYTES = 256 * 1024

VideoInput = str | os.PathLike[str] | bytes | BinaryIO
"""A path, the bytes of a file, or a file opened in binary mode, which is sent from its position on."""

OnProgress = Callable[[int, int | None], None]
"""Is called with the bytes of the video that are sent and, if it is known, their number. After a refusal the count
starts again."""


class Upload:
    """What is sent can be sent again, unless it is a stream that cannot seek."""

    def __init__(self, video: VideoInput, params: Mapping[str, Any], on_progress: OnProgress | None = None) -> None:
        if isinstance(video, str | os.PathLike):
            self._source: Path | bytes | BinaryIO = Path(video)
        elif isinstance(video, bytes | bytearray | memoryview):
            self._source = bytes(video)
        elif hasattr(video, "read"):
            self._source = video
        else:
            raise TypeError(f"a video is a path, bytes or a file, not {type(video).__name__}")
        self._start = _position(self._source)
        self._is_fresh = True
        self._params = json.dumps(params, default=list).encode() if params else None  # also of tuples and sets
        self._on_progress = on_progress

    @property
    def can_be_repeated(self) -> bool:
        return self._start is not None or isinstance(self._source, Path | bytes)

    @contextmanager
    def opened(self) -> Iterator[MultipartBody]:
        """For one attempt. Raises FileNotReadable."""
        if isinstance(self._source, Path):
            try:
                file = self._source.open("rb")
            except OSError as error:
                raise FileNotReadable(f"{self._source}: {error.strerror or error}") from None
            with file:
                facts = os.fstat(file.fileno())
                yield self._body(file, facts.st_size if stat.S_ISREG(facts.st_mode) else None, str(self._source))
        elif isinstance(self._source, bytes):
            yield self._body(io.BytesIO(self._source), len(self._source), "the video")
        else:
            if not self._is_fresh and self._start is not None:
                self._source.seek(self._start)
            self._is_fresh = False
            yield self._body(self._source, _remaining(self._source, self._start), "the video")

    def _body(self, file: BinaryIO, size: int | None, name: str) -> MultipartBody:
        return MultipartBody(file, size, name, self._params, self._on_progress)


@dataclass
class MultipartBody:
    """Iterable once, with or without an event loop."""

    file: BinaryIO
    size: int | None
    name: str
    params: bytes | None
    on_progress: OnProgress | None

    def __post_init__(self) -> None:
        self._boundary = secrets.token_hex(16)
        parts = [_head(self._boundary, 'name="params"', "application/json") + self.params] if self.params else []
        parts.append(_head(self._boundary, 'name="file"; filename="video"', "application/octet-stream"))
        self._before = b"\r\n".join(parts)
        self._after = f"\r\n--{self._boundary}--\r\n".encode()
        self._num_sent = 0

    @property
    def headers(self) -> dict[str, str]:
        found = {"Content-Type": f"multipart/form-data; boundary={self._boundary}"}
        if self.size is not None:
            found["Content-Length"] = str(len(self._before) + self.size + len(self._after))
        return found

    def __iter__(self) -> Iterator[bytes]:
        yield self._before
        while chunk := self._read():
            self._report(chunk)
            yield chunk
        yield self._after

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._before
        while chunk := await anyio.to_thread.run_sync(self._read):
            self._report(chunk)
            yield chunk
        yield self._after

    def _read(self) -> bytes:
        """The next bytes; none at the end. What a file gains while it is sent does not belong to it."""
        rest = CHUNK_BYTES if self.size is None else min(CHUNK_BYTES, self.size - self._num_sent)
        try:
            chunk = self.file.read(rest) if rest else b""
        except OSError as error:
            raise FileNotReadable(f"{self.name}: {error.strerror or error}") from None
        if not isinstance(chunk, bytes):
            raise TypeError("the file must be opened in binary mode")
        if rest and not chunk and self.size is not None:
            raise FileNotReadable(f"{self.name} became shorter while it was sent")
        return chunk

    def _report(self, chunk: bytes) -> None:
        self._num_sent += len(chunk)
        if self.on_progress is not None:
            self.on_progress(self._num_sent, self.size)


def _head(boundary: str, disposition: str, media_type: str) -> bytes:
    lines = (f"--{boundary}", f"Content-Disposition: form-data; {disposition}", f"Content-Type: {media_type}", "", "")
    return "\r\n".join(lines).encode()


def _position(source: Path | bytes | BinaryIO) -> int | None:
    """None if it cannot be returned to."""
    if isinstance(source, Path | bytes):
        return None
    try:
        return source.tell() if source.seekable() else None
    except (OSError, AttributeError):
        return None


def _remaining(file: BinaryIO, start: int | None) -> int | None:
    if start is None:
        return None
    end = file.seek(0, os.SEEK_END)
    file.seek(start)
    return max(0, end - start)
