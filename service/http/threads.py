"""Blocking work in threads that keep nothing of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import anyio
import anyio.to_thread

ResultT = TypeVar("ResultT")


async def run_in_thread(work: Callable[[], ResultT], limiter: anyio.CapacityLimiter) -> ResultT:
    """As ``anyio.to_thread.run_sync``, whose idle threads keep the last function and what it returned or raised: with
    large requests and responses, megabytes each."""
    job: list[Callable[[], ResultT]] = [work]
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(job.pop()())
        except BaseException as error:  # raised below
            outcome.append(None)
            outcome.append(error)

    await anyio.to_thread.run_sync(run, limiter=limiter)
    if len(outcome) > 1:
        raise outcome.pop()
    result: ResultT = outcome.pop()
    return result
