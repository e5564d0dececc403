"""Whether a recorded history of concurrent operations can have happened one after the other.

The search of Wing and Gong (1993) with Lowe's memory of visited configurations (2017), as in Porcupine and Knossos: an
operation takes effect at one moment between its invocation and its return; an operation of unknown outcome may take
effect at any later moment, or never.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

Step = Callable[[Any, "Operation"], Iterator[Any]]


@dataclass(frozen=True, eq=False)
class Operation:
    kind: str
    args: tuple[Any, ...]
    result: Any  # None: unknown
    invoked: float
    returned: float = math.inf  # infinite if the outcome is unknown

    @property
    def is_known(self) -> bool:
        return self.returned < math.inf


class TooManyConfigurations(AssertionError):
    pass


def find_order(
    history: Sequence[Operation], initial: Hashable, step: Step, *, max_configurations: int = 2_000_000
) -> list[Operation] | None:
    """An order of all known operations, and some unknown ones, that agrees with their times; None if there is none.

    ``step(state, operation)`` yields each state in which the operation can have left the object with the result that it
    reports; none if it cannot have reported it. Raises TooManyConfigurations.
    """
    operations = sorted(history, key=lambda operation: operation.invoked)
    num_known = sum(operation.is_known for operation in operations)
    known = sum(1 << i for i, operation in enumerate(operations) if operation.is_known)
    seen: set[tuple[int, Hashable]] = set()
    # Depth first: (operations done, state, continuations).
    path: list[int] = []
    stack = [(0, initial, _next_steps(operations, 0, initial, step))]
    while stack:
        done, _, steps = stack[-1]
        if (done & known).bit_count() == num_known:
            return [operations[i] for i in path]
        for i, state in steps:
            configuration = (done | 1 << i, state)
            if configuration not in seen:
                seen.add(configuration)
                if len(seen) > max_configurations:
                    raise TooManyConfigurations(f"more than {max_configurations} configurations")
                path.append(i)
                stack.append((*configuration, _next_steps(operations, done | 1 << i, state, step)))
                break
        else:
            stack.pop()
            if path:
                path.pop()
    return None


def _next_steps(operations: Sequence[Operation], done: int, state: Any, step: Step) -> Iterator[tuple[int, Any]]:
    """Operations that may be the next: invoked before any of the others that are left has returned."""
    left = [i for i in range(len(operations)) if not done >> i & 1]
    first_return = min((operations[i].returned for i in left), default=math.inf)
    possible = [i for i in left if operations[i].invoked <= first_return]
    # Known operations first: most unknown ones never took effect
    for i in sorted(possible, key=lambda i: operations[i].returned):
        for new_state in step(state, operations[i]):
            yield i, new_state
