"""FairQueue: turns of clients by what they cost, order within a client, removal, bounded memory."""

from __future__ import annotations

import random
from collections import Counter

from vidlex.service.sharing import fair_queue
from vidlex.service.sharing.fair_queue import FairQueue


def take_all(queue: FairQueue[str], cost: float = 1.0) -> list[str]:
    taken = []
    while (item := queue.take()) is not None:
        taken.append(item)
        queue.charge(item[0], cost)
    return taken


def test_clients_take_turns_and_keep_their_own_order() -> None:
    queue: FairQueue[str] = FairQueue()
    for item in ("a1", "a2", "a3", "a4", "b1", "b2", "c1"):
        queue.push(item[0], item)
    assert len(queue) == 7
    assert take_all(queue) == ["a1", "b1", "c1", "a2", "b2", "a3", "a4"]
    assert not queue


def test_one_client_alone_is_served_in_order() -> None:
    queue: FairQueue[str] = FairQueue()
    items = [f"a{i}" for i in range(20)]
    for item in items:
        queue.push("a", item)
    assert take_all(queue, cost=7.0) == items


def test_each_client_gets_the_same_cost_not_the_same_number() -> None:
    costs = {"a": 10.0, "b": 1.0, "c": 2.5}
    queue: FairQueue[str] = FairQueue()
    served: Counter[str] = Counter()
    for client in costs:
        for i in range(400):
            queue.push(client, f"{client}{i}")
    while sum(served.values()) < 900:
        item = queue.take()
        assert item is not None
        served[item[0]] += costs[item[0]]  # type: ignore[assignment]
        queue.charge(item[0], costs[item[0]])
        assert max(served.values()) - min(served[c] for c in costs) <= 10.0
    assert served.total() >= 900


def test_a_client_that_was_away_is_next_but_is_not_owed_the_past() -> None:
    queue: FairQueue[str] = FairQueue()
    for i in range(100):
        queue.push("a", f"a{i}")
    for _ in range(50):
        queue.take()
        queue.charge("a", 1.0)
    for i in range(100):
        queue.push("b", f"b{i}")
    first = queue.take()
    assert first == "b0"
    queue.charge("b", 1.0)
    clients = "".join(item[0] for item in take_all(queue)[:40])
    assert abs(clients.count("a") - clients.count("b")) <= 2, clients


def test_cost_may_be_charged_while_the_work_goes_on_and_given_back() -> None:
    queue: FairQueue[str] = FairQueue()
    for item in ("a1", "a2", "b1", "b2", "b3"):
        queue.push(item[0], item)
    assert queue.take() == "a1"
    queue.charge("a", 0.5)
    queue.charge("a", 2.0)
    assert [queue.take(), queue.charge("b", 1.0), queue.take(), queue.charge("b", 1.0)] == ["b1", None, "b2", None]
    queue.charge("a", -2.4)
    assert queue.take() == "a2"


def test_items_that_are_not_accepted_are_left_and_do_not_stop_others() -> None:
    queue: FairQueue[str] = FairQueue()
    for item in ("a1", "b1", "a2"):
        queue.push(item[0], item)
    assert queue.take(lambda client, item: client == "b") == "b1"
    assert queue.take(lambda client, item: client == "b") is None
    assert [queue.take(), queue.take()] == ["a1", "a2"]


def test_items_are_removed_by_identity() -> None:
    queue: FairQueue[list[int]] = FairQueue()
    same, other = [1], [1]
    queue.push("a", same)
    queue.push("a", other)
    assert queue.remove("a", other) and not queue.remove("a", other) and not queue.remove("b", same)
    assert list(queue) == [same] and queue.take() is same and queue.take() is None
    queue.push("a", same)
    assert queue.remove("a", same) and not len(queue)
    queue.push("a", same)
    queue.push("b", other)
    assert len(queue.clear()) == 2 and queue.take() is None


def test_clients_that_left_are_forgotten() -> None:
    queue: FairQueue[int] = FairQueue()
    queue.push("steady", 0)
    for i in range(5 * fair_queue._MAX_REMEMBERED):
        queue.push(f"client-{i}", i)
        queue.take(lambda client, item, i=i: client == f"client-{i}")  # type: ignore[misc]
        queue.charge(f"client-{i}", 1.0)
        assert len(queue._served) <= fair_queue._MAX_REMEMBERED + 2
    assert queue.take() == 0


def test_random_loads_are_fair_and_lose_nothing() -> None:
    """No client that has something queued all the time gets less than another one, by more than the largest costs."""
    for seed in range(20):
        rng = random.Random(seed)
        queue: FairQueue[tuple[str, int]] = FairQueue()
        clients = [f"c{i}" for i in range(rng.randint(2, 6))]
        number = 0
        served: Counter[str] = Counter()
        taken: list[tuple[str, int]] = []
        for client in clients:
            for _ in range(2):
                queue.push(client, (client, number := number + 1))
        for _ in range(300):
            item = queue.take()
            assert item is not None
            taken.append(item)
            cost = rng.randint(1, 9)
            queue.charge(item[0], cost)
            served[item[0]] += cost
            queue.push(item[0], (item[0], number := number + 1))
            assert max(served.values()) - min(served[c] for c in clients) <= 18
        taken += list(iter(queue.take, None))
        assert sorted(n for _, n in taken) == list(range(1, number + 1))
        for client in clients:
            own = [n for c, n in taken if c == client]
            assert own == sorted(own)
