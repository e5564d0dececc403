"""Bounded places, such as those of a queue, of which no client can take all.

A client may hold at most as many places as are free (dynamic thresholds: Choudhury and Hahne, IEEE/ACM Transactions on
Networking 6(2), 1998): half of them if it is alone, a quarter next to one that holds half, and so on. So there is room
for a client that comes later.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from vidlex.service.errors import Overloaded, ShareExceeded


class Shares:
    """Thread-safe. ``limit`` is the stable name of the places in a refusal, ``noun`` what takes them, in the plural.

    A client may hold ``least_share`` places while any are free. With ``fits_any`` any number can be taken if all are
    free.
    """

    def __init__(self, max_places: int, limit: str, noun: str, *, least_share: int = 1, fits_any: bool = False) -> None:
        self._max_places = max_places
        self._least_share = least_share
        self._fits_any = fits_any
        self._limit = limit
        self._noun = noun
        self._lock = threading.Lock()
        self._held: Counter[str] = Counter()

    @property
    def num_held(self) -> int:
        with self._lock:
            return self._held.total()

    def refusal(self, client: str, num_places: int = 1) -> Overloaded | None:
        """Why ``take`` would raise now, or None."""
        with self._lock:
            return self._refusal(client, num_places)

    def take(self, client: str, num_places: int = 1) -> None:
        """Raises Overloaded if there are too few places, and ShareExceeded if the client holds its share."""
        with self._lock:
            error = self._refusal(client, num_places)
            if error is not None:
                raise error
            self._held[client] += num_places

    def give_back(self, client: str, num_places: int = 1) -> None:
        with self._lock:
            self._held[client] -= num_places
            if self._held[client] <= 0:
                del self._held[client]

    def recount(self, held: Mapping[str, int]) -> None:
        """What each client holds, as counted elsewhere."""
        with self._lock:
            self._held = Counter({client: number for client, number in held.items() if number > 0})

    @contextmanager
    def hold(self, client: str, num_places: int = 1) -> Iterator[None]:
        """Raises what ``take`` raises."""
        self.take(client, num_places)
        try:
            yield
        finally:
            self.give_back(client, num_places)

    def _refusal(self, client: str, num_places: int) -> Overloaded | None:
        num_held = self._held.total()
        num_free = self._max_places - num_held
        own = self._held.get(client, 0)
        if self._fits_any and not num_held:
            return None
        if own and own + num_places > max(num_free, self._least_share):
            return ShareExceeded(f"This client has too many {self._noun}", limit=self._limit)
        if num_places > num_free:
            return Overloaded(f"Too many {self._noun}", limit=self._limit)
        return None
