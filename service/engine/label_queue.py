"""Queued requests to encode or describe label names, and the selection of the next batch."""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from vidlex.model.classifier import LabelDescription
from vidlex.service.errors import VidlexError

LabelResult = NDArray[np.float32] | VidlexError  # [D], or LabelTextInvalid, or EncodeFailed
DescribeResult = LabelDescription | VidlexError

ResultT = TypeVar("ResultT", LabelResult, DescribeResult)


@dataclass(eq=False)
class LabelItem(Generic[ResultT]):
    """Several device workers may process parts of a request at the same time."""

    names: list[str]
    deadline: float  # of time.monotonic
    kind: Literal["encode", "describe"]
    num_taken: int = 0  # names that are being processed or done: always the first ones
    num_done: int = 0
    results: list[ResultT | None] = field(init=False)  # one per name; None until it is done
    future: Future[list[ResultT]] = field(default_factory=Future)

    def __post_init__(self) -> None:
        self.results = [None] * len(self.names)


@dataclass(frozen=True, eq=False)
class LabelSlice:
    item: LabelItem[Any]
    start: int
    names: list[str]


def take_labels(queue: deque[LabelItem[Any]], max_names: int) -> tuple[list[LabelSlice], list[LabelItem[Any]]]:
    """Return (batch, dropped): slices of requests of one kind, oldest first, and the expired or cancelled requests.

    A request with names left moves to the end of the queue.
    """
    batch: list[LabelSlice] = []
    dropped: list[LabelItem[Any]] = []
    unfinished: list[LabelItem[Any]] = []
    other_kind: list[LabelItem[Any]] = []
    now = time.monotonic()
    while queue and max_names:
        item = queue.popleft()
        if item.future.done() or now > item.deadline:
            dropped.append(item)
        elif batch and item.kind != batch[0].item.kind:
            other_kind.append(item)
        else:
            part = LabelSlice(item, item.num_taken, item.names[item.num_taken : item.num_taken + max_names])
            batch.append(part)
            item.num_taken += len(part.names)
            max_names -= len(part.names)
            if item.num_taken < len(item.names):
                unfinished.append(item)
    queue.extendleft(reversed(other_kind))
    queue.extend(unfinished)
    return batch, dropped
