"""LabelCache: exact vectors, size limit, concurrent processes, corrupt files and failing disks."""

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

from support.classifiers import RecordingClassifier
from support.paths import ROOT
from support.processes import PATIENCE_SECONDS, until
from support.serving import serving
from vidlex.service.registration.label_cache import LabelCache

DIM = 64
SCOPE = ("default", "encoder-1", "cpu")
MIB = 1 << 20


def vector(name: str, dim: int = DIM) -> NDArray[np.float32]:
    seed = [ord(c) for c in name] or [0]
    return np.random.default_rng(seed).standard_normal(dim).astype(np.float32)


def put(cache: LabelCache, *names: str, dim: int = DIM) -> None:
    cache.put(SCOPE, {name: vector(name, dim) for name in names})


def cached(cache: LabelCache, names: Sequence[str], dim: int = DIM) -> set[str]:
    """The names that hit; each with the right vector."""
    vectors = cache.get(SCOPE, names)
    for name, found in vectors.items():
        assert found.dtype == np.float32 and found.tobytes() == vector(name, dim).tobytes()
    return set(vectors)


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[LabelCache]:
    cache = LabelCache(tmp_path / "cache", MIB)
    yield cache
    cache.close()


def current_file(folder: Path) -> Path:
    return max(folder.glob("*.sqlite3"), key=lambda path: int(path.stem.removeprefix("vectors-")))


def test_hit_returns_the_stored_bits(cache: LabelCache, tmp_path: Path) -> None:
    names = ["dog", "Dog", "", "naïve 犬", "dog' OR 1=1 --", "a\x00b"]
    assert cached(cache, names) == set()
    put(cache, *names)
    assert cached(cache, [*names, "cat", "dog"]) == set(names)
    extremes = np.array([0.0, -0.0, 1e-45, np.finfo(np.float32).max], np.float32)
    cache.put(SCOPE, {"extremes": extremes})
    cache.close()
    reopened = LabelCache(tmp_path / "cache", MIB)
    assert cached(reopened, names) == set(names)
    assert reopened.get(SCOPE, ["extremes"])["extremes"].tobytes() == extremes.tobytes()
    reopened.close()
    assert reopened.get(SCOPE, names) == {}


@pytest.mark.parametrize("other", [("other", "encoder-1", "cpu"), ("default", "encoder-2", "cpu"), ("default",)])
def test_other_scope_never_hits(cache: LabelCache, other: tuple[str, ...]) -> None:
    put(cache, "dog")
    assert cache.get(other, ["dog"]) == {} and set(cache.get(SCOPE, ["dog"])) == {"dog"}


def test_file_contains_no_names_and_is_private(cache: LabelCache, tmp_path: Path) -> None:
    put(cache, "a very secret label")
    files = list((tmp_path / "cache").iterdir())
    assert len(files) == 3
    for path in files:
        assert b"secret" not in path.read_bytes() and path.stat().st_mode & 0o77 == 0


def test_disabled_cache_creates_no_file(tmp_path: Path) -> None:
    disabled = LabelCache(tmp_path / "cache", 0)
    put(disabled, "dog")
    assert cached(disabled, ["dog"]) == set() and not (tmp_path / "cache").exists()


