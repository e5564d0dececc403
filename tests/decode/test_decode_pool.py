"""Decoding in processes that crash, hang or send invalid replies."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fuzz.forged_headers import write_claimed_size
from support import videos
from support.decode_all import decode_all
from support.decode_hooks import Signals, write_hook
from support.paths import TESTS
from support.processes import PATIENCE_SECONDS, num_descriptors, until, wait_for_end, worker_pids
from vidlex.model.decode.limits import DecodeLimits
from vidlex.model.types import FrameBatch, FrameGeometry
from vidlex.service.decode.file_queue import threads_per_file
from vidlex.service.decode.pool import DecodeJob, DecodePool, PoolLimits
from vidlex.service.decode.process import StartFailed
from vidlex.service.errors import (
    InvalidParameter,
    Overloaded,
    ResolutionTooLarge,
    UndecodableVideo,
    UnsupportedMedia,
    VideoTooLong,
    VidlexError,
)

HOOKS = "support.decode_hooks:decode"
JOB = DecodeJob(FrameGeometry(32), 5)
NUMBERS = [3, 9, 15, 21, 27]


@pytest.fixture(scope="module", autouse=True)
def hooks_can_be_imported() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(TESTS))
        patch.setenv("VIDLEX_REDIS_URL", "redis://:secret@example.org")
        yield


@pytest.fixture(scope="module")
def pool(hooks_can_be_imported: None) -> Iterator[DecodePool]:
    limits = PoolLimits(decode=DecodeLimits(max_duration_ms=60_000))
    with DecodePool(2, limits, entry=HOOKS) as running:
        yield running


@pytest.fixture(scope="module")
def movie(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return videos.write_video(tmp_path_factory.mktemp("movie") / "numbers.mp4")


def faulty_file(folder: Path, name: str, content: Any = None) -> Path:
    return write_hook(folder / f"{name}.mp4", name, content)


@pytest.fixture
def signals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Signals]:
    """With pools that start later."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    made = Signals(tmp_path)
    yield made
    made.close()


def numbers(batch: FrameBatch) -> list[int]:
    return [videos.read_number(frame) for frame in batch.frames]


# --- results


def test_frames_equal_those_decoded_in_process(pool: DecodePool, movie: Path) -> None:
    from vidlex.model.decode.decoder import decode_frames

    expected = decode_frames(movie, geometry=JOB.geometry, num_frames=5)
    decoded = decode_all(pool, movie, JOB)
    assert (expected.frames == decoded.frames).all()
    assert expected.timestamps_ms == decoded.timestamps_ms
    assert expected.video == decoded.video
    window = DecodeJob(FrameGeometry(64, "squash"), 2, "keyframes", 1000, 2500)
    assert decode_all(pool, movie, window).timestamps_ms == (1200, 2400)


