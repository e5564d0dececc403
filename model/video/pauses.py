"""Points within a long pass on a CPU at which the thread may do other work, such as a short pass for another client.

The pass keeps its state in local variables, so that its result does not depend on what is done in between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_action: ContextVar[Callable[[], None] | None] = ContextVar("action", default=None)


def pause() -> None:
    """Called by an encoder, several times per second."""
    action = _action.get()
    if action is not None:
        action()


@contextmanager
def at_pauses(action: Callable[[], None] | None) -> Iterator[None]:
    """``action`` is called, on this thread, at each pause within the context; None: nothing is."""
    token = _action.set(action)
    try:
        yield
    finally:
        _action.reset(token)
