"""The namespaces that a model has open, shared by clients.

A namespace belongs to one of the clients that use it: to the one to which the fewest belong, so that a client which
opens many takes none from another. If all places are taken, the namespace that was used least recently by the client
with the most is closed. Of namespaces in use, which cannot be closed, a client has at most as many as are not in use.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from vidlex.service.errors import Overloaded, ShareExceeded

OpenedT = TypeVar("OpenedT")

LIMIT = "namespaces"  # of a refusal


@dataclass(eq=False)
class Slot(Generic[OpenedT]):
    """``opening`` guards the load; all else is guarded by the lock of NamespaceSlots."""

    owner: str
    opening: threading.Lock = field(default_factory=threading.Lock)
    opened: OpenedT | None = None
    users: Counter[str] = field(default_factory=Counter)  # by client
    used_at: float = 0.0


class NamespaceSlots(Generic[OpenedT]):
    """Thread-safe."""

    def __init__(self, max_namespaces: int) -> None:
        self._max_namespaces = max_namespaces
        self._lock = threading.Lock()
        self._slots: dict[str, Slot[OpenedT]] = {}
        self._pinned: set[str] = set()
        self._is_closed = False

    def enter(self, namespace: str, client: str) -> tuple[Slot[OpenedT], OpenedT | None] | None:
        """The slot with one more user, and what was in an evicted one, which the caller must close; None if closed.

        Raises Overloaded or ShareExceeded if too many namespaces are in use.
        """
        with self._lock:
            if self._is_closed:
                return None
            slot = self._slots.get(namespace)
            evicted = None
            if (slot is None or not slot.users) and self._exceeds_share(namespace, client):
                raise ShareExceeded("This client uses too many namespaces at the same time", limit=LIMIT)
            if slot is None:
                evicted = self._evict(client)
                slot = self._slots[namespace] = Slot(client)
            self._use(slot, client)
            return slot, evicted

    def try_enter(self, namespace: str, client: str) -> OpenedT | None:
        """What is open, with one more user; None if it is not open, or ``enter`` would raise."""
        with self._lock:
            slot = self._slots.get(namespace)
            if slot is None or slot.opened is None or self._is_closed:
                return None
            if not slot.users and self._exceeds_share(namespace, client):
                return None
            self._use(slot, client)
            return slot.opened

    def leave(self, namespace: str, client: str) -> None:
        with self._lock:
            slot = self._slots[namespace]
            slot.users[client] -= 1
            if not slot.users[client]:
                del slot.users[client]
            if not slot.users and slot.opened is None:
                del self._slots[namespace]

    def pin(self, namespace: str) -> None:
        with self._lock:
            self._pinned.add(namespace)

    def close(self) -> list[Slot[OpenedT]]:
        with self._lock:
            self._is_closed = True
            return list(self._slots.values())

    def opened(self) -> list[OpenedT]:
        with self._lock:
            return [slot.opened for slot in self._slots.values() if slot.opened is not None]

    @property
    def num_users(self) -> int:
        with self._lock:
            return sum(slot.users.total() for slot in self._slots.values())

    # --- the lock is held

    def _use(self, slot: Slot[OpenedT], client: str) -> None:
        if client != slot.owner:
            num_owned = Counter(slot.owner for slot in self._slots.values())
            if num_owned[client] + 1 <= num_owned[slot.owner]:
                slot.owner = client
        slot.users[client] += 1
        slot.used_at = time.monotonic()

    def _exceeds_share(self, namespace: str, client: str) -> bool:
        if namespace in self._pinned:
            return False
        in_use = [slot for name, slot in self._slots.items() if slot.users and name not in self._pinned]
        own = sum(client in slot.users for slot in in_use)
        return own > 0 and own + 1 > self._max_namespaces - len(in_use)

    def _evict(self, client: str) -> OpenedT | None:
        if len(self._slots) < self._max_namespaces:
            return None
        num_owned = Counter(slot.owner for slot in self._slots.values())
        num_owned[client] += 1  # with the namespace that is about to be opened
        idle = [
            (-num_owned[slot.owner], slot.used_at, name)
            for name, slot in self._slots.items()
            if not slot.users and name not in self._pinned
        ]
        if not idle:
            raise Overloaded("Too many namespaces are in use at the same time", limit=LIMIT)
        return self._slots.pop(min(idle)[2]).opened
