"""The checker of histories against all orders, on random histories of a register."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from itertools import permutations
from typing import Any

import pytest

from support.linearizability import Operation, find_order


def step(state: int, operation: Operation) -> Iterator[int]:
    match operation.kind:
        case "write":
            yield operation.args[0]
        case "read" if not operation.is_known or operation.result == state:
            yield state
        case "swap":  # (old, new), whether it did
            old, new = operation.args
            if operation.result in (None, state == old):
                yield new if state == old else state


def agrees(order: Sequence[Operation], history: Sequence[Operation]) -> bool:
    """By the definition: results, and no operation before one that had returned when it was invoked."""
    state = 0
    for operation in order:
        after = list(step(state, operation))
        if not after:
            return False
        state = after[0]
    position = {id(operation): i for i, operation in enumerate(order)}
    for a in history:
        for b in history:
            if a.returned < b.invoked and id(b) in position and position.get(id(a), math.inf) > position[id(b)]:
                return False
    return all(id(operation) in position for operation in history if operation.is_known)


def has_order(history: Sequence[Operation]) -> bool:
    unknown = [operation for operation in history if not operation.is_known]
    for chosen in range(2 ** len(unknown)):
        left_out = {id(x) for i, x in enumerate(unknown) if not chosen >> i & 1}
        kept = [operation for operation in history if id(operation) not in left_out]
        if any(agrees(order, history) for order in permutations(kept)):
            return True
    return False


def random_history(rng: random.Random) -> list[Operation]:
    history = []
    for _ in range(rng.randint(1, 6)):
        invoked = rng.uniform(0, 10)
        is_known = rng.random() < 0.8
        returned = invoked + rng.expovariate(0.4) if is_known else math.inf
        kind = rng.choice(["write", "read", "read", "swap"])
        args = {"write": (rng.randint(1, 2),), "read": (), "swap": (rng.randint(0, 2), rng.randint(0, 2))}[kind]
        result: Any = {"write": True, "read": rng.randint(0, 2), "swap": rng.random() < 0.5}[kind]
        history.append(Operation(kind, args, result if is_known else None, invoked, returned))
    return history


@pytest.mark.parametrize("seed", range(4))
def test_the_checker_finds_an_order_if_and_only_if_there_is_one(seed: int) -> None:
    rng = random.Random(seed)
    outcomes = []
    for _ in range(150):
        history = random_history(rng)
        order = find_order(history, 0, step)
        assert (order is not None) == has_order(history), history
        assert order is None or agrees(order, history)
        outcomes.append(order is not None)
    assert 10 < sum(outcomes) < 140  # both kinds occur


def test_a_lost_update_has_no_order() -> None:
    history = [
        Operation("write", (1,), True, 0.0, 1.0),
        Operation("read", (), 1, 2.0, 3.0),
        Operation("read", (), 0, 4.0, 5.0),
    ]
    assert find_order(history, 0, step) is None
    assert find_order(history[:2], 0, step) is not None