def test_each_invalid_file_or_job_has_its_own_error(pool: DecodePool, movie: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    (tmp_path / "empty.mp4").touch()
    videos.write_audio_only(tmp_path / "audio.mp4")
    write_claimed_size(movie, tmp_path / "huge.mp4", width=20_000, height=20_000)
    videos.write_video(tmp_path / "long.mp4", num_frames=70, fps=1)
    videos.truncate(movie, tmp_path / "cut.mp4", 0.5)
    for name, error in (
        ("text", UnsupportedMedia),
        ("empty", UndecodableVideo),
        ("audio", UndecodableVideo),
        ("huge", ResolutionTooLarge),
        ("long", VideoTooLong),
        ("cut", UndecodableVideo),
    ):
        with pytest.raises(error) as caught:
            decode_all(pool, tmp_path / f"{name}.mp4", JOB)
        assert str(tmp_path) not in str(caught.value), name
    for job in (DecodeJob(JOB.geometry, 0), DecodeJob(JOB.geometry, 10**9), DecodeJob(JOB.geometry, 5, start_ms=-1)):
        with pytest.raises(InvalidParameter):
            decode_all(pool, movie, job)
    assert numbers(decode_all(pool, movie, JOB)) == NUMBERS


def test_missing_file_is_an_error_not_a_crash(pool: DecodePool, tmp_path: Path) -> None:
    with pytest.raises(UndecodableVideo) as caught:
        decode_all(pool, tmp_path / "none.mp4", JOB)
    assert str(caught.value) == UndecodableVideo.title
    assert "FileNotFoundError" in caught.value.internal


def test_pool_is_thread_safe(pool: DecodePool, movie: Path) -> None:
    def decode(k: int) -> tuple[int, list[int]]:
        return k, numbers(decode_all(pool, movie, DecodeJob(JOB.geometry, 1, start_ms=k * 100, end_ms=k * 100 + 100)))

    with ThreadPoolExecutor(8) as threads:
        for k, got in threads.map(decode, list(range(30)) * 2):
            assert got == [k]


def test_frames_outlive_the_pool_and_no_descriptor_leaks(movie: Path) -> None:
    descriptors = num_descriptors()
    with DecodePool(1) as short:
        batches = [decode_all(short, movie, JOB) for _ in range(20)]
        during = num_descriptors()
    assert numbers(batches[0]) == numbers(batches[-1]) == NUMBERS
    assert during - descriptors < 10 + len(batches) * 2
    batches.clear()
    assert num_descriptors() == descriptors


# --- failures

FAULTS = {
    "crash": "The video made the decoder fail.",
    "exit": "The video made the decoder fail.",
    "allocate": "Decoding the video takes more memory than is allowed.",
    "bug": UndecodableVideo.title,
    "wrong_size": UndecodableVideo.title,
    "missing_timestamp": UndecodableVideo.title,
}


@pytest.mark.parametrize(("name", "text"), FAULTS.items(), ids=list(FAULTS))
def test_faulty_decode_is_an_error_and_the_next_request_succeeds(
    pool: DecodePool, movie: Path, tmp_path: Path, name: str, text: str
) -> None:
    for _ in range(3):  # more often than the number of processes
        with pytest.raises(UndecodableVideo) as caught:
            decode_all(pool, faulty_file(tmp_path, name), JOB)
        assert str(caught.value) == text
        assert numbers(decode_all(pool, movie, JOB)) == NUMBERS
    if name == "crash":
        assert "SIGSEGV" in caught.value.internal


def test_hanging_process_is_killed_and_the_next_request_succeeds(movie: Path, tmp_path: Path) -> None:
    with DecodePool(1, PoolLimits(timeout_seconds=0.5), entry=HOOKS) as single:
        (pid,) = worker_pids(single)
        started = time.monotonic()
        with pytest.raises(UndecodableVideo, match=r"took longer than 0\.5 s"):
            decode_all(single, faulty_file(tmp_path, "hang"), JOB)
        assert 0.5 <= time.monotonic() - started < PATIENCE_SECONDS
        wait_for_end(pid)
        assert numbers(_decode_with_retries(single, movie)) == NUMBERS
        assert worker_pids(single) != [pid]


def _decode_with_retries(pool: DecodePool, path: Path) -> FrameBatch:
    """The short timeout of the pool may expire on a busy machine."""
    for _ in range(20):
        try:
            return decode_all(pool, path, JOB)
        except UndecodableVideo as error:
            last = error
    raise last


def test_timeout_interrupts_native_code(tmp_path: Path) -> None:
    """One keyframe, then hundreds of frames before the requested one."""
    flat = np.full((360, 640, 3), 99, np.uint8)
    path = tmp_path / "deep.mp4"
    videos.write_video(path, width=640, height=360, num_frames=250, gop=250, picture=lambda _: flat)
    late = DecodeJob(JOB.geometry, 1, start_ms=24_900)
    with DecodePool(1, PoolLimits(timeout_seconds=0.01), num_threads=1) as single:
        (pid,) = worker_pids(single)
        with pytest.raises(UndecodableVideo, match=r"took longer than 0\.01 s"):
            decode_all(single, path, late)
        wait_for_end(pid)


def test_flipped_bits_give_frames_or_a_client_error(pool: DecodePool, movie: Path, tmp_path: Path) -> None:
    outcomes = []
    for seed in range(12):
        try:
            outcomes.append(len(decode_all(pool, videos.flip_bits(movie, tmp_path / "f.mp4", seed=seed), JOB).frames))
        except VidlexError as error:
            outcomes.append(error.status)
    assert set(outcomes) <= {5, 415, 422}
    assert numbers(decode_all(pool, movie, JOB)) == NUMBERS


def test_process_that_dies_while_idle_is_replaced(movie: Path) -> None:
    with DecodePool(1) as single:
        (pid,) = worker_pids(single)
        os.kill(pid, signal.SIGKILL)
        wait_for_end(pid)
        assert numbers(decode_all(single, movie, JOB)) == NUMBERS
        assert single.num_alive == 1


def test_process_is_replaced_after_its_number_of_files(movie: Path) -> None:
    with DecodePool(1, PoolLimits(max_jobs_per_process=2)) as single:
        seen = []
        for _ in range(4):
            seen.append(worker_pids(single))
            decode_all(single, movie, JOB)
        assert len({pid for pids in seen for pid in pids}) >= 2
        assert numbers(decode_all(single, movie, JOB)) == NUMBERS


def test_failed_start_raises() -> None:
    with pytest.raises(StartFailed, match="ModuleNotFoundError"):
        DecodePool(2, entry="no_such_module:decode").start()
    with pytest.raises(StartFailed, match="no reply"):
        DecodePool(1, PoolLimits(start_timeout_seconds=0.001)).start()
    with pytest.raises(RuntimeError, match="not started"):
        decode_all(DecodePool(1), Path("x"), JOB)
    with pytest.raises(ValueError, match="num_workers"):
        DecodePool(0)


# --- queueing


class Gate:
    """A file that keeps one process busy until it is opened."""

    def __init__(self, folder: Path, movie: Path, signals: Signals) -> None:
        self.path = write_hook(folder / "gate.mp4", "gate", start=movie.read_bytes())
        self._signals = signals

    def wait_until_busy(self) -> None:
        self._signals.num_reports(1)

    def open(self) -> None:
        self._signals.answer()


def test_full_queue_rejects_immediately(movie: Path, tmp_path: Path, signals: Signals) -> None:
    gate = Gate(tmp_path, movie, signals)
    limits = PoolLimits(max_waiting=2)
    with DecodePool(1, limits, entry=HOOKS) as single, ThreadPoolExecutor(4) as threads:
        busy = threads.submit(decode_all, single, gate.path, JOB)
        gate.wait_until_busy()
        waiting = [threads.submit(decode_all, single, movie, JOB) for _ in range(2)]
        until(lambda: single.num_unfinished == 3)
        with pytest.raises(Overloaded):
            decode_all(single, movie, JOB)
        gate.open()
        assert [numbers(task.result(PATIENCE_SECONDS)) for task in (busy, *waiting)] == [NUMBERS] * 3
        assert numbers(decode_all(single, movie, JOB)) == NUMBERS


def test_waiting_for_a_process_times_out(movie: Path, tmp_path: Path, signals: Signals) -> None:
    gate = Gate(tmp_path, movie, signals)
    with DecodePool(1, entry=HOOKS) as single, ThreadPoolExecutor(1) as threads:
        busy = threads.submit(decode_all, single, gate.path, JOB)
        gate.wait_until_busy()
        with pytest.raises(Overloaded, match="No decoder was free"):
            decode_all(single, movie, JOB, wait_seconds=0.05)
        gate.open()
        assert numbers(busy.result(PATIENCE_SECONDS)) == NUMBERS
        assert single.num_unfinished == 0


def test_close_kills_processes_and_rejects_requests(movie: Path, tmp_path: Path, signals: Signals) -> None:
    gate = Gate(tmp_path, movie, signals)
    single = DecodePool(1, entry=HOOKS)
    single.start()
    (pid,) = worker_pids(single)
    with ThreadPoolExecutor(2) as threads:
        busy = threads.submit(decode_all, single, gate.path, JOB)
        gate.wait_until_busy()
        waiting = threads.submit(decode_all, single, movie, JOB)
        until(lambda: single.num_unfinished == 2)
        single.close()
        for task in (busy, waiting):
            with pytest.raises(Overloaded, match="stopping"):
                task.result(PATIENCE_SECONDS)
    wait_for_end(pid)
    assert single.num_alive == 0
    with pytest.raises(Overloaded):
        decode_all(single, movie, JOB)
    single.close()


def test_processes_outlive_the_thread_that_started_the_pool(movie: Path) -> None:
    """The parent-death signal of the kernel is sent at the end of a thread, not of a process."""
    pool = DecodePool(1)
    starter = threading.Thread(target=pool.start)
    starter.start()
    starter.join()
    try:
        (pid,) = worker_pids(pool)
        assert numbers(decode_all(pool, movie, JOB)) == NUMBERS
        assert worker_pids(pool) == [pid]
    finally:
        pool.close()


def test_cores_are_divided_among_unfinished_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidlex.service.decode.file_queue.num_cpus", lambda: 4)
    assert [threads_per_file(files) for files in (0, 1, 2, 3, 4, 9)] == [4, 4, 2, 1, 1, 1]
    assert [threads_per_file(files, 2) for files in (1, 2, 9)] == [2, 1, 1]
