"""The multipart body of a video: its fields ``file``, which goes to disk, and ``params``."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from vidlex.service.errors import InvalidParameter, InvalidRequest, UndecodableVideo, UnsupportedMedia
from vidlex.service.http.body_formats import refuse_part_encoding
from vidlex.service.http.body_stream import too_large
from vidlex.service.schemas.json_text import parse_json

_MAX_PARTS = 16
_MAX_CONTENT_TYPE_CHARS = 1024
_MAX_PARAMS_BYTES = 1 << 20
MAX_OVERHEAD_BYTES = _MAX_PARAMS_BYTES + (64 << 10)  # in addition to the video


@dataclass(frozen=True)
class Upload:
    """A received video. ``path`` exists only within ``Spool.receive``."""

    path: Path
    num_bytes: int
    sha256: str
    params: object  # parsed JSON, or None


class Receiver:
    """Parses the parts; ``_pending`` buffers the video until ``flush`` writes and hashes it.

    ``max_bytes`` are those of the video. ``reserve(num_bytes)`` is called before each write, and may raise.
    """

    def __init__(self, path: Path, boundary: bytes, *, max_bytes: int, reserve: Callable[[int], None]) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._reserve = reserve
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
        if self._num_received - self.num_bytes > MAX_OVERHEAD_BYTES:
            raise too_large(self._max_bytes)

    def flush(self) -> None:
        if not self._pending:
            return
        self._reserve(len(self._pending))
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
            if self.num_bytes > self._max_bytes:
                raise too_large(self._max_bytes)
            self._pending += data[start:end]
        else:
            if len(self._params) + end - start > _MAX_PARAMS_BYTES:
                raise too_large(_MAX_PARAMS_BYTES)
            self._params += data[start:end]

    def _on_end(self) -> None:
        self._is_complete = True


def boundary_of(request: Request) -> bytes:
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


def _printable(text: str) -> str:
    return "".join(c for c in text if c.isprintable() and c not in "/~")[:64]
