"""Processes that keep and remove videos until SIGKILL, next to one that reads and one that tidies up."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from support.kept_videos import FINGERPRINT, NAMESPACE, keep, kept_store, stored_vectors, table_of
from support.paths import ROOT
from support.redis_process import RedisProcess
from vidlex.service.errors import NotFound
from vidlex.service.videos import upkeep
from vidlex.service.videos.pages import VideoFilter
from vidlex.service.videos.store import KeptVideoStore

_ROUNDS = int(os.environ.get("KILL_ROUNDS", "6"))
_WRITERS = 2
_VIDEOS_PER_LIFE = 25


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    with RedisProcess(tmp_path_factory.mktemp("store")) as process:
        yield process


@dataclass
class Acknowledged:
    numbers: dict[str, int] = field(default_factory=dict)  # by id
    removed: set[str] = field(default_factory=set)

    def read(self, line: str) -> None:
        found = json.loads(line)
        if "removed" in found:
            self.removed.add(found["removed"])
        else:
            self.numbers[found["id"]] = found["number"]


def live_until_killed(server: RedisProcess, folder: Path, first: int, known: Acknowledged, randomness: float) -> None:
    command = [sys.executable, str(ROOT / "tests/support/kept_videos.py")]
    process = subprocess.Popen(
        [*command, str(server.socket), str(folder), str(first)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT / "tests")},
    )
    assert process.stdout is not None
    for number, line in enumerate(process.stdout):
        known.read(line)
        if number == int(_VIDEOS_PER_LIFE * randomness):
            process.kill()
        # what was printed before it died is acknowledged too
    process.wait()
    assert process.returncode == -9


def expected_of(number: int) -> bytes:
    return stored_vectors(f"video {number}", count=1 + number % 5).tobytes()


def test_kills_lose_nothing_acknowledged_and_show_nothing_torn(
    server: RedisProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "_MIN_DEAD_BYTES", 1)
    monkeypatch.setattr(upkeep, "_MAX_SMALL_PARTS", 3)
    reader, tidier = kept_store(server.client(), tmp_path), kept_store(server.client(), tmp_path)
    known = [Acknowledged() for _ in range(_WRITERS)]
    ended, problems, num_scans, num_moved = threading.Event(), [], 0, 0

    def read() -> None:
        nonlocal num_scans
        while not ended.is_set():
            found = table_of(reader)
            videos = {video.id: video for video in reader.get_many(NAMESPACE, list(found))}
            for video_id, vectors in found.items():
                if video_id in videos:  # not removed meanwhile
                    number = int(videos[video_id].client_id or "")
                    if vectors.tobytes() != expected_of(number):
                        problems.append(f"{video_id}: torn")
            num_scans += 1

    def tidy() -> None:
        nonlocal num_moved
        while not ended.wait(0.05):
            num_moved += tidier.sweep().moved

    def lives(index: int) -> None:
        chance = random.Random(index)
        for life in range(_ROUNDS):
            first = 1_000_000 * index + 1000 * life
            live_until_killed(server, tmp_path, first, known[index], chance.random())

    helpers = [threading.Thread(target=action) for action in (read, tidy)]
    writers = [threading.Thread(target=lives, args=(index,)) for index in range(_WRITERS)]
    for thread in (*helpers, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    ended.set()
    for thread in helpers:
        thread.join()
    assert not problems
    assert num_scans
    assert num_moved
    for store in (reader, kept_store(server.client(), tmp_path)):
        check(store, known)


def check(store: KeptVideoStore, known: list[Acknowledged]) -> None:
    numbers = {video_id: number for one in known for video_id, number in one.numbers.items()}
    removed = {video_id for one in known for video_id in one.removed}
    table = table_of(store)
    listed = {video.id: video for video in store.page(NAMESPACE, VideoFilter(), limit=100_000).data}
    assert listed.keys() == table.keys()
    assert not removed & table.keys()
    # A video whose removal was not acknowledged may be gone, one per life; no other acknowledged one.
    lost = numbers.keys() - removed - table.keys()
    assert all(numbers[video_id] % 4 == 3 for video_id in lost)
    assert len(lost) <= _ROUNDS * _WRITERS
    # One that was not acknowledged may be there, one per life; then it is whole.
    assert len(table.keys() - numbers.keys()) <= _ROUNDS * _WRITERS
    for video_id, vectors in table.items():
        number = int(listed[video_id].client_id or "")
        assert numbers.get(video_id, number) == number
        assert vectors.tobytes() == expected_of(number)
        features = store.features(NAMESPACE, video_id, FINGERPRINT)
        assert features is not None
        np.testing.assert_array_equal(features.vectors, vectors)
    for video_id in removed:
        with pytest.raises(NotFound):
            store.get(NAMESPACE, video_id)
    assert store.usage(NAMESPACE) == (len(listed), sum(video.num_bytes for video in listed.values()))
    assert store.generations(NAMESPACE) == {FINGERPRINT: len(listed)}


def test_processes_that_keep_the_same_videos_agree(server: RedisProcess, tmp_path: Path) -> None:
    """As replicas of which each gets the same request."""
    client = server.client()
    client.flushall()
    stores = [kept_store(server.client(), tmp_path) for _ in range(2)]
    ids: list[list[str]] = [[] for _ in range(4)]

    def work(index: int) -> None:
        for number in range(15):
            ids[index].append(keep(stores[index % 2], f"shared {number}", metadata={"by": index}))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ids[0] == ids[1] == ids[2] == ids[3]
    assert len(set(ids[0])) == 15
    table = table_of(stores[0])
    assert {name: table[video_id].tobytes() for name, video_id in enumerate(ids[0])} == {
        number: stored_vectors(f"shared {number}").tobytes() for number in range(15)
    }
