"""Label vectors on disk: found again bit for bit, never wrong, and never anybody's trouble."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from support.paths import ROOT
from support.processes import PATIENCE_SECONDS, until
from support.serving import serving
from vidlex.model.dummy import DummyClassifier
from vidlex.service.registration.label_cache import LabelCache

DIM = 64
SCOPE = ("default", "encoder-1", "cpu")
MIB = 1 << 20


def vector(name: str, dim: int = DIM) -> NDArray[np.float32]:
    seed = [ord(c) for c in name] or [0]
    return np.random.default_rng(seed).standard_normal(dim).astype(np.float32)


def put(cache: LabelCache, *names: str, dim: int = DIM) -> None:
    cache.put(SCOPE, {name: vector(name, dim) for name in names})


def held(cache: LabelCache, names: Sequence[str], dim: int = DIM) -> set[str]:
    """Those of ``names`` that are there; each with the right numbers."""
    found = cache.get(SCOPE, names)
    for name, kept in found.items():
        assert kept.dtype == np.float32 and kept.tobytes() == vector(name, dim).tobytes()
    return set(found)


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[LabelCache]:
    cache = LabelCache(tmp_path / "cache", MIB)
    yield cache
    cache.close()


def the_file(folder: Path) -> Path:
    """The one in use."""
    return max(folder.glob("*.sqlite3"), key=lambda path: int(path.stem.removeprefix("vectors-")))


def test_a_hit_is_the_miss_bit_for_bit(cache: LabelCache, tmp_path: Path) -> None:
    names = ["dog", "Dog", "", "naïve 犬", "dog' OR 1=1 --", "a\x00b"]
    assert held(cache, names) == set()
    put(cache, *names)
    assert held(cache, [*names, "cat", "dog"]) == set(names)
    extremes = np.array([0.0, -0.0, 1e-45, np.finfo(np.float32).max], np.float32)
    cache.put(SCOPE, {"extremes": extremes})
    cache.close()
    again = LabelCache(tmp_path / "cache", MIB)
    assert held(again, names) == set(names)
    assert again.get(SCOPE, ["extremes"])["extremes"].tobytes() == extremes.tobytes()
    again.close()
    assert again.get(SCOPE, names) == {}


@pytest.mark.parametrize("other", [("other", "encoder-1", "cpu"), ("default", "encoder-2", "cpu"), ("default",)])
def test_another_namespace_or_encoder_never_hits(cache: LabelCache, other: tuple[str, ...]) -> None:
    put(cache, "dog")
    assert cache.get(other, ["dog"]) == {}
    assert cache.within(*other).get(["dog"]) == {} and set(cache.within(*SCOPE).get(["dog"])) == {"dog"}


def test_names_are_not_readable_in_the_file_and_nobody_else_reads_it(cache: LabelCache, tmp_path: Path) -> None:
    put(cache, "a very secret label")
    files = list((tmp_path / "cache").iterdir())
    assert len(files) == 3
    for path in files:
        assert b"secret" not in path.read_bytes() and path.stat().st_mode & 0o77 == 0


def test_zero_bytes_touch_no_file(tmp_path: Path) -> None:
    off = LabelCache(tmp_path / "cache", 0)
    put(off, "dog")
    assert held(off, ["dog"]) == set() and not (tmp_path / "cache").exists()


@pytest.mark.parametrize("dim", [3, 512, 5000])
def test_the_bound_is_kept_and_what_is_used_stays(tmp_path: Path, dim: int) -> None:
    now = [1e9]
    cache = LabelCache(tmp_path, MIB, clock=lambda: now[0])
    names = [f"label {i}" for i in range(10_000 if dim == 3 else 3 * MIB // (4 * dim))]
    few = min(250, MIB // 8 // (4 * dim))
    for start in range(0, len(names), few):
        now[0] += 4000
        put(cache, *names[start : start + few], dim=dim)
        assert held(cache, names[:5], dim) == set(names[:5])  # in use all the time
        assert cache.num_bytes <= MIB
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 3.2 * MIB
    found = held(cache, names, dim)
    assert names[-1] in found and names[5] not in found
    assert len(found) * (4 * dim + 100) > MIB / 3
    cache.close()
    small = LabelCache(tmp_path, MIB // 4)
    put(small, "one more", dim=dim)
    assert held(small, ["one more"], dim) == {"one more"}
    small.close()
    assert the_file(tmp_path).stat().st_size <= MIB // 4


@pytest.mark.parametrize("max_bytes", [1, 20_000, 100_000])
def test_a_bound_too_small_for_anything_keeps_nothing(tmp_path: Path, max_bytes: int) -> None:
    tiny = LabelCache(tmp_path, max_bytes)
    for _ in range(5):
        put(tiny, *(f"label {i}" for i in range(300)), dim=512)
        assert held(tiny, ["label 0"], 512) == set()
    assert [path.name for path in tmp_path.glob("*.sqlite3")] == ["vectors-1.sqlite3"]


_WRITER = """
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import numpy as np
from vidlex.service.registration import label_cache
label_cache._BUSY_SECONDS = 100.0  # where all must arrive, nobody gives up
cache = label_cache.LabelCache(Path(sys.argv[1]), 1 << 22)
for i in range(int(sys.argv[2]), int(sys.argv[3])):
    names = [f"label {j}" for j in range(10 * i, 10 * i + 10)]
    vectors = [np.random.default_rng([ord(c) for c in n]).standard_normal(64).astype(np.float32) for n in names]
    cache.put(("default", "encoder-1", "cpu"), dict(zip(names, vectors)))
    print(i, flush=True)
