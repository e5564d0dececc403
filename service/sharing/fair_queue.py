"""A queue that serves the client next which has been served least: start-time fair queueing.

Each client has a virtual time, which grows by the cost of what was done for it. A client that returns starts at the
virtual time of the client served last, so that it neither owes for the time in which others were away nor is owed for
the time in which it was. (Goyal, Vin and Cheng, "Start-time fair queueing", SIGCOMM 1996; all weights are 1.)
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

ItemT = TypeVar("ItemT")

_MAX_REMEMBERED = 1024  # clients with nothing queued


class FairQueue(Generic[ItemT]):
    """Not thread-safe: the owner's lock guards it. Items of one client keep their order.

    ``cost`` has the same unit in all calls of one queue, such as names, frames or seconds.
    """

    def __init__(self) -> None:
        self._queues: dict[str, deque[tuple[int, ItemT]]] = {}  # none is empty
        self._served: dict[str, float] = {}  # virtual time, of every client in ``_queues`` and of some others
        self._now = 0.0
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return sum(len(items) for items in self._queues.values())

    def __iter__(self) -> Iterator[ItemT]:
        return (item for items in self._queues.values() for _, item in items)

    @property
    def num_clients(self) -> int:
        """With something queued."""
        return len(self._queues)

    def push(self, client: str, item: ItemT) -> None:
        items = self._queues.get(client)
        if items is None:
            items = self._queues[client] = deque()
            self._served[client] = max(self._now, self._served.get(client, 0.0))
        items.append((next(self._numbers), item))

    def take(self, accepts: Callable[[str, ItemT], bool] = lambda client, item: True) -> ItemT | None:
        """The first item of the least served client of which ``accepts`` its first item; None if there is none."""
        best: str | None = None
        best_key = (0.0, 0)
        for client, items in self._queues.items():
            key = (self._served[client], items[0][0])
            if (best is None or key < best_key) and accepts(client, items[0][1]):
                best, best_key = client, key
        if best is None:
            return None
        self._now = max(self._now, best_key[0])
        _, item = self._queues[best].popleft()
        self._drop_if_empty(best)
        return item

    def charge(self, client: str, cost: float) -> None:
        """Call it at any time, also in parts while the work goes on; a negative cost gives back."""
        self._served[client] = max(self._now, self._served.get(client, 0.0)) + cost
        if len(self._served) > len(self._queues) + _MAX_REMEMBERED:
            self._forget()

    def remove(self, client: str, item: ItemT) -> bool:
        """False if it is not queued (any more)."""
        items = self._queues.get(client, deque())
        for i, (_, other) in enumerate(items):
            if other is item:
                del items[i]
                self._drop_if_empty(client)
                return True
        return False

    def clear(self) -> list[ItemT]:
        """Returns what was queued."""
        items = list(self)
        self._queues.clear()
        return items

    def _drop_if_empty(self, client: str) -> None:
        if not self._queues[client]:
            del self._queues[client]

    def _forget(self) -> None:
        """Those that were served least: the others would come first if they returned at once."""
        away = sorted((served, client) for client, served in self._served.items() if client not in self._queues)
        for served, client in away:
            if served > self._now and len(self._served) <= len(self._queues) + _MAX_REMEMBERED // 2:
                break
            del self._served[client]
