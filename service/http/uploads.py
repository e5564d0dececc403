"""Bounded request bodies: videos streamed to disk, and JSON.

Bytes are counted as they arrive, independent of Content-Length. At most ``_WRITE_BYTES`` and one chunk of a video are
in memory.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NoReturn, TypeVar

import anyio
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from vidlex.service.bounds import MAX_JSON_VALUES
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
from vidlex.service.http.body_formats import has_content_coding, parse_json, refuse_part_encoding, unsupported_coding
from vidlex.service.http.caller import client_of
from vidlex.service.http.fair_threads import FairThreads
from vidlex.service.http.problems import AT_END_KEY
from vidlex.service.sharing.shares import Shares

ParsedT = TypeVar("ParsedT")

_WRITE_BYTES = 1 << 20
_MAX_PARTS = 16
_MAX_CONTENT_TYPE_CHARS = 1024
_MAX_JSON_AT_WORK_BYTES = 128 << 20
_MAX_PARSERS = 3  # two of one client; more would only share the interpreter's lock with the event loop
_MAX_PARAMS_BYTES = 1 << 20
_MAX_OVERHEAD_BYTES = _MAX_PARAMS_BYTES + (64 << 10)  # of a multipart body, in addition to the video
_MAX_DISCARDED_BYTES = 8 << 20
_MAX_DISCARD_SECONDS = 2.0


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
    """A received video. ``path`` exists only within ``Spool.receive``."""

    path: Path
    num_bytes: int
    sha256: str
    params: object  # parsed JSON, or None


class Spool:
    """``start`` removes the folders of killed processes."""

    def __init__(self, root: Path, limits: UploadLimits) -> None:
        self.limits = limits
        self._root = root
        self._lock_file: IO[bytes] | None = None
        self._folder = root / "not-started"
        self._parsers = FairThreads(_MAX_PARSERS, limits.max_uploads, "bodies", "bodies wait to be parsed")
        self._bytes = Shares(
            limits.max_spool_bytes, "upload_bytes", "bytes of videos at work", least_share=limits.max_bytes
        )
        self._uploads = Shares(limits.max_uploads, "uploads", "concurrent uploads")
        max_json = max(_MAX_JSON_AT_WORK_BYTES, 2 * limits.max_json_bytes)
        self._json = Shares(max_json, "json_bytes", "bytes of JSON at work", least_share=limits.max_json_bytes)

    def start(self) -> None:
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for lock_path in self._root.glob("*.lock"):
            with lock_path.open("rb") as lock:
                if _try_lock(lock):  # its process has ended
                    shutil.rmtree(lock_path.with_suffix(""), ignore_errors=True)
                    lock_path.unlink(missing_ok=True)
        while True:
            self._folder = self._root / secrets.token_hex(8)
            lock_path = self._folder.with_suffix(".lock")
            self._lock_file = lock_path.open("wb")
            # A process that is starting may have removed the lock file before it was locked.
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
        return self._uploads.num_held

    @asynccontextmanager
    async def receive(self, request: Request) -> AsyncIterator[Upload]:
        """Receive the ``file`` and ``params`` parts of a multipart body; removes the file on exit.

        Raises UnsupportedMedia, InvalidRequest, InvalidParameter, UndecodableVideo (empty file), UploadTooLarge,
        UploadTimeout, and Overloaded or ShareExceeded (too many uploads, or the spool is full).
        """
        await _check_content_coding(request)
        boundary = _boundary(request)
        await _check_content_length(request, self.limits.max_bytes + _MAX_OVERHEAD_BYTES, self.limits.max_bytes)
        path = self._folder / secrets.token_hex(16)
        client = client_of(request)
        receiver = _Receiver(path, boundary, self, client)
        try:
            with self._uploads.hold(client), closing(receiver):
                await self._fill(request, receiver)
                upload = await self._parsers.run(client, receiver.result)
            yield upload
        finally:
            path.unlink(missing_ok=True)
            self._bytes.give_back(client, receiver.reserved_bytes)

    async def read_json(
        self, request: Request, parse: Callable[[object], ParsedT], *, max_values: int = MAX_JSON_VALUES
    ) -> ParsedT:
        """The result of ``parse`` of the parsed body, off the event loop.

        Requires a JSON Content-Type, which rules out HTML forms.

        Raises UnsupportedMedia, InvalidRequest, UploadTooLarge, UploadTimeout, Overloaded or ShareExceeded.
        """
        await _check_content_coding(request)
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != "application/json" and not media_type.endswith("+json"):
            raise UnsupportedMedia("Send JSON with the header Content-Type: application/json")
        max_bytes = self.limits.max_json_bytes
        await _check_content_length(request, max_bytes, max_bytes)
        body, client = bytearray(), client_of(request)
        stream = request.stream().__aiter__()
        with self._uploads.hold(client):
            try:
                async for chunk in _with_timeouts(stream, self.limits):
                    self._json.take(client, len(chunk))  # what is parsed of it lives as long as the request
                    request.scope[AT_END_KEY].callback(self._json.give_back, client, len(chunk))
                    body += chunk
                    if len(body) > max_bytes:
                        raise _too_large(max_bytes)
            except ClientDisconnect:
                raise InvalidRequest("The client disconnected before the end of the body") from None
            except (UploadTooLarge, Overloaded):
                await _discard(stream)
                raise

        def work() -> ParsedT:
            return parse(parse_json(bytes(body), name="The body", max_values=max_values))

        return await self._parsers.run(client, work)

    async def _fill(self, request: Request, receiver: _Receiver) -> None:
        stream = request.stream().__aiter__()
        try:
            async for chunk in _with_timeouts(stream, self.limits):
                receiver.feed(chunk)
                if receiver.pending_bytes >= _WRITE_BYTES:
                    await anyio.to_thread.run_sync(receiver.flush)
            await anyio.to_thread.run_sync(receiver.flush)
        except FormParserError as error:
            raise InvalidRequest("The multipart body is malformed", internal=repr(error)) from None
        except ClientDisconnect:
            raise InvalidRequest("The client disconnected before the end of the upload") from None
        except (UploadTooLarge, Overloaded, InvalidParameter, UnsupportedMedia):
            await _discard(stream)
            raise

    def reserve(self, client: str, num_bytes: int) -> None:
        """Raises Overloaded or ShareExceeded."""
        self._bytes.take(client, num_bytes)


class _Receiver:
    """Parses the parts; ``_pending`` buffers the video until ``flush`` writes and hashes it."""

    def __init__(self, path: Path, boundary: bytes, spool: Spool, client: str) -> None:
        self._path = path
        self._spool = spool
        self._client = client
        self._sha256 = hashlib.sha256()
        self._file: IO[bytes] | None = None
        self._pending = bytearray()
        self._params = bytearray()
        self._fields: set[str] = set()
        self._field = ""
        self._num_parts = 0
        self._header_name = b""
        self._header_value = b""
        self._disposition = b""
        self._is_complete = False
        self.num_bytes = 0
        self._num_received = 0
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
        self._num_received += len(chunk)
        self._parser.write(chunk)
        # Boundaries, headers, and what precedes the first and follows the last boundary.
        if self._num_received - self.num_bytes > _MAX_OVERHEAD_BYTES:
            raise _too_large(self._spool.limits.max_bytes)

    def flush(self) -> None:
        if not self._pending:
            return
        self._spool.reserve(self._client, len(self._pending))
        self.reserved_bytes += len(self._pending)
        if self._file is None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            self._file = os.fdopen(os.open(self._path, flags, 0o600), "wb", buffering=0)
        self._sha256.update(self._pending)
        view = memoryview(self._pending)
        while view:
            view = view[self._file.write(view) :]
        view.release()
        self._pending = bytearray()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def result(self) -> Upload:
        if not self._is_complete:
            raise InvalidRequest("The multipart body is incomplete")
        if "file" not in self._fields:
            raise InvalidRequest("The multipart field `file` is missing")
        if self.num_bytes == 0:
            raise UndecodableVideo("The file is empty")
        params = None
        if "params" in self._fields:
            params = parse_json(bytes(self._params), name="The field `params`")
        return Upload(self._path, self.num_bytes, self._sha256.hexdigest(), params)

    # Callbacks of MultipartParser

    def _on_part_begin(self) -> None:
        self._num_parts += 1
        if self._num_parts > _MAX_PARTS:
            raise InvalidRequest(f"The multipart body has more than {_MAX_PARTS} parts")
        self._disposition = b""

    def _on_header_begin(self) -> None:
        self._header_name = self._header_value = b""

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _on_header_end(self) -> None:
        name = self._header_name.lower()
        if name == b"content-disposition":
            self._disposition = self._header_value
        elif name == b"content-transfer-encoding":
            refuse_part_encoding(self._header_value)

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if name not in ("file", "params"):
            field = _printable(name)
            problem = {"pointer": "/" + field, "detail": "unknown field; known: file, params"}
            raise InvalidParameter(f"Unknown multipart field {field!r}", errors=[problem])
        if name in self._fields:
            raise InvalidRequest(f"The multipart field `{name}` is repeated")
        self._fields.add(name)
        self._field = name

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._field == "file":
            self.num_bytes += end - start
            if self.num_bytes > self._spool.limits.max_bytes:
                raise _too_large(self._spool.limits.max_bytes)
            self._pending += data[start:end]
        else:
            if len(self._params) + end - start > _MAX_PARAMS_BYTES:
                raise _too_large(_MAX_PARAMS_BYTES)
            self._params += data[start:end]

    def _on_end(self) -> None:
        self._is_complete = True


def _too_large(max_bytes: int) -> UploadTooLarge:
    return UploadTooLarge(f"The body exceeds {max_bytes} bytes", max_bytes=max_bytes)


def _boundary(request: Request) -> bytes:
    content_type = request.headers.get("content-type", "")
    if len(content_type) > _MAX_CONTENT_TYPE_CHARS:
        raise InvalidRequest(f"A Content-Type has at most {_MAX_CONTENT_TYPE_CHARS} characters")
    media_type, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if media_type != b"multipart/form-data":
        raise UnsupportedMedia("Send multipart/form-data with the video in the field `file`")
    if not 1 <= len(boundary) <= 70:
        raise InvalidRequest("The Content-Type multipart/form-data needs a `boundary` of 1 to 70 characters")
    return boundary


async def _check_content_coding(request: Request) -> None:
    if has_content_coding(request):
        await _refuse_unread(request, unsupported_coding(request))


async def _refuse_unread(request: Request, error: VidlexError) -> NoReturn:
    if "expect" not in request.headers:  # else the client waits for "100 Continue" and has sent no body
        await _discard(request.stream())
    raise error


async def _check_content_length(request: Request, max_bytes: int, reported_bytes: int) -> None:
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared[:20]) > max_bytes:
        await _refuse_unread(request, _too_large(reported_bytes))


async def _with_timeouts(stream: AsyncIterator[bytes], limits: UploadLimits) -> AsyncIterator[bytes]:
    deadline = time.monotonic() + limits.timeout_seconds
    while True:
        timeout = min(limits.idle_seconds, deadline - time.monotonic())
        try:
            with anyio.fail_after(max(0.0, timeout)):
                chunk = await anext(stream)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise UploadTimeout("The upload is too slow or took too long") from None
        yield chunk


async def _discard(stream: AsyncIterator[bytes]) -> None:
    """Read a part of the rest; otherwise the client sees a reset, not the response."""
    num_bytes = 0
    try:
        with anyio.move_on_after(_MAX_DISCARD_SECONDS):
            async for chunk in stream:
                num_bytes += len(chunk)
                if num_bytes > _MAX_DISCARDED_BYTES:
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