@pytest.mark.parametrize("dim", [3, 512, 5000])
def test_size_limit_holds_and_used_vectors_stay(tmp_path: Path, dim: int) -> None:
    now = [1e9]
    cache = LabelCache(tmp_path, MIB, clock=lambda: now[0])
    names = [f"label {i}" for i in range(10_000 if dim == 3 else 3 * MIB // (4 * dim))]
    few = min(250, MIB // 8 // (4 * dim))
    for start in range(0, len(names), few):
        now[0] += 4000
        put(cache, *names[start : start + few], dim=dim)
        assert cached(cache, names[:5], dim) == set(names[:5])
        assert cache.num_bytes <= MIB
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 3.2 * MIB
    found = cached(cache, names, dim)
    assert names[-1] in found and names[5] not in found
    assert len(found) * (4 * dim + 100) > MIB / 3
    cache.close()
    small = LabelCache(tmp_path, MIB // 4)
    put(small, "one more", dim=dim)
    assert cached(small, ["one more"], dim) == {"one more"}
    small.close()
    assert current_file(tmp_path).stat().st_size <= MIB // 4


@pytest.mark.parametrize("max_bytes", [1, 20_000, 100_000])
def test_limit_too_small_for_one_vector_stores_nothing(tmp_path: Path, max_bytes: int) -> None:
    tiny = LabelCache(tmp_path, max_bytes)
    for _ in range(5):
        put(tiny, *(f"label {i}" for i in range(300)), dim=512)
        assert cached(tiny, ["label 0"], 512) == set()
    assert [path.name for path in tmp_path.glob("*.sqlite3")] == ["vectors-1.sqlite3"]


_WRITER = """
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import numpy as np
from vidlex.service.registration import label_cache
label_cache._LOCK_TIMEOUT_SECONDS = 100.0
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


def test_two_processes_share_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidlex.service.registration.label_cache._LOCK_TIMEOUT_SECONDS", 100.0)
    both = [writer(tmp_path, 0, 40), writer(tmp_path, 20, 60)]
    cache = LabelCache(tmp_path, 4 * MIB)
    names = [f"label {i}" for i in range(600)]
    while any(process.poll() is None for process in both):
        cached(cache, names)
        time.sleep(0.02)
    assert [process.returncode for process in both] == [0, 0]
    assert cached(cache, names) == set(names)
    cache.close()
    assert len(list(tmp_path.glob("*.sqlite3"))) == 1  # neither considers the file corrupt


def test_file_survives_killed_writer(tmp_path: Path) -> None:
    for round_ in range(int(os.environ.get("VIDLEX_TEST_KILL_ROUNDS", "4"))):
        process = writer(tmp_path, 0, 10_000)
        assert process.stdout is not None
        for _ in range(3 + 5 * round_ % 17):
            last_written = int(process.stdout.readline())
        time.sleep(0.003 * (round_ % 5))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        cache = LabelCache(tmp_path, 4 * MIB)
        written = [f"label {i}" for i in range(10 * last_written + 10)]
        assert cached(cache, written) == set(written)
        put(cache, "afterwards")
        assert cached(cache, ["afterwards"]) == {"afterwards"}
        cache.close()
        (path,) = tmp_path.glob("*.sqlite3")
        with sqlite3.connect(path) as db:
            assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        db.close()


def _other_tables(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA page_size = 16384")
        db.execute("CREATE TABLE vectors (colour TEXT)")
        db.execute("PRAGMA user_version = 1")
    db.close()


CORRUPTIONS: dict[str, Callable[[Path], object]] = {
    "noise": lambda path: path.write_bytes(os.urandom(70_000)),
    "text": lambda path: path.write_text("label,vector\n" * 2000),
    "truncated": lambda path: os.truncate(path, 40_000),
    "zeroed pages": lambda path: path.write_bytes(path.read_bytes()[:16384] + bytes(path.stat().st_size - 16384)),
    "other tables": _other_tables,
}


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_corrupt_file_is_replaced_by_next_generation(tmp_path: Path, corruption: str) -> None:
    cache = LabelCache(tmp_path, MIB)
    names = [f"label {i}" for i in range(200)]
    put(cache, *names)
    cache.close()
    CORRUPTIONS[corruption](current_file(tmp_path))
    reopened = LabelCache(tmp_path, MIB)
    cached(reopened, names)
    put(reopened, *names)
    put(reopened, *names)  # the first write may be the one that detects the corruption
    assert cached(reopened, names) == set(names)
    reopened.close()
    assert (tmp_path / "vectors-1.sqlite3").exists() and current_file(tmp_path).name == "vectors-2.sqlite3"


def test_process_with_corrupt_file_open_switches_to_the_new_file(tmp_path: Path) -> None:
    one, two = LabelCache(tmp_path, MIB), LabelCache(tmp_path, MIB)
    put(one, "dog")
    assert cached(two, ["dog"]) == {"dog"}
    with (tmp_path / "vectors-1.sqlite3").open("r+b") as file:
        file.write(os.urandom(80_000))
    for cache in (one, two, one, two):
        cache.get(SCOPE, ["dog"])
        put(cache, "dog")
    one.close()
    assert cached(two, ["dog"]) == {"dog"}
    two.close()
    last = LabelCache(tmp_path, MIB)
    cached(last, ["dog"])
    put(last, "dog")
    assert cached(last, ["dog"]) == {"dog"}
    last.close()


@pytest.fixture(scope="module")
def valid_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("valid")
    cache = LabelCache(folder, MIB)
    put(cache, *(f"label {i}" for i in range(200)))
    cache.close()
    return current_file(folder).read_bytes()


@given(
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=40),
    in_header=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_changed_bytes_never_cause_a_wrong_vector_or_an_error(
    valid_file: bytes, flips: list[tuple[float, int]], in_header: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = bytearray(valid_file)
    for position, value in flips:
        data[int(position * (120 if in_header else len(data)))] = value
    folder = tmp_path_factory.mktemp("flipped")
    (folder / "vectors-1.sqlite3").write_bytes(data)
    cache = LabelCache(folder, MIB)
    names = [f"label {i}" for i in range(200)]
    cached(cache, names)
    put(cache, *names)
    cached(cache, names)
    cache.close()
    shutil.rmtree(folder)


def test_failing_disk_only_causes_misses(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        cache = LabelCache(folder, MIB)
        put(cache, "dog")
        assert cached(cache, ["dog"]) == set() and cache.num_bytes == 0
        cache.close()
    full = Path("/dev/full")
    if full.exists():
        (tmp_path / "cache").mkdir()
        (tmp_path / "cache" / "vectors-1.sqlite3").symlink_to(full)
        cache = LabelCache(tmp_path / "cache", MIB)
        put(cache, "dog")
        assert cached(cache, ["dog"]) in (set(), {"dog"})
        cache.close()


def test_locked_file_can_be_read_and_is_no_error(cache: LabelCache, tmp_path: Path) -> None:
    put(cache, "dog")
    db = sqlite3.connect(current_file(tmp_path / "cache"), isolation_level=None)
    db.execute("BEGIN IMMEDIATE")
    put(cache, "cat")
    assert cached(cache, ["dog", "cat"]) == {"dog"}
    db.execute("ROLLBACK")
    db.close()
    put(cache, "cat")
    assert cached(cache, ["dog", "cat"]) == {"dog", "cat"}


def test_registering_a_name_again_does_not_encode_it(tmp_path: Path) -> None:
    classifier = RecordingClassifier()
    with serving(tmp_path, classifier=classifier, label_cache_bytes=MIB) as client:

        def register(name: str, **headers: str) -> Any:
            answer = client.post("/labels", json={"name": name}, headers=headers)
            assert answer.status_code == 201
            return answer.json()

        first = register("red")
        client.delete(f"/labels/{first['id']}")
        second = register(" red ")  # the same display name
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
    same, other = RecordingClassifier(), RecordingClassifier(2)
    with serving(tmp_path, classifier=same, label_cache_bytes=MIB) as client:
        assert client.post("/labels", json={"name": "red"}).status_code == 201
    assert same.names == []
    with serving(tmp_path, classifier=other, label_cache_bytes=MIB):
        until(lambda: "red" in other.names)


def test_disabled_cache_encodes_every_name(tmp_path: Path) -> None:
    classifier = RecordingClassifier()
    with serving(tmp_path, classifier=classifier, label_cache_bytes=0) as client:
        for _ in range(2):
            label = client.post("/labels", json={"name": "red"}).json()
            client.delete(f"/labels/{label['id']}")
    assert classifier.names == ["red", "red"] and not (tmp_path / "label-cache").exists()


def test_num_bytes_does_not_wait_for_a_lookup(tmp_path: Path) -> None:
    """/metrics reads it on the event loop."""
    in_lookup, size_read = threading.Event(), threading.Event()

    def slow_clock() -> float:  # called during a lookup
        in_lookup.set()
        assert size_read.wait(PATIENCE_SECONDS)
        return 0.0

    cache = LabelCache(tmp_path / "cache", MIB)
    put(cache, "red")
    cache._clock = slow_clock
    with ThreadPoolExecutor(2) as pool:
        lookup = pool.submit(cache.get, SCOPE, ["red"])
        assert in_lookup.wait(PATIENCE_SECONDS)
        try:
            assert pool.submit(lambda: cache.num_bytes).result(PATIENCE_SECONDS) > 0
        finally:
            size_read.set()
        assert set(lookup.result(PATIENCE_SECONDS)) == {"red"}
    cache.close()
