"""Requests over label names that wait for the engine, and which of their names come next."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any


@dataclass(eq=False)
class LabelItem:
    """One request."""

    names: list[str]
    deadline: float
    """A time of ``time.monotonic``."""
    read: Callable[[list[str]], list[Any]]
    """What is done with the next few names, on the engine's thread: encoded or described."""
    results: list[Any] = field(default_factory=list)
    future: Future[list[Any]] = field(default_factory=Future)


def take_labels(queue: deque[LabelItem], room: int) -> tuple[list[tuple[LabelItem, list[str]]], list[LabelItem]]:
    """At most ``room`` names, of as many requests of one kind as it takes, oldest first; and the requests that are
    too late or given up, which leave the queue.

    A request with names left goes behind the others, which get the next turn; one whose names are all taken leaves.
    """
    batch: list[tuple[LabelItem, list[str]]] = []
    dropped: list[LabelItem] = []
    unfinished: list[LabelItem] = []
    other_kind: list[LabelItem] = []
    now = time.monotonic()
    while queue and room:
        item = queue.popleft()
        start = len(item.results)
        if item.future.cancelled() or now > item.deadline:
            dropped.append(item)
        elif batch and item.read != batch[0][0].read:
            other_kind.append(item)
        else:
            names = item.names[start : start + room]
            batch.append((item, names))
            room -= len(names)
            if start + len(names) < len(item.names):
                unfinished.append(item)
    queue.extendleft(reversed(other_kind))
    queue.extend(unfinished)
    return batch, dropped
