"""Threads for the blocking work of requests, shared by clients."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TypeVar

import anyio

from vidlex.service.errors import Overloaded
from vidlex.service.http.threads import run_in_thread
from vidlex.service.sharing.fair_queue import FairQueue
from vidlex.service.sharing.shares import Shares

ResultT = TypeVar("ResultT")


@dataclass(eq=False)
class _Waiter:
    client: str
    may_run: anyio.Event = field(default_factory=anyio.Event)


class FairThreads:
    """Used on one event loop. A client holds at most as many threads as are free; its further requests wait.

    ``limit`` and ``noun`` name the waiting requests, as in `Shares`.
    """

    def __init__(self, max_threads: int, max_waiting: int, limit: str, noun: str) -> None:
        self._limiter = anyio.CapacityLimiter(max_threads)
        self._threads = Shares(max_threads, limit, noun)
        self._places = Shares(max_waiting, limit, noun)
        self._waiting: FairQueue[_Waiter] = FairQueue()

    async def run(self, client: str, work: Callable[[], ResultT], waiting: anyio.CancelScope | None = None) -> ResultT:
        """Raises Overloaded or ShareExceeded if too many requests wait, and Overloaded if ``waiting`` is cancelled
        before ``work`` begins.
        """
        if self._threads.refusal(client) is None:
            self._let_run(client)
        else:
            with self._places.hold(client):
                with waiting or nullcontext():
                    await self._wait(_Waiter(client))
                if waiting is not None and waiting.cancelled_caught:
                    raise Overloaded("The request was cancelled")
        try:
            return await run_in_thread(work, self._limiter)
        finally:
            self._end(client)

    async def _wait(self, waiter: _Waiter) -> None:
        self._waiting.push(waiter.client, waiter)
        try:
            await waiter.may_run.wait()
        except BaseException:
            if not self._waiting.remove(waiter.client, waiter):
                self._end(waiter.client)
            raise

    def _let_run(self, client: str) -> None:
        self._threads.take(client)
        self._waiting.charge(client, 1)

    def _end(self, client: str) -> None:
        self._threads.give_back(client)
        while waiter := self._waiting.take(lambda client, _: self._threads.refusal(client) is None):
            self._let_run(waiter.client)
            waiter.may_run.set()