"""


def writer(folder: Path, first: int, last: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", _WRITER, str(folder), str(first), str(last)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT)


def test_two_processes_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidlex.service.registration.label_cache._BUSY_SECONDS", 100.0)
    both = [writer(tmp_path, 0, 40), writer(tmp_path, 20, 60)]
    here = LabelCache(tmp_path, 4 * MIB)
    names = [f"label {i}" for i in range(600)]
    while any(process.poll() is None for process in both):
        held(here, names)
        time.sleep(0.02)
    assert [process.returncode for process in both] == [0, 0]
    assert held(here, names) == set(names)
    here.close()
    assert len(list(tmp_path.glob("*.sqlite3"))) == 1  # neither took the other's work for damage


def test_killed_in_the_middle_of_writing(tmp_path: Path) -> None:
    for round_ in range(int(os.environ.get("VIDLEX_TEST_KILL_ROUNDS", "4"))):
        process = writer(tmp_path, 0, 10_000)
        assert process.stdout is not None
        for _ in range(3 + 5 * round_ % 17):
            told = int(process.stdout.readline())
        time.sleep(0.003 * (round_ % 5))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        cache = LabelCache(tmp_path, 4 * MIB)
        written = [f"label {i}" for i in range(10 * told + 10)]
        assert held(cache, written) == set(written)
        put(cache, "afterwards")
        assert held(cache, ["afterwards"]) == {"afterwards"}
        cache.close()
        (found,) = tmp_path.glob("*.sqlite3")
        with sqlite3.connect(found) as db:
            assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        db.close()


def _other_tables(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA page_size = 16384")
        db.execute("CREATE TABLE vectors (colour TEXT)")
        db.execute("PRAGMA user_version = 1")
    db.close()


DAMAGE: dict[str, Callable[[Path], object]] = {
    "noise": lambda path: path.write_bytes(os.urandom(70_000)),
    "text": lambda path: path.write_text("label,vector\n" * 2000),
    "cut off": lambda path: os.truncate(path, 40_000),
    "zeroed pages": lambda path: path.write_bytes(path.read_bytes()[:16384] + bytes(path.stat().st_size - 16384)),
    "other tables": _other_tables,
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_file_is_put_aside_and_made_anew(tmp_path: Path, what: str) -> None:
    cache = LabelCache(tmp_path, MIB)
    names = [f"label {i}" for i in range(200)]
    put(cache, *names)
    cache.close()
    DAMAGE[what](the_file(tmp_path))
    again = LabelCache(tmp_path, MIB)
    held(again, names)
    put(again, *names)
    put(again, *names)  # damage may be first seen by writing
    assert held(again, names) == set(names)
    again.close()
    assert (tmp_path / "vectors-1.sqlite3").exists() and the_file(tmp_path).name == "vectors-2.sqlite3"


def test_a_process_with_the_damaged_file_open_goes_over_to_the_new_one(tmp_path: Path) -> None:
    one, two = LabelCache(tmp_path, MIB), LabelCache(tmp_path, MIB)
    put(one, "dog")
    assert held(two, ["dog"]) == {"dog"}
    with (tmp_path / "vectors-1.sqlite3").open("r+b") as file:
        file.write(os.urandom(80_000))
    for cache in (one, two, one, two):
        cache.get(SCOPE, ["dog"])
        put(cache, "dog")
    one.close()
    assert held(two, ["dog"]) == {"dog"}
    two.close()
    last = LabelCache(tmp_path, MIB)
    held(last, ["dog"])
    put(last, "dog")
    assert held(last, ["dog"]) == {"dog"}
    last.close()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("whole")
    cache = LabelCache(folder, MIB)
    put(cache, *(f"label {i}" for i in range(200)))
    cache.close()
    return the_file(folder).read_bytes()


@given(
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=40),
    in_head=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_no_flipped_byte_gives_a_wrong_vector_or_an_error(
    whole: bytes, flips: list[tuple[float, int]], in_head: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = bytearray(whole)
    for place, value in flips:
        data[int(place * (120 if in_head else len(data)))] = value
    folder = tmp_path_factory.mktemp("flipped")
    (folder / "vectors-1.sqlite3").write_bytes(data)
    cache = LabelCache(folder, MIB)
    names = [f"label {i}" for i in range(200)]
    held(cache, names)
    put(cache, *names)
    held(cache, names)
    cache.close()
    shutil.rmtree(folder)


def test_a_disk_that_refuses_is_only_no_cache(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        cache = LabelCache(folder, MIB)
        put(cache, "dog")
        assert held(cache, ["dog"]) == set() and cache.num_bytes == 0
        cache.close()
    full = Path("/dev/full")
    if full.exists():
        (tmp_path / "cache").mkdir()
        (tmp_path / "cache" / "vectors-1.sqlite3").symlink_to(full)
        cache = LabelCache(tmp_path / "cache", MIB)
        put(cache, "dog")
        assert held(cache, ["dog"]) in (set(), {"dog"})
        cache.close()


def test_a_file_that_another_process_locks_for_long_is_no_error(cache: LabelCache, tmp_path: Path) -> None:
    put(cache, "dog")
    db = sqlite3.connect(the_file(tmp_path / "cache"), isolation_level=None)
    db.execute("BEGIN IMMEDIATE")
    put(cache, "cat")
    assert held(cache, ["dog", "cat"]) == {"dog"}  # reading goes on
    db.execute("ROLLBACK")
    db.close()
    put(cache, "cat")
    assert held(cache, ["dog", "cat"]) == {"dog", "cat"}


class Counting(DummyClassifier):
    def __init__(self, version: int = 1) -> None:
        super().__init__(version)
        self.names: list[str] = []

    def encode_labels(self, names: Sequence[str]) -> NDArray[np.float32]:
        self.names += names
        return super().encode_labels(names)


def test_a_label_registered_again_does_not_run_the_encoder(tmp_path: Path) -> None:
    classifier = Counting()
    with serving(tmp_path, classifier=classifier, label_cache_bytes=MIB) as client:

        def register(name: str, **headers: str) -> Any:
            answer = client.post("/labels", json={"name": name}, headers=headers)
            assert answer.status_code == 201
            return answer.json()

        first = register("red")
        client.delete(f"/labels/{first['id']}")
        second = register(" red ")  # the same name once it is clean
        assert second["id"] != first["id"] and classifier.names == ["red"]
        client.patch(f"/labels/{second['id']}", json={"name": "green"})
        client.patch(f"/labels/{second['id']}", json={"name": "red"})
        assert classifier.names == ["red", "green"]
        register("red", **{"X-Vidlex-Namespace": "other"})
        assert classifier.names == ["red", "green", "red"]
        metrics = client.get("/metrics").text
        assert 'vidlex_label_lookups_total{result="hit"} 2.0' in metrics
        assert "vidlex_label_cache_bytes 0.0" not in metrics
        client.delete(f"/labels/{second['id']}")
    same, other = Counting(), Counting(2)
    with serving(tmp_path, classifier=same, label_cache_bytes=MIB) as client:
        assert client.post("/labels", json={"name": "red"}).status_code == 201
    assert same.names == []
    with serving(tmp_path, classifier=other, label_cache_bytes=MIB):
        until(lambda: "red" in other.names)


def test_without_the_cache_every_name_is_encoded(tmp_path: Path) -> None:
    classifier = Counting()
    with serving(tmp_path, classifier=classifier, label_cache_bytes=0) as client:
        for _ in range(2):
            label = client.post("/labels", json={"name": "red"}).json()
            client.delete(f"/labels/{label['id']}")
    assert classifier.names == ["red", "red"] and not (tmp_path / "label-cache").exists()


def test_its_size_is_told_while_another_thread_waits_for_the_disk(tmp_path: Path) -> None:
    """/metrics asks on the event loop, which must never wait."""
    inside, told = threading.Event(), threading.Event()

    def slow_clock() -> float:  # read inside a look
        inside.set()
        assert told.wait(PATIENCE_SECONDS)
        return 0.0

    cache = LabelCache(tmp_path / "cache", MIB)
    put(cache, "red")
    cache._clock = slow_clock
    with ThreadPoolExecutor(2) as pool:
        look = pool.submit(cache.get, SCOPE, ["red"])
        assert inside.wait(PATIENCE_SECONDS)
        try:
            assert pool.submit(lambda: cache.num_bytes).result(PATIENCE_SECONDS) > 0
        finally:
            told.set()
        assert set(look.result(PATIENCE_SECONDS)) == {"red"}
    cache.close()
