"""The client that a piece of work is done for, and how long the result is of use."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, field, replace

from vidlex.service.errors import Overloaded

# The service's own work, such as encoding stored labels with another model. No API key or address is named so.
BACKGROUND = "background"


@dataclass(frozen=True, eq=False)
class Requester:
    """``client`` is the unit of fair shares: the id of an API key, else an address. ``cancelled`` is set, from any
    thread, once the result is not waited for.
    """

    client: str = BACKGROUND
    deadline: float = math.inf  # of time.monotonic
    cancelled: threading.Event = field(default_factory=threading.Event)

    def by(self, deadline: float) -> Requester:
        """The same with a deadline that is not later than ``deadline``."""
        return replace(self, deadline=min(deadline, self.deadline))

    def check(self) -> None:
        """Raises Overloaded once ``cancelled`` is set."""
        if self.cancelled.is_set():
            raise Overloaded("The request was cancelled")
