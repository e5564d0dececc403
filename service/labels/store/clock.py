"""Unix time by the clock of the store, which all processes share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class HasTime(Protocol):
    """A client, or a pipeline that is watching."""

    def time(self) -> tuple[int, int]: ...


def store_now_ms(client: HasTime) -> int:
    return to_ms(client.time())


def to_ms(time: Sequence[int]) -> int:
    """Of a reply to TIME: seconds and microseconds."""
    return int(time[0]) * 1000 + int(time[1]) // 1000
