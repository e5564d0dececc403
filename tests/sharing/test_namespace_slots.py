"""Open namespaces: whose is closed if there are too many, and how many one client may use at the same time."""

from __future__ import annotations

import pytest

from vidlex.service.errors import Overloaded, ShareExceeded
from vidlex.service.models.namespace_slots import NamespaceSlots


class Slots(NamespaceSlots[str]):
    def use(self, namespace: str, client: str) -> str | None:
        """Open it and leave it; returns what was closed for it."""
        closed = self.open(namespace, client)
        self.leave(namespace, client)
        return closed

    def open(self, namespace: str, client: str) -> str | None:
        entered = self.enter(namespace, client)
        assert entered is not None
        slot, closed = entered
        slot.opened = namespace
        return closed


def test_a_flood_of_namespaces_closes_only_those_of_its_client() -> None:
    slots = Slots(8)
    for name in ("b1", "b2", "b3"):
        slots.use(name, "b")
    closed = [slots.use(f"a{i}", "a") for i in range(100)]
    assert closed == [None] * 5 + [f"a{i}" for i in range(95)]
    assert {"b1", "b2", "b3"} <= set(slots.opened())
    assert slots.use("b4", "b") == "a95"  # the client with the most makes room


def test_a_client_alone_has_all_namespaces_open() -> None:
    slots = Slots(8)
    assert [slots.use(f"a{i}", "a") for i in range(9)] == [None] * 8 + ["a0"]


def test_using_a_namespace_of_another_client_does_not_take_it() -> None:
    slots = Slots(4)
    slots.use("b", "b")
    slots.use("a0", "a")
    for i in range(1, 50):
        slots.use("b", "a")
        slots.use(f"a{i}", "a")
    assert "b" in slots.opened()


def test_a_namespace_goes_over_to_the_client_with_fewer() -> None:
    slots = Slots(4)
    for i in range(3):
        slots.use(f"a{i}", "a")
    slots.use("a0", "b")
    for i in range(3, 50):
        slots.use(f"a{i}", "a")
    assert "a0" in slots.opened()


def test_namespaces_in_use_are_shared() -> None:
    slots = Slots(8)
    for i in range(4):
        slots.open(f"a{i}", "a")
    with pytest.raises(ShareExceeded) as error:
        slots.open("a4", "a")
    assert error.value.extra == {"limit": "namespaces"}
    assert slots.open("a0", "a") is None  # one that it uses already
    for i in range(2):
        slots.open(f"b{i}", "b")
    with pytest.raises(ShareExceeded):
        slots.open("b2", "b")
    assert slots.open("a0", "b") is None
    slots.open("c0", "c")
    slots.open("d0", "d")
    with pytest.raises(Overloaded) as full:
        slots.open("e0", "e")
    assert (full.value.code, full.value.extra) == ("overloaded", {"limit": "namespaces"})
    slots.leave("c0", "c")
    assert slots.open("e0", "e") == "c0"


def test_one_that_is_open_is_entered_at_once_within_the_share() -> None:
    slots = Slots(4)
    assert slots.try_enter("a0", "a") is None
    for i in range(4):
        slots.use(f"a{i}", "a")
    assert [slots.try_enter(f"a{i}", "a") for i in range(4)] == ["a0", "a1", None, None]
    assert slots.num_users == 2
    assert slots.try_enter("a2", "b") == "a2"
    slots.leave("a0", "a")
    slots.close()
    assert slots.try_enter("a0", "a") is None and slots.enter("a0", "a") is None


def test_pinned_namespaces_are_not_closed_and_do_not_count() -> None:
    slots = Slots(3)
    slots.use("default", "background")
    slots.pin("default")
    for i in range(10):
        slots.use(f"a{i}", "a")
    assert "default" in slots.opened()
    slots.open("a9", "a")
    slots.open("default", "a")
