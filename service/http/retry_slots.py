"""When refused clients should come back: a timetable of moments at which a place is kept for one of them.

Places become free at a known rate, several in one moment where videos are encoded in batches. Retry-After is in whole
seconds, so clients that came together come back together, and a moment is given only if the places that have become
free until then, with those that may be kept, are enough for all who are expected. With sorted moments
``x[0] <= x[1] <= ...``:

- until ``x[i]`` all of the first ``i + 1`` fit: ``i + 1 <= num_free + rate * (x[i] - now - lag)``, and
- the crowd from ``x[j]`` to ``x[i]`` finds room in what is kept: ``i - j + 1 <= most + rate * (x[i] - x[j])``.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_RETRY_SECONDS = 300
"""Nobody is told a later moment; whoever would have to be has no place kept."""
_MAX_PROMISES = 4
"""Of one client, at the same time."""
_MAX_ALL_PROMISES = 2048
"""Of all clients: looking through them is to stay cheap."""
_KEPT_SECONDS = 1.5
"""A place is kept so long after the told moment."""
_EARLY_SECONDS = 0.1
"""Who comes so much too early is in time."""
_LEAST_SHARE = 0.25
_LEARN_SHARE = 0.1


@dataclass(frozen=True)
class Pace:
    """How places become free."""

    rate: float
    """In a second."""
    lag: float = 0.0
    """Seconds for which at worst none does, because a batch has just begun."""


@dataclass(eq=False)
class Promise:
    """A place for ``client`` at the time ``at``."""

    client: str
    at: float


class Promises:
    """Not thread-safe. All times are seconds of one clock."""

    def __init__(self, most: int) -> None:
        """``most``: places that may be kept at the same time."""
        self._most = most
        self._all: list[Promise] = []
        """Sorted by time."""
        self._share_coming = 1.0
        """Of those who were told to come back, lately. Places are kept for so many of them."""

    def __len__(self) -> int:
        return len(self._all)

    def forget_late(self, now: float) -> None:
        """Those whose clients have not come."""
        num_late = bisect.bisect_right(self._all, now - _KEPT_SECONDS, key=_time)
        for _ in self._all[:num_late]:
            self._learn(came=False)
        del self._all[:num_late]

    def take(self, client: str, now: float) -> bool:
        """Whether a place is kept for ``client`` now. It is used up."""
        for place, promise in enumerate(self._all):
            if promise.at > now + _EARLY_SECONDS:
                return False
            if promise.client == client:
                del self._all[place]
                self._learn(came=True)
                return True
        return False

    def _learn(self, *, came: bool) -> None:
        self._share_coming += _LEARN_SHARE * (float(came) - self._share_coming)

    def num_kept(self, now: float, pace: Pace) -> int:
        """Places that newcomers must leave free now, for those who come before enough others become free."""
        if not self._all or not self._most:
            return 0
        x = self._times()
        share = max(_LEAST_SHARE, self._share_coming)
        missing = share * np.arange(1, len(x) + 1) - pace.rate * np.maximum(x - now - pace.lag, 0.0)
        return max(0, min(self._most, int(np.ceil(missing.max() - 1e-9))))

    def make(self, client: str, now: float, *, pace: Pace, num_free: int) -> int:
        """A promise for ``client``, and the seconds until then: whole ones, at least 1.

        A client that has enough of them is told its last one; one for whom there is no room is told the longest time.
        """
        mine = [promise for promise in self._all if promise.client == client]
        if len(mine) >= _MAX_PROMISES:
            return max(1, int(np.ceil(mine[-1].at - now)))
        seconds = self._first_moment(now, pace, num_free) if len(self._all) < _MAX_ALL_PROMISES else None
        if seconds is None:
            return MAX_RETRY_SECONDS
        bisect.insort(self._all, Promise(client, now + seconds), key=_time)
        return seconds

    def _first_moment(self, now: float, pace: Pace, num_free: int) -> int | None:
        """See above, for one more at ``now + seconds``: those after it move one place back."""
        rate, x = pace.rate, self._times()
        since = now + pace.lag
        seconds = np.arange(1, MAX_RETRY_SECONDS + 1)
        new = now + seconds
        place = np.searchsorted(x, new, side="right")  # [300]
        room = num_free + rate * np.maximum(x - since, 0.0) - np.arange(1, len(x) + 1)  # [n]
        least_room = np.minimum.accumulate(np.append(room, np.inf)[::-1])[::-1]  # [n + 1], from each on
        fits = (num_free + rate * np.maximum(new - since, 0.0) - (place + 1) >= -1e-9) & (least_room[place] >= 1 - 1e-9)
        lead = np.arange(len(x)) - rate * x  # [n]: how far who comes is ahead of what becomes free
        least_before = np.minimum.accumulate(np.append(np.inf, lead))[place]
        most_after = np.maximum.accumulate(np.append(lead, -np.inf)[::-1])[::-1][place]
        own = place - rate * new
        crowd = np.maximum(own, most_after + 1) - np.minimum(own, least_before) + 1
        fits &= crowd <= max(1, self._most) + 1e-6
        return int(seconds[fits.argmax()]) if fits.any() else None

    def _times(self) -> NDArray[np.float64]:
        return np.array([promise.at for promise in self._all], dtype=np.float64)


def _time(promise: Promise) -> float:
    return promise.at
