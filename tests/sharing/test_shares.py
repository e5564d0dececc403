"""Shares: what a client may hold, alone and next to others, and the names of refusals."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from vidlex.service.errors import Overloaded, ShareExceeded
from vidlex.service.sharing.shares import Shares


def take_all(shares: Shares, client: str) -> int:
    num = 0
    while shares.refusal(client) is None:
        shares.take(client)
        num += 1
    return num


@pytest.mark.parametrize(("max_places", "alone"), [(1, 1), (2, 1), (3, 2), (4, 2), (128, 64)])
def test_a_client_alone_holds_half(max_places: int, alone: int) -> None:
    assert take_all(Shares(max_places, "x", "xs"), "a") == alone


def test_there_is_room_for_clients_that_come_later() -> None:
    shares = Shares(64, "uploads", "uploads")
    assert [take_all(shares, f"greedy-{i}") for i in range(6)] == [32, 16, 8, 4, 2, 1]
    assert shares.num_held == 63
    shares.take("modest")
    with pytest.raises(Overloaded) as error:
        shares.take("late")
    assert (error.value.code, error.value.extra) == ("overloaded", {"limit": "uploads"})
    with pytest.raises(ShareExceeded) as error:
        shares.take("greedy-0")
    assert (error.value.code, error.value.status, error.value.extra) == ("share_exceeded", 429, {"limit": "uploads"})
    shares.give_back("greedy-0", 32)
    shares.take("late")
    assert take_all(shares, "greedy-1") == 8  # 24 of its own, and 23 are free


def test_several_places_at_once() -> None:
    shares = Shares(10, "names", "names")
    with shares.hold("a", 5):
        with pytest.raises(ShareExceeded), shares.hold("a", 1):
            pass
        with pytest.raises(Overloaded), shares.hold("b", 6):
            pass
        with shares.hold("b", 5), pytest.raises(Overloaded):
            shares.take("c")
    assert shares.num_held == 0
    with pytest.raises(Overloaded):
        shares.take("a", 11)
    assert Shares(10, "names", "names", fits_any=True).refusal("a", 11) is None


def test_the_least_share_is_one_large_request() -> None:
    """A single upload may be larger than half of the storage."""
    shares = Shares(100, "bytes", "bytes", least_share=80)
    for _ in range(8):
        shares.take("a", 10)
    with pytest.raises(ShareExceeded):
        shares.take("a", 10)
    shares.take("b", 20)
    with pytest.raises(Overloaded):
        shares.take("b", 10)


def test_threads_take_no_more_than_there_is() -> None:
    shares, most = Shares(16, "x", "xs"), 0
    lock = threading.Lock()

    def work(number: int) -> None:
        nonlocal most
        for _ in range(300):
            try:
                with shares.hold(f"client-{number % 4}"), lock:
                    most = max(most, shares.num_held)
            except Overloaded:
                continue

    with ThreadPoolExecutor(12) as threads:
        list(threads.map(work, range(12)))
    assert 1 <= most <= 16
    assert shares.num_held == 0
