"""Requests over label names that wait for the engine, and which of their names come next."""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(eq=False)
class LabelItem:
    """One request. Several owners may have names of it at the same time."""

    names: list[str]
    deadline: float
    """A time of ``time.monotonic``."""
    kind: Literal["encode", "describe"] = "encode"
    num_taken: int = 0
    """The first so many names are done or at work."""
    num_done: int = 0
    results: list[Any] = field(init=False)
    """One for each name, None where there is none yet."""
    future: Future[list[Any]] = field(default_factory=Future)

    def __post_init__(self) -> None:
        self.results = [None] * len(self.names)


@dataclass(frozen=True, eq=False)
class LabelShare:
    """The next names of a request."""

    item: LabelItem
    start: int
    names: list[str]


def take_labels(queue: deque[LabelItem], room: int) -> tuple[list[LabelShare], list[LabelItem]]:
    """At most ``room`` names, of as many requests of one kind as it takes, oldest first; and the requests that are
    too late or given up, which leave the queue.

    A request with names left goes behind the others, which get the next turn; one whose names are all taken leaves.
    """
    batch: list[LabelShare] = []
    dropped: list[LabelItem] = []
    unfinished: list[LabelItem] = []
    other_kind: list[LabelItem] = []
    now = time.monotonic()
    while queue and room:
        item = queue.popleft()
        if item.future.done() or now > item.deadline:
            dropped.append(item)
        elif batch and item.kind != batch[0].item.kind:
            other_kind.append(item)
        else:
            share = LabelShare(item, item.num_taken, item.names[item.num_taken : item.num_taken + room])
            batch.append(share)
            item.num_taken += len(share.names)
            room -= len(share.names)
            if item.num_taken < len(item.names):
                unfinished.append(item)
    queue.extendleft(reversed(other_kind))
    queue.extend(unfinished)
    return batch, dropped
