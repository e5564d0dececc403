"""Request bodies under limits: a video streamed to disk, and JSON.

Bytes are counted as they arrive, whatever Content-Length says; no more than ``_WRITE_BYTES`` of a video are in
memory; the sha256 is computed on the way; and the temporary file is gone when the ``async with`` ends.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import shutil
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import anyio
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from vidlex.service.errors import (
    InvalidParameter,
    InvalidRequest,
    Overloaded,
    UndecodableVideo,
    UnsupportedMedia,
    UploadTimeout,
    UploadTooLarge,
    VidlexError,
)

_WRITE_BYTES = 1 << 20
_MAX_PARTS = 16
_MAX_PARAMS_BYTES = 1 << 20
_OVERHEAD_BYTES = _MAX_PARAMS_BYTES + (64 << 10)
"""What a multipart body may hold beside the video."""
_LINGER_BYTES = 8 << 20
_LINGER_SECONDS = 2.0


@dataclass(frozen=True)
class UploadLimits:
    max_bytes: int
    max_json_bytes: int
    max_spool_bytes: int
    max_uploads: int
    idle_seconds: float
    timeout_seconds: float


@dataclass(frozen=True)
class Upload:
    """A received video. ``path`` exists only inside ``Spool.receive``."""

    path: Path
    num_bytes: int
    sha256: str
    params: Any
    """The JSON of the ``params`` part; None without one."""


class Spool:
    """A folder for the uploads of this process. Left-overs of processes that were killed are removed at start."""

    def __init__(self, root: Path, limits: UploadLimits) -> None:
        self.limits = limits
        self._root = root
        self._lock_file: IO[bytes] | None = None
        self._folder = root / "not-started"
        self._counter = threading.Lock()
        self._num_bytes = 0
        self._num_uploads = 0

    def start(self) -> None:
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for lock_path in self._root.glob("*.lock"):
            with lock_path.open("rb") as lock:
                if _try_lock(lock):  # its process is gone
                    shutil.rmtree(lock_path.with_suffix(""), ignore_errors=True)
                    lock_path.unlink(missing_ok=True)
        while True:
            self._folder = self._root / secrets.token_hex(8)
            lock_path = self._folder.with_suffix(".lock")
            self._lock_file = lock_path.open("wb")
            # Another process that starts now may take the file for a left-over before it is locked: then once more.
            if _try_lock(self._lock_file) and lock_path.exists():
                break
            self._lock_file.close()
        self._folder.mkdir(mode=0o700)

    def close(self) -> None:
        if self._lock_file is None:
            return
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.with_suffix(".lock").unlink(missing_ok=True)
        self._lock_file.close()
        self._lock_file = None

    @property
    def num_uploads(self) -> int:
        return self._num_uploads

    @asynccontextmanager
    async def receive(self, request: Request) -> AsyncIterator[Upload]:
        """The ``file`` and ``params`` parts of a multipart body. The file is removed when the context ends.

        Raises InvalidRequest, InvalidParameter, UndecodableVideo (an empty file), UploadTooLarge, UploadTimeout or
        Overloaded (too many uploads at once, or no room for them).
        """
        boundary = _boundary(request)
        await _check_content_length(request, self.limits.max_bytes + _OVERHEAD_BYTES, self.limits.max_bytes)
        path = self._folder / secrets.token_hex(16)
        receiver = _Receiver(path, boundary, self)
        try:
            with self._one_more(), closing(receiver):
                await self._fill(request, receiver)
                upload = receiver.result()
            yield upload
        finally:
            path.unlink(missing_ok=True)
            with self._counter:
                self._num_bytes -= receiver.reserved_bytes

    async def read_json(self, request: Request) -> Any:
        """The JSON body of a request. One of another declared type is refused, which keeps out plain HTML forms.

        Raises UnsupportedMedia, InvalidRequest, UploadTooLarge, UploadTimeout or Overloaded.
        """
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != "application/json" and not media_type.endswith("+json"):
            raise UnsupportedMedia("Send JSON, with the header Content-Type: application/json")
        max_bytes = self.limits.max_json_bytes
        await _check_content_length(request, max_bytes, max_bytes)
        body = bytearray()
        stream = request.stream().__aiter__()
        try:
            with self._one_more():
                async for chunk in _timed(stream, self.limits):
                    body += chunk
                    if len(body) > max_bytes:
                        await _linger(stream)
                        raise too_large(max_bytes)
        except ClientDisconnect:
            raise InvalidRequest("The request broke off") from None
        return parse_json(bytes(body), what="The body")

    @contextmanager
    def _one_more(self) -> Iterator[None]:
        with self._counter:
            if self._num_uploads >= self.limits.max_uploads:
                raise Overloaded("Too many uploads at the same time")
            self._num_uploads += 1
        try:
            yield
        finally:
            with self._counter:
                self._num_uploads -= 1

    async def _fill(self, request: Request, receiver: _Receiver) -> None:
        stream = request.stream().__aiter__()
        try:
            async for chunk in _timed(stream, self.limits):
                receiver.feed(chunk)
                if receiver.pending_bytes >= _WRITE_BYTES:
                    await anyio.to_thread.run_sync(receiver.flush)
            await anyio.to_thread.run_sync(receiver.flush)
        except FormParserError as error:
            raise InvalidRequest("The multipart body is malformed", internal=repr(error)) from None
        except ClientDisconnect:
            raise InvalidRequest("The upload broke off") from None
        except (UploadTooLarge, Overloaded, InvalidParameter):
            await _linger(stream)
            raise

    def reserve(self, num_bytes: int) -> None:
        with self._counter:
            if self._num_bytes + num_bytes > self.limits.max_spool_bytes:
                raise Overloaded("There is no room for another upload at the moment")
            self._num_bytes += num_bytes


class _Receiver:
    """Parses the parts; the video's bytes wait in ``_pending`` until ``flush`` writes and hashes them."""

    def __init__(self, path: Path, boundary: bytes, spool: Spool) -> None:
        self._path = path
        self._spool = spool
        self._sha256 = hashlib.sha256()
        self._out: IO[bytes] | None = None
        self._pending = bytearray()
        self._params = bytearray()
        self._seen: set[str] = set()
        self._part = ""
        self._num_parts = 0
        self._header_name = b""
        self._header_value = b""
        self._disposition = b""
        self._ended = False
        self.num_bytes = 0
        self.reserved_bytes = 0
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._on_part_begin,
                "on_header_begin": self._on_header_begin,
                "on_header_field": self._on_header_field,
                "on_header_value": self._on_header_value,
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers_finished,
                "on_part_data": self._on_part_data,
                "on_end": self._on_end,
            },
        )

    @property
    def pending_bytes(self) -> int:
        return len(self._pending)

    def feed(self, chunk: bytes) -> None:
        self._parser.write(chunk)

    def flush(self) -> None:
        """Write what waits. Blocks: call it in a thread."""
        if not self._pending:
            return
        self._spool.reserve(len(self._pending))
        self.reserved_bytes += len(self._pending)
        if self._out is None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            self._out = os.fdopen(os.open(self._path, flags, 0o600), "wb", buffering=0)
        self._sha256.update(self._pending)
        view = memoryview(self._pending)
        while view:
            view = view[self._out.write(view) :]
        view.release()
        self._pending = bytearray()

    def close(self) -> None:
        if self._out is not None:
            self._out.close()

    def result(self) -> Upload:
        if not self._ended:
            raise InvalidRequest("The multipart body is not complete")
        if "file" not in self._seen:
            raise InvalidRequest("The multipart field `file` with the video is missing")
        if self.num_bytes == 0:
            raise UndecodableVideo("The file is empty")
        params = None
        if "params" in self._seen:
            params = parse_json(bytes(self._params), what="The field `params`")
        return Upload(self._path, self.num_bytes, self._sha256.hexdigest(), params)

    # --- callbacks of the parser

    def _on_part_begin(self) -> None:
        self._num_parts += 1
        if self._num_parts > _MAX_PARTS:
            raise InvalidRequest("The multipart body has too many parts")
        self._disposition = b""

    def _on_header_begin(self) -> None:
        self._header_name = self._header_value = b""

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _on_header_end(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = self._header_value

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if name not in ("file", "params"):
            problem = {"pointer": "/" + _printable(name), "detail": "unknown field; known: file, params"}
            raise InvalidParameter("The multipart body has an unknown field", errors=[problem])
        if name in self._seen:
            raise InvalidRequest(f"The multipart field `{name}` is given twice")
        self._seen.add(name)
        self._part = name

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._part == "file":
            self.num_bytes += end - start
            if self.num_bytes > self._spool.limits.max_bytes:
                raise too_large(self._spool.limits.max_bytes)
            self._pending += data[start:end]
        else:
            if len(self._params) + end - start > _MAX_PARAMS_BYTES:
                raise too_large(_MAX_PARAMS_BYTES)
            self._params += data[start:end]

    def _on_end(self) -> None:
        self._ended = True


def parse_json(data: bytes, *, what: str) -> Any:
    """Strict JSON (no NaN, no Infinity). Raises InvalidRequest."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(data.decode("utf-8"), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{what} is not valid JSON in UTF-8", internal=repr(error)[:200]) from None


def too_large(max_bytes: int) -> UploadTooLarge:
    return UploadTooLarge(f"At most {max_bytes} bytes are accepted", max_bytes=max_bytes)


def _boundary(request: Request) -> bytes:
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not 1 <= len(boundary) <= 70:
        raise InvalidRequest("Send the video as the field `file` of a multipart/form-data body")
    return boundary


async def _check_content_length(request: Request, max_bytes: int, told_bytes: int) -> None:
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared[:20]) > max_bytes:
        if "expect" not in request.headers:  # who waits for "100 Continue" has sent nothing yet
            await _linger(request.stream())
        raise too_large(told_bytes)


async def _timed(stream: AsyncIterator[bytes], limits: UploadLimits) -> AsyncIterator[bytes]:
    end = time.monotonic() + limits.timeout_seconds
    while True:
        wait = min(limits.idle_seconds, end - time.monotonic())
        try:
            with anyio.fail_after(max(0.0, wait)):
                chunk = await anext(stream)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise UploadTimeout("The upload is too slow") from None
        yield chunk


async def _linger(stream: AsyncIterator[bytes]) -> None:
    """Read on for a moment: a client that is still sending would otherwise see a reset, not the answer."""
    num_bytes = 0
    try:
        with anyio.move_on_after(_LINGER_SECONDS):
            async for chunk in stream:
                num_bytes += len(chunk)
                if num_bytes > _LINGER_BYTES:
                    return
    except (ClientDisconnect, VidlexError):
        return


def _try_lock(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _printable(text: str) -> str:
    return "".join(c for c in text if c.isprintable() and c not in "/~")[:64]
