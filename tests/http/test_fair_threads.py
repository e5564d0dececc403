"""FairThreads: threads of label requests, shared by clients."""

from __future__ import annotations

import threading
from collections.abc import Callable

import anyio
import pytest

from support.processes import PATIENCE_SECONDS
from vidlex.service.errors import Overloaded, ShareExceeded
from vidlex.service.http.fair_threads import FairThreads


class Load:
    """Requests that block until ``gate`` is set; ``order`` has the clients in the order of their starts."""

    def __init__(self, max_threads: int, max_waiting: int) -> None:
        self.threads = FairThreads(max_threads, max_waiting, "label_requests", "label requests are queued")
        self.gate = threading.Event()
        self.order: list[str] = []
        self.errors: list[Overloaded] = []

    def work(self, client: str) -> None:
        self.order.append(client)
        assert self.gate.wait(PATIENCE_SECONDS)

    async def run(self, client: str, waiting: anyio.CancelScope | None = None) -> None:
        try:
            await self.threads.run(client, lambda: self.work(client), waiting)
        except Overloaded as error:
            self.errors.append(error)


def in_loop(test: Callable[[anyio.abc.TaskGroup], object]) -> None:
    async def run() -> None:
        with anyio.fail_after(PATIENCE_SECONDS):
            async with anyio.create_task_group() as tasks:
                await test(tasks)  # type: ignore[misc]

    anyio.run(run)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await anyio.sleep(0.01)


def test_blocked_requests_of_one_client_leave_threads_for_others() -> None:
    load = Load(max_threads=4, max_waiting=8)

    async def test(tasks: anyio.abc.TaskGroup) -> None:
        for _ in range(5):
            tasks.start_soon(load.run, "greedy")
        await until(lambda: len(load.order) == 2)
        tasks.start_soon(load.run, "modest")
        await until(lambda: load.order == ["greedy", "greedy", "modest"])
        load.gate.set()

    in_loop(test)
    assert load.order.count("greedy") == 5 and not load.errors


def test_waiting_requests_are_bounded_per_client() -> None:
    load = Load(max_threads=2, max_waiting=4)

    async def test(tasks: anyio.abc.TaskGroup) -> None:
        for _ in range(4):
            tasks.start_soon(load.run, "greedy")
        await until(lambda: len(load.errors) == 1)
        tasks.start_soon(load.run, "modest")
        await until(lambda: load.order == ["greedy", "modest"])
        load.gate.set()

    in_loop(test)
    assert isinstance(load.errors[0], ShareExceeded) and load.errors[0].extra == {"limit": "label_requests"}
    assert load.order.count("greedy") == 3


def test_clients_take_turns() -> None:
    load = Load(max_threads=1, max_waiting=100)

    async def test(tasks: anyio.abc.TaskGroup) -> None:
        for client in ("first", *["greedy"] * 6, "modest", "modest"):
            tasks.start_soon(load.run, client)
            await anyio.wait_all_tasks_blocked()
        load.gate.set()

    in_loop(test)
    assert load.order[:5] == ["first", "greedy", "modest", "greedy", "modest"]


def test_a_wait_is_ended_by_its_scope_and_nothing_is_lost() -> None:
    load = Load(max_threads=1, max_waiting=100)

    async def test(tasks: anyio.abc.TaskGroup) -> None:
        tasks.start_soon(load.run, "first")
        await until(lambda: load.order == ["first"])
        scopes = [anyio.CancelScope() for _ in range(3)]
        for scope in scopes:
            tasks.start_soon(load.run, "gone", scope)
        tasks.start_soon(load.run, "stays", anyio.CancelScope())
        await anyio.wait_all_tasks_blocked()
        for scope in scopes:
            scope.cancel()
        await until(lambda: len(load.errors) == 3)
        load.gate.set()

    in_loop(test)
    assert load.order == ["first", "stays"]
    assert load.threads._places.num_held == load.threads._threads.num_held == 0


@pytest.mark.parametrize("num", [1, 3])
def test_an_error_of_the_work_frees_its_thread(num: int) -> None:
    threads = FairThreads(1, 10, "label_requests", "label requests are queued")

    def fail() -> None:
        raise ValueError

    async def run() -> None:
        for _ in range(num):
            with pytest.raises(ValueError):
                await threads.run("a", fail)
        assert await threads.run("b", lambda: 1) == 1

    anyio.run(run)
