"""How clients share the decode processes: turns by seconds, spares, and what a client alone may use."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from support import videos
from support.decode_hooks import write_made_up
from support.paths import TESTS
from support.processes import PATIENCE_SECONDS, until, worker_pids
from vidlex.model.types import FrameGeometry
from vidlex.service.decode.chunks import ChunkStream
from vidlex.service.decode.file_queue import _SPARE_AFTER_SECONDS, FileQueue, QueuedFile
from vidlex.service.decode.pool import DecodeJob, DecodePool
from vidlex.service.errors import Overloaded
from vidlex.service.sharing.requester import Requester

HOOKS = "support.decode_hooks:decode"
JOB = DecodeJob(FrameGeometry(32), 5, policy="shots")
LOOK = {"time_ms": 0, "colour": [1, 2, 3]}


@pytest.fixture(scope="module", autouse=True)
def hooks_can_be_imported() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(TESTS))
        yield


@pytest.fixture(scope="module")
def movie(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return videos.write_video(tmp_path_factory.mktemp("movie") / "numbers.mp4")


@pytest.fixture
def endless(tmp_path: Path) -> Path:
    """It holds its process until its stream is closed."""
    return write_made_up(tmp_path / "endless.mp4", [LOOK], duration_ms=1000, num_repeats=200)


def decode(pool: DecodePool, path: Path, client: str, wait_seconds: float = PATIENCE_SECONDS) -> int:
    """The number of frames."""
    with pool.decode_chunks(path, JOB, requester=Requester(client), wait_seconds=wait_seconds) as stream:
        return sum(len(chunk.frames) for chunk in stream)


def hold(stack: ExitStack, pool: DecodePool, path: Path, client: str) -> ChunkStream:
    stream = stack.enter_context(
        pool.decode_chunks(path, JOB, requester=Requester(client), wait_seconds=PATIENCE_SECONDS)
    )
    next(stream)
    return stream


def test_long_files_of_one_client_leave_a_process_for_another(movie: Path, endless: Path) -> None:
    with DecodePool(2, num_spares=1, entry=HOOKS) as pool, ExitStack() as held:
        for _ in range(2):
            hold(held, pool, endless, "greedy")
        assert len(worker_pids(pool)) == 2, "there is a spare once there are two clients"
        assert decode(pool, movie, "modest") > 0
        assert decode(pool, movie, "modest") > 0
        with pytest.raises(Overloaded, match="No decoder was free"):
            decode(pool, movie, "greedy", wait_seconds=0.5)
        assert (pool.num_alive, len(worker_pids(pool)), pool.num_restarts) == (2, 3, 0)
        assert pool.longest_outage_seconds == 0.0
    assert pool.num_unfinished == 0


def test_each_client_without_a_file_in_progress_gets_one_spare(movie: Path, endless: Path) -> None:
    with DecodePool(1, num_spares=2, entry=HOOKS) as pool, ExitStack() as held:
        hold(held, pool, endless, "greedy")
        with ExitStack() as held_by_second:
            hold(held_by_second, pool, endless, "second")
            with pytest.raises(Overloaded, match="No decoder was free"):
                decode(pool, movie, "second", wait_seconds=0.5)
            assert decode(pool, movie, "third") > 0
        assert decode(pool, movie, "second") > 0


def test_a_client_alone_uses_every_worker(endless: Path, movie: Path) -> None:
    with DecodePool(3, num_spares=2, entry=HOOKS) as pool, ExitStack() as held:
        for _ in range(3):
            hold(held, pool, endless, "only")
        with pytest.raises(Overloaded, match="No decoder was free"):
            decode(pool, movie, "only", wait_seconds=0.3)
        assert len(worker_pids(pool)) == 3


def test_a_short_file_waits_for_one_slow_file_not_for_all(tmp_path: Path, movie: Path) -> None:
    """Without a spare; before, it waited for all of them."""
    slow = write_made_up(tmp_path / "slow.mp4", [LOOK], duration_ms=1000, seconds_per_chunk=0.5)
    done: list[str] = []
    lock = threading.Lock()

    def work(path: Path, client: str) -> None:
        decode(pool, path, client)
        with lock:
            done.append(client)

    with DecodePool(1, entry=HOOKS) as pool, ThreadPoolExecutor(16) as threads:
        tasks = [threads.submit(work, slow, "greedy") for _ in range(10)]
        until(lambda: pool.num_unfinished == 10)
        tasks += [threads.submit(work, movie, "modest") for _ in range(2)]
        for task in tasks:
            task.result(PATIENCE_SECONDS)
    assert done.index("modest") <= 2, done
    assert len(done) == 12


def test_files_of_requests_that_were_given_up_leave_the_queue(movie: Path, endless: Path) -> None:
    with DecodePool(1, entry=HOOKS) as pool, ThreadPoolExecutor(16) as threads:
        with ExitStack() as held:
            hold(held, pool, endless, "other")
            gone = Requester("gone")
            tasks = [threads.submit(_decode_for, pool, movie, gone) for _ in range(12)]
            until(lambda: pool.num_unfinished == 13)
            gone.cancelled.set()
            until(lambda: pool.num_unfinished == 1)
            for task in tasks:
                with pytest.raises(Overloaded, match="cancelled"):
                    task.result(PATIENCE_SECONDS)
        assert decode(pool, movie, "other") > 0


def _decode_for(pool: DecodePool, path: Path, requester: Requester) -> None:
    with pool.decode_chunks(path, JOB, requester=requester):
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="threads have a niceness of their own on Linux only")
def test_a_long_file_goes_behind_and_the_next_one_does_not(tmp_path: Path) -> None:
    long = write_made_up(tmp_path / "long.mp4", [LOOK], duration_ms=1000, seconds_per_chunk=0.05, num_repeats=2000)
    asking = {client: Requester(client) for client in ("greedy", "modest")}

    def read(client: str) -> None:
        with suppress(Overloaded):  # cancelled
            while True:
                decode_for(asking[client])

    def decode_for(requester: Requester) -> None:
        with pool.decode_chunks(long, JOB, requester=requester) as stream:
            for _ in stream:
                pass

    with DecodePool(1, entry=HOOKS) as pool, ThreadPoolExecutor(2) as threads:
        try:
            task = threads.submit(read, "greedy")
            until(lambda: niceness_of_files(pool) == {0})
            threads.submit(read, "modest")
            until(lambda: niceness_of_files(pool) == {10})
            asking["greedy"].cancelled.set()
            task.result(PATIENCE_SECONDS)
            until(lambda: niceness_of_files(pool) == {0})
        finally:
            for requester in asking.values():
                requester.cancelled.set()


def niceness_of_files(pool: DecodePool) -> set[int]:
    """Of the threads that decode them, and of their processes' groups if there are any. Empty without a file."""
    found: set[int] = set()
    for pid in worker_pids(pool):
        with suppress(FileNotFoundError, ProcessLookupError):  # one that kept its file for too long was replaced
            for thread in {int(folder.name) for folder in Path(f"/proc/{pid}/task").iterdir()} - {pid}:
                found.add(os.getpriority(os.PRIO_PROCESS, thread))
            group = Path(f"/proc/{pid}/autogroup")
            if found and group.exists():  # such as "/autogroup-7 nice 0"
                found.add(int(group.read_text().split()[-1]))
    return found


