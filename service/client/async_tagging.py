"""`AsyncClient.tag` and `tag_to`: those of `Client`, in a thread of their own."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Self, TypeVar

import anyio

from vidlex.service.bulk.options import TagOptions
from vidlex.service.bulk.paths import Paths
from vidlex.service.bulk.results import TagResult
from vidlex.service.client import engine
from vidlex.service.client.client import client_with
from vidlex.service.client.config import Config

if TYPE_CHECKING:
    from vidlex.service.bulk.saving import SavedRun

T = TypeVar("T")


class _Thread:
    """One thread for blocking calls. A task that is cancelled sets ``cancelled`` and waits for its call."""

    def __init__(self, config: Config) -> None:
        self.client = client_with(config)
        self.cancelled = threading.Event()
        self._executor = ThreadPoolExecutor(1, "vidlex-tag")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._executor.shutdown(wait=False)
        self.client.close()

    async def run(self, work: Callable[[], T]) -> T:
        future = asyncio.get_running_loop().run_in_executor(self._executor, work)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            self.cancelled.set()
            with anyio.CancelScope(shield=True), contextlib.suppress(Exception):
                await asyncio.shield(future)
            raise


async def tag(
    config: Config,
    paths: Paths,
    options: TagOptions,
    *,
    ordered: bool,
    candidate_labels: Sequence[str] | None,
    concurrency: int,
) -> AsyncGenerator[TagResult]:
    """Raises VidlexClientError if no video can be tagged (any more)."""
    async with _Thread(config) as thread:
        results = await thread.run(
            lambda: engine.tag(
                thread.client,
                paths,
                options,
                ordered=ordered,
                candidate_labels=candidate_labels,
                concurrency=concurrency,
                cancelled=thread.cancelled,
            )
        )
        try:
            while (result := await thread.run(lambda: next(results, None))) is not None:
                yield result
        finally:
            thread.cancelled.set()
            with anyio.CancelScope(shield=True):
                await thread.run(results.close)


async def tag_to(
    config: Config,
    paths: Paths,
    options: TagOptions,
    out: str,
    *,
    candidate_labels: Sequence[str] | None,
    concurrency: int,
    **saved: bool,
) -> SavedRun:
    async with _Thread(config) as thread:
        return await thread.run(
            lambda: engine.tag_to(
                thread.client,
                paths,
                options,
                out,
                candidate_labels=candidate_labels,
                concurrency=concurrency,
                cancelled=thread.cancelled,
                **saved,
            )
        )
