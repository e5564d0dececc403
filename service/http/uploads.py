"""Bounded request bodies: videos streamed to disk, and JSON.

Bytes are counted as they arrive, independent of Content-Length. At most ``_WRITE_BYTES`` and one chunk of a video are
in memory.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import anyio
from python_multipart.exceptions import FormParserError
from starlette.requests import ClientDisconnect, Request

from vidlex.service.bounds import MAX_JSON_VALUES
from vidlex.service.errors import InvalidParameter, InvalidRequest, Overloaded, UnsupportedMedia, UploadTooLarge
from vidlex.service.http.body_stream import (
    check_content_coding,
    check_content_length,
    discard,
    too_large,
    with_timeouts,
)
from vidlex.service.http.caller import client_of
from vidlex.service.http.fair_threads import FairThreads
from vidlex.service.http.multipart_video import MAX_OVERHEAD_BYTES, Receiver, Upload, boundary_of
from vidlex.service.http.problems import AT_END_KEY
from vidlex.service.machine.process_folder import ProcessFolder
from vidlex.service.schemas.json_text import parse_json
from vidlex.service.sharing.shares import Shares

ParsedT = TypeVar("ParsedT")

_WRITE_BYTES = 1 << 20
_MAX_JSON_AT_WORK_BYTES = 128 << 20
_MAX_PARSERS = 3  # two of one client; more would only share the interpreter's lock with the event loop


@dataclass(frozen=True)
class UploadLimits:
    max_bytes: int
    max_json_bytes: int
    max_spool_bytes: int
    max_uploads: int
    idle_seconds: float
    timeout_seconds: float


class Spool:
    """``start`` removes the folders of killed processes."""

    def __init__(self, root: Path, limits: UploadLimits) -> None:
        self.limits = limits
        self._folder = ProcessFolder(root)
        self._parsers = FairThreads(_MAX_PARSERS, limits.max_uploads, "bodies", "bodies wait to be parsed")
        self._bytes = Shares(
            limits.max_spool_bytes, "upload_bytes", "bytes of videos at work", least_share=limits.max_bytes
        )
        self._uploads = Shares(limits.max_uploads, "uploads", "concurrent uploads")
        max_json = max(_MAX_JSON_AT_WORK_BYTES, 2 * limits.max_json_bytes)
        self._json = Shares(max_json, "json_bytes", "bytes of JSON at work", least_share=limits.max_json_bytes)

    def start(self) -> None:
        self._folder.start()

    def close(self) -> None:
        self._folder.close()

    @property
    def num_uploads(self) -> int:
        return self._uploads.num_held

    @asynccontextmanager
    async def receive(self, request: Request) -> AsyncIterator[Upload]:
        """Receive the ``file`` and ``params`` parts of a multipart body; removes the file on exit.

        Raises UnsupportedMedia, InvalidRequest, InvalidParameter, UndecodableVideo (empty file), UploadTooLarge,
        UploadTimeout, and Overloaded or ShareExceeded (too many uploads, or the spool is full).
        """
        await check_content_coding(request)
        boundary = boundary_of(request)
        await check_content_length(request, self.limits.max_bytes + MAX_OVERHEAD_BYTES, self.limits.max_bytes)
        path = self._folder.new_path()
        client = client_of(request)
        receiver = Receiver(path, boundary, max_bytes=self.limits.max_bytes, reserve=partial(self._bytes.take, client))
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
        await check_content_coding(request)
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != "application/json" and not media_type.endswith("+json"):
            raise UnsupportedMedia("Send JSON with the header Content-Type: application/json")
        max_bytes = self.limits.max_json_bytes
        await check_content_length(request, max_bytes, max_bytes)
        body, client = bytearray(), client_of(request)
        stream = request.stream().__aiter__()
        with self._uploads.hold(client):
            try:
                async for chunk in self._in_time(stream):
                    self._json.take(client, len(chunk))  # what is parsed of it lives as long as the request
                    request.scope[AT_END_KEY].callback(self._json.give_back, client, len(chunk))
                    body += chunk
                    if len(body) > max_bytes:
                        raise too_large(max_bytes)
            except ClientDisconnect:
                raise InvalidRequest("The client disconnected before the end of the body") from None
            except (UploadTooLarge, Overloaded):
                await discard(stream)
                raise

        def work() -> ParsedT:
            return parse(parse_json(bytes(body), name="The body", max_values=max_values))

        return await self._parsers.run(client, work)

    async def _fill(self, request: Request, receiver: Receiver) -> None:
        stream = request.stream().__aiter__()
        try:
            async for chunk in self._in_time(stream):
                receiver.feed(chunk)
                if receiver.pending_bytes >= _WRITE_BYTES:
                    await anyio.to_thread.run_sync(receiver.flush)
            await anyio.to_thread.run_sync(receiver.flush)
        except FormParserError as error:
            raise InvalidRequest("The multipart body is malformed", internal=repr(error)) from None
        except ClientDisconnect:
            raise InvalidRequest("The client disconnected before the end of the upload") from None
        except (UploadTooLarge, Overloaded, InvalidParameter, UnsupportedMedia):
            await discard(stream)
            raise

    def _in_time(self, stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        limits = self.limits
        return with_timeouts(stream, idle_seconds=limits.idle_seconds, timeout_seconds=limits.timeout_seconds)
