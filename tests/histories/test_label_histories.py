"""Histories of concurrent clients of two replicas agree with one store, whatever fails meanwhile."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from histories.cluster import HAS_NETWORKS, Cluster
from histories.label_histories import Recorder, check_history, step

from support.linearizability import Operation, find_order
from support.processes import until
from support.serving import colour_video
from vidlex.service.labels.store.verify import verify_namespace

NUM_CLIENTS = 6
QUIET_OPERATIONS = 60  # between two faults

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    started = Cluster(tmp_path_factory.mktemp("c"))
    try:
        started.start()
        yield started
    finally:
        started.close()


def kill_replica(cluster: Cluster, rng: random.Random) -> None:
    replica = rng.choice(cluster.replicas)
    replica.kill()
    replica.start()
    replica.wait()


def pause_replica(cluster: Cluster, rng: random.Random) -> None:
    with cluster.paused_replica(rng.randrange(2)):
        time.sleep(rng.uniform(0.5, 2))


def kill_store(cluster: Cluster, rng: random.Random) -> None:
    cluster.kill_store()
    time.sleep(rng.uniform(0, 0.5))
    cluster.start_store()
    cluster.wait()


def pause_store(cluster: Cluster, rng: random.Random) -> None:
    with cluster.paused_store():
        time.sleep(rng.uniform(0.5, 3))


def partition(cluster: Cluster, rng: random.Random) -> None:
    number = rng.randrange(2)
    with cluster.partitioned(number):
        time.sleep(rng.uniform(1, 6))
    cluster.replicas[number].wait()


def fail_over(cluster: Cluster, _: random.Random) -> None:
    cluster.fail_over()
    cluster.wait()


def fill_disk(cluster: Cluster, rng: random.Random) -> None:
    cluster.fill_disk()
    time.sleep(rng.uniform(0, 0.5))
    cluster.free_disk()
    cluster.start_store()
    cluster.wait()


FAULTS: list[Callable[[Cluster, random.Random], None]] = [
    kill_replica,
    pause_replica,
    kill_store,
    pause_store,
    fail_over,
]
if HAS_NETWORKS:
    FAULTS += [partition, fill_disk]


def test_histories_agree_with_one_store_through_faults(cluster: Cluster, tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}; faults: {', '.join(fault.__name__ for fault in FAULTS)}")
    rng = random.Random(seed)
    video = colour_video(tmp_path / "red.mp4", "red").read_bytes()
    recorder = Recorder([replica.url for replica in cluster.replicas], video, seed)
    with ThreadPoolExecutor(NUM_CLIENTS) as pool:
        running = [pool.submit(recorder.run, number) for number in range(NUM_CLIENTS)]

        def num_operations() -> int:
            return sum(len(slot.operations) for slot in recorder.all_slots)

        try:
            for fault in rng.sample(FAULTS, len(FAULTS)):
                enough = num_operations() + QUIET_OPERATIONS
                until(lambda enough=enough: num_operations() >= enough or any(f.done() for f in running))  # type: ignore[misc]
                fault(cluster, rng)
            enough = num_operations() + QUIET_OPERATIONS
            until(lambda: num_operations() >= enough or any(f.done() for f in running))
        finally:
            recorder.stop.set()
        for future in running:
            future.result()
    cluster.wait()
    recorder.finish()
    numbers = check_history(recorder)
    print(f"{numbers}; {len(recorder.writes)} acknowledged writes in {len(recorder.all_slots)} slots")
    assert verify_namespace(cluster.client()) == []
    assert all(numbers.get(kind, 0) > 10 for kind in ("register", "change", "remove", "get", "find", "snapshot"))


def test_the_model_refuses_what_a_store_must_not_do() -> None:
    created = Operation("register", ("dog", 0.1, "lbl_1"), ("created", "lbl_1"), 0.0, 1.0)
    renamed = Operation("change", ("lbl_1", "cat", 0.2), "changed", 2.0, 3.0)
    lost = Operation("get", ("lbl_1",), ("dog", 0.1), 4.0, 5.0)
    twice = Operation("register", ("cat", 0.3, "lbl_2"), ("created", "lbl_2"), 4.0, 5.0)
    unseen = Operation("snapshot", (), (("dog", "lbl_1", 0.1),), 4.0, 5.0)
    gone = Operation("find", ("cat",), "missing", 4.0, 5.0)
    assert find_order([created, renamed], (), step) is not None
    for wrong in (lost, twice, unseen, gone):
        assert find_order([created, renamed, wrong], (), step) is None
    late = Operation("register", ("cow", 0.4, "lbl_3"), None, 0.5)
    seen = Operation("find", ("cow",), ("lbl_3", 0.4), 8.0, 9.0)
    assert find_order([created, late, seen], (), step) is not None
    assert find_order([created, seen], (), step) is None