def test_files_of_a_client_with_long_ones_go_behind_at_once_while_another_is_there() -> None:
    """Its frames may be encoded now, or which returns in a moment: its file need not be in the queue."""
    queue: FileQueue[QueuedFile] = FileQueue(100)

    def taken(client: str) -> QueuedFile:
        queue.add(QueuedFile(client=client))
        file = queue.take(is_spare=False)
        assert file is not None and file.client == client
        return file

    def finish(file: QueuedFile) -> None:
        queue.finish(file)
        queue.remove(file)

    def has_taken(file: QueuedFile, seconds: float) -> None:
        file.started -= seconds

    file = taken("slow")
    has_taken(file, 10.0)
    queue._seen_at["slow"] -= 10.0
    assert not queue.charge(file), "no other client is there"
    finish(taken("modest"))  # the other one has not been seen for a while
    assert queue.charge(file) and queue.charge(file) and not queue.charge(file), "twice"
    finish(file)
    for _ in range(3):  # short ones in between do not help
        file = taken("slow")
        assert queue.charge(file), "one was long a moment ago"
        finish(file)
    queue._long_at["slow"] -= 10.0
    file = taken("slow")
    assert not queue.charge(file), "the long one was a while ago"
    finish(file)


def test_spares_do_nothing_while_processes_become_free() -> None:
    """More processes than cores decode no more videos per second."""
    queue: FileQueue[QueuedFile] = FileQueue(100)
    for number in range(3):
        queue.add(QueuedFile(client=f"client {number}"))
    assert queue.two_clients.is_set()
    first = queue.take(is_spare=False)
    assert first is not None and first.client == "client 0"
    spare = queue.take(is_spare=True)  # it waits for its moment
    assert spare is not None and spare.client == "client 1"
    assert spare.started - first.started >= _SPARE_AFTER_SECONDS


def test_processes_are_shared_by_seconds_not_by_files() -> None:
    """One process; a file of ``slow`` takes three times as long."""
    queue: FileQueue[QueuedFile] = FileQueue(100)
    for client in ("slow", "fast"):
        for _ in range(12):
            queue.add(QueuedFile(client=client))
    order = []
    for _ in range(8):
        file = queue.take(is_spare=False)
        assert file is not None
        file.started = time.monotonic() - (3.0 if file.client == "slow" else 1.0)
        queue.charge(file)
        queue.finish(file)
        queue.remove(file)
        order.append(file.client)
    assert order[:2] == ["slow", "fast"]
    assert order.count("slow") == 2, order
    assert queue.num_unfinished == 16
