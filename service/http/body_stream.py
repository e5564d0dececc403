"""A request's body as it arrives: refused before it is read, within time, and discarded."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import NoReturn

import anyio
from starlette.requests import ClientDisconnect, Request

from vidlex.service.errors import UploadTimeout, UploadTooLarge, VidlexError
from vidlex.service.http.body_formats import has_content_coding, unsupported_coding

_MAX_DISCARDED_BYTES = 8 << 20
_MAX_DISCARD_SECONDS = 2.0


def too_large(max_bytes: int) -> UploadTooLarge:
    return UploadTooLarge(f"The body exceeds {max_bytes} bytes", max_bytes=max_bytes)


async def check_content_coding(request: Request) -> None:
    if has_content_coding(request):
        await _refuse_unread(request, unsupported_coding(request))


async def _refuse_unread(request: Request, error: VidlexError) -> NoReturn:
    if "expect" not in request.headers:  # else the client waits for "100 Continue" and has sent no body
        await discard(request.stream())
    raise error


async def check_content_length(request: Request, max_bytes: int, reported_bytes: int) -> None:
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared[:20]) > max_bytes:
        await _refuse_unread(request, too_large(reported_bytes))


async def with_timeouts(
    stream: AsyncIterator[bytes], *, idle_seconds: float, timeout_seconds: float
) -> AsyncIterator[bytes]:
    """Raises UploadTimeout if a chunk takes longer than ``idle_seconds``, or all of them ``timeout_seconds``."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        timeout = min(idle_seconds, deadline - time.monotonic())
        try:
            with anyio.fail_after(max(0.0, timeout)):
                chunk = await anext(stream)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise UploadTimeout("The upload is too slow or took too long") from None
        yield chunk


async def discard(stream: AsyncIterator[bytes]) -> None:
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
