"""Queued requests to encode or describe label names, and the selection of the next batch."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from vidlex.model.classifier import LabelDescription
from vidlex.service.errors import VidlexError
from vidlex.service.sharing.fair_queue import FairQueue
from vidlex.service.sharing.requester import Requester

LabelResult = NDArray[np.float32] | VidlexError  # [D], or LabelTextInvalid, or EncodeFailed
DescribeResult = LabelDescription | VidlexError

ResultT = TypeVar("ResultT", LabelResult, DescribeResult)


@dataclass(eq=False)
class LabelItem(Generic[ResultT]):
    """Several device workers may process parts of a request at the same time."""

    names: list[str]
    requester: Requester
    kind: Literal["encode", "describe"]
    num_taken: int = 0  # names that are being processed or done: always the first ones
    num_done: int = 0
    results: list[ResultT | None] = field(init=False)  # one per name; None until it is done
    future: Future[list[ResultT]] = field(default_factory=Future)

    def __post_init__(self) -> None:
        self.results = [None] * len(self.names)

    @property
    def is_in_batch(self) -> bool:
        """Nothing of it is queued."""
        return self.num_taken == len(self.names)

    @property
    def is_over(self) -> bool:
        """The rest is not waited for."""
        expired = time.monotonic() > self.requester.deadline
        return expired or self.future.done() or self.requester.cancelled.is_set()


@dataclass(frozen=True, eq=False)
class LabelSlice:
    item: LabelItem[Any]
    start: int
    names: list[str]


def take_labels(
    queue: FairQueue[LabelItem[Any]],
    max_names: int,
    accepts: Callable[[LabelItem[Any]], bool] = lambda item: True,
) -> tuple[list[LabelSlice], list[LabelItem[Any]]]:
    """Return (batch, dropped): slices of accepted requests of one kind, the least served clients' first, and the
    expired or cancelled requests.

    A request with names left moves to the end of its client's.
    """
    batch: list[LabelSlice] = []
    dropped: list[LabelItem[Any]] = []

    def is_same_kind(client: str, item: LabelItem[Any]) -> bool:
        return accepts(item) and (not batch or item.kind == batch[0].item.kind)

    while max_names and (item := queue.take(is_same_kind)) is not None:
        if item.is_over:
            dropped.append(item)
            continue
        part = LabelSlice(item, item.num_taken, item.names[item.num_taken : item.num_taken + max_names])
        batch.append(part)
        item.num_taken += len(part.names)
        max_names -= len(part.names)
        queue.charge(item.requester.client, len(part.names))
        if item.num_taken < len(item.names):
            queue.push(item.requester.client, item)
    return batch, dropped
