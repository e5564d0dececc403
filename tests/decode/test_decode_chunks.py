"""Decoding in chunks: equality with one batch, back-pressure, timeouts, stops, and replies that lie."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from support import videos
from support.decode_all import decode_all
from support.decode_hooks import Signals, write_hook, write_made_up
from support.paths import TESTS
from support.processes import PATIENCE_SECONDS, num_descriptors, until, wait_for_end, worker_pids
from vidlex.model.decode.limits import DecodeLimits
from vidlex.model.types import FrameBatch, FrameGeometry
from vidlex.service.decode.pool import DecodeJob, DecodePool, PoolLimits
from vidlex.service.errors import InvalidParameter, Overloaded, UndecodableVideo, VideoTooLong, VidlexError
from vidlex.service.sharing.requester import Requester

HOOKS = "support.decode_hooks:decode"
GEOMETRY = FrameGeometry(32)
LOOKS = DecodeJob(GEOMETRY, 8, "shots")
STOPPED_WITHIN_SECONDS = 5.0  # a second, and time to notice on a busy machine


@pytest.fixture(scope="module", autouse=True)
def hooks_can_be_imported() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(TESTS))
        yield


@pytest.fixture(scope="module")
def signals(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Signals]:
    """With all pools."""
    folder = tmp_path_factory.mktemp("signals")
    made = Signals(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))
        yield made
    made.close()


@pytest.fixture(scope="module")
def pool(hooks_can_be_imported: None, signals: Signals) -> Iterator[DecodePool]:
    with DecodePool(1, PoolLimits(max_chunk_frames=4), entry=HOOKS) as running:
        yield running


@pytest.fixture(scope="module")
def movie(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return videos.write_video(tmp_path_factory.mktemp("movie") / "numbers.mp4", num_frames=43)


def hook(folder: Path, name: str, content: Any = None) -> Path:
    return write_hook(folder / f"{name}.mp4", name, content)


def times_of(pool: DecodePool, path: Path, job: DecodeJob) -> list[tuple[int, ...]]:
    with pool.decode_chunks(path, job) as stream:
        return [chunk.timestamps_ms for chunk in stream]


def works(pool: DecodePool, movie: Path) -> bool:
    return len(decode_all(pool, movie, DecodeJob(GEOMETRY, 5)).frames) == 5


# --- results


JOBS = [
    DecodeJob(GEOMETRY, 1),
    DecodeJob(GEOMETRY, 4),
    DecodeJob(GEOMETRY, 30),
    DecodeJob(GEOMETRY, 8, "shots"),
    DecodeJob(GEOMETRY, 9, "keyframes"),
    DecodeJob(GEOMETRY, 3, start_ms=150, segment_ms=700),
]


@pytest.mark.parametrize("max_chunk_frames", [1, 4, 32])
def test_chunks_joined_are_the_whole(movie: Path, max_chunk_frames: int) -> None:
    from vidlex.model.decode.decoder import decode_chunks

    with DecodePool(1, PoolLimits(max_chunk_frames=max_chunk_frames)) as single:
        for job in JOBS:
            (whole,) = decode_chunks(movie, max_chunk_frames=1000, **vars(job))
            batch = decode_all(single, movie, job)
            assert (batch.frames == whole.frames).all() and batch.timestamps_ms == whole.timestamps_ms
            assert (batch.video, batch.warnings, batch.num_failed) == (whole.video, whole.warnings, whole.num_failed)
            assert whole.content is not None and batch.content is not None
            for name, flags in vars(whole.content).items():
                assert (getattr(batch.content, name) == flags).all()
            sizes = [len(times) for times in times_of(single, movie, job)]
            assert max(sizes) <= max_chunk_frames and sum(sizes) == len(whole.frames)


def test_content_of_frames_arrives(pool: DecodePool, tmp_path: Path) -> None:
    looks = [
        {"time_ms": 0, "colour": [0, 0, 0], "is_blank": True},
        {"time_ms": 100, "colour": [9, 9, 9], "starts_shot": True},
        {"time_ms": 200, "colour": [9, 9, 9], "is_repeated": True},
    ]
    path = write_made_up(tmp_path / "v.mp4", looks, duration_ms=300, num_repeats=3)
    content = decode_all(pool, path, LOOKS).content
    assert content is not None
    assert content.is_blank.tolist() == [True, False, False] * 3
    assert content.starts_shot.tolist() == [False, True, False] * 3
    assert content.is_repeated.tolist() == [False, False, True] * 3


def test_the_decoder_is_named(pool: DecodePool) -> None:
    import av

    assert pool.decoder == f"PyAV {av.__version__}, FFmpeg {av.ffmpeg_version_info}"
    assert DecodePool(1).decoder == ""


def test_large_frames_come_in_small_chunks(pool: DecodePool, movie: Path) -> None:
    job = DecodeJob(FrameGeometry(1200), 3)  # 4.3 MB each, two of which exceed a chunk
    assert [len(times) for times in times_of(pool, movie, job)] == [1, 1, 1]


def test_too_many_frames_in_all(movie: Path) -> None:
    limits = PoolLimits(decode=DecodeLimits(max_frames=10, max_total_frames=20))
    with DecodePool(1, limits) as single:
        assert len(decode_all(single, movie, DecodeJob(GEOMETRY, 4, segment_ms=1000)).frames) == 20
        with pytest.raises(InvalidParameter, match="more than 20 frames") as caught:
            decode_all(single, movie, DecodeJob(GEOMETRY, 5, segment_ms=1000))
        assert caught.value.extra["max_frames"] == 20
        with pytest.raises(InvalidParameter, match="between 1 and 10"):
            decode_all(single, movie, DecodeJob(GEOMETRY, 11))
        assert single.num_alive == 1


# --- back-pressure


def test_the_process_is_one_chunk_ahead(pool: DecodePool, tmp_path: Path, signals: Signals) -> None:
    signals.num_reports(0)  # of tests before
    with pool.decode_chunks(hook(tmp_path, "endless"), LOOKS) as stream:
        first = next(stream)
        assert signals.num_reports(2, 0.3) == 2  # the second is decoded, and waits
        assert (first.frames == 0).all()
        assert (next(stream).frames == 1).all()
        assert signals.num_reports(1, 0.3) == 1
        assert (next(stream).frames == 2).all()


def test_a_chunk_is_intact_until_the_next_one(pool: DecodePool, tmp_path: Path) -> None:
    with pool.decode_chunks(hook(tmp_path, "endless"), LOOKS) as stream:
        for number, chunk in enumerate(stream):
            assert (chunk.frames == number).all() and chunk.timestamps_ms == (100 * number,)
    assert number == 199


def test_waiting_for_the_request_is_no_timeout(movie: Path, tmp_path: Path) -> None:
    with DecodePool(1, PoolLimits(timeout_seconds=1.0), entry=HOOKS) as single:
        pids = worker_pids(single)
        with single.decode_chunks(hook(tmp_path, "endless"), LOOKS) as stream:
            next(stream)
            threading.Event().wait(1.5)
            assert (next(stream).frames == 1).all()
        assert worker_pids(single) == pids


# --- failures


def test_failures_between_chunks(movie: Path, tmp_path: Path) -> None:
    failures: tuple[tuple[str, type[VidlexError], str], ...] = (
        ("crash_later", UndecodableVideo, "made the decoder fail"),
        ("hang_later", UndecodableVideo, r"took longer than 0\.5 s"),
        ("fail_later", VideoTooLong, "too long after all"),
    )
    with DecodePool(1, PoolLimits(timeout_seconds=0.5), entry=HOOKS) as single:
        for name, error, text in failures:
            seen: list[tuple[int, ...]] = []
            with pytest.raises(error, match=text), single.decode_chunks(hook(tmp_path, name), LOOKS) as stream:
                seen.extend(chunk.timestamps_ms for chunk in stream)
            assert seen[0] == (0,), name
            until(lambda: single.num_alive == 1)
            assert single.num_unfinished == 0


FORGED: dict[str, dict[str, Any]] = {
    "no_times": {"timestamps_ms": []},
    "too_many_times": {"timestamps_ms": list(range(100, 200))},
    "times_of_text": {"timestamps_ms": ["100"]},
    "negative_time": {"timestamps_ms": [-1]},
    "time_before_the_last_chunk": {"timestamps_ms": [-100]},
    "huge_time": {"timestamps_ms": [10**18]},
    "times_that_are_no_list": {"timestamps_ms": {"0": 100}},
    "no_video": {"video": None},
    "a_list_for_a_video": {"video": []},
    "infinite_rate": {"video": {"fps": math.inf}},
    "content_too_short": {"content": {"is_blank": [], "is_repeated": [], "starts_shot": []}},
    "content_of_numbers": {"content": {"is_blank": [2], "is_repeated": [0], "starts_shot": [0]}},
    "content_of_text": {"content": "is_blank is_repeated starts_shot"},
    "too_many_failed": {"num_failed": 2},
    "failed_as_bool": {"num_failed": True},
    "warning_with_markup": {"warnings": [["<b>", "x"]]},
    "many_warnings": {"warnings": [["a", "x"]] * 1000},
    "warnings_of_text": {"warnings": ["ab"]},
    "half_a_warning": {"warnings": [["a"]]},
    "endless_length": {"length_only": True},
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_reply_is_an_error_and_ends_the_process(
    pool: DecodePool, movie: Path, tmp_path: Path, name: str
) -> None:
    (pid,) = worker_pids(pool)
    chunks: list[FrameBatch] = []
    path = hook(tmp_path, "forge", FORGED[name])
    with pytest.raises(UndecodableVideo) as caught, pool.decode_chunks(path, LOOKS) as stream:
        chunks.extend(stream)
    assert len(chunks) == 1
    assert str(tmp_path) not in str(caught.value)
    wait_for_end(pid)
    assert works(pool, movie)


# --- stops


def test_a_file_is_dropped_at_the_next_chunk_and_the_process_stays(
    pool: DecodePool, movie: Path, tmp_path: Path
) -> None:
    pids, restarts = worker_pids(pool), pool.num_restarts
    for num_taken in (0, 1, 3):
        with pool.decode_chunks(hook(tmp_path, "endless"), LOOKS) as stream:
            for _ in range(num_taken):
                next(stream)
        assert pool.num_unfinished == 0
        assert works(pool, movie)
    assert (worker_pids(pool), pool.num_restarts) == (pids, restarts)


@pytest.mark.parametrize("reason", ["cancelled", "deadline"])
def test_a_hanging_file_is_given_up_and_others_are_not(
    movie: Path, tmp_path: Path, signals: Signals, reason: str
) -> None:
    """Long before the timeout of a chunk."""
    cancelled = threading.Event()

    def cancel_once_it_hangs() -> None:
        signals.num_reports(1)
        if reason == "cancelled":
            cancelled.set()

    watcher = threading.Thread(target=cancel_once_it_hangs)
    signals.num_reports(0)  # of tests before
    with DecodePool(2, PoolLimits(max_chunk_frames=4), entry=HOOKS) as pair:
        pids = set(worker_pids(pair))
        with pair.decode_chunks(hook(tmp_path, "endless"), LOOKS) as other:
            next(other)
            signals.num_reports(2)  # of this file, which is one chunk ahead
            watcher.start()
            started = time.monotonic()
            deadline = started + 1.0 if reason == "deadline" else math.inf
            with (
                pytest.raises(Overloaded, match="in time" if reason == "deadline" else "cancelled"),
                pair.decode_chunks(
                    hook(tmp_path, "hang_later"), LOOKS, requester=Requester(deadline=deadline, cancelled=cancelled)
                ) as stream,
            ):
                list(stream)
            watcher.join(PATIENCE_SECONDS)
            assert time.monotonic() - started < STOPPED_WITHIN_SECONDS
            until(lambda: len(pids & set(worker_pids(pair))) == 1)  # the hanging one is killed
            assert len(list(other)) == 199
        assert works(pair, movie)
        assert len(pids & set(worker_pids(pair))) == 1


def test_cancelled_while_no_process_is_free(pool: DecodePool, movie: Path, tmp_path: Path) -> None:
    cancelled = threading.Event()
    with pool.decode_chunks(hook(tmp_path, "endless"), LOOKS) as busy, ThreadPoolExecutor(1) as threads:
        next(busy)

        def wait() -> None:
            with pool.decode_chunks(movie, LOOKS, requester=Requester(cancelled=cancelled)):
                raise AssertionError("a process was free")

        waiting = threads.submit(wait)
        until(lambda: pool.num_unfinished == 2)
        cancelled.set()
        with pytest.raises(Overloaded, match="cancelled"):
            waiting.result(PATIENCE_SECONDS)
        assert pool.num_unfinished == 1
    assert works(pool, movie)


def test_close_ends_a_request_between_chunks(tmp_path: Path) -> None:
    single = DecodePool(1, entry=HOOKS)
    single.start()
    with single.decode_chunks(hook(tmp_path, "endless"), LOOKS) as stream:
        next(stream)
        single.close()
        with pytest.raises(Overloaded, match="stopping"):
            list(stream)
    assert single.num_alive == 0 and single.num_unfinished == 0


def test_dropped_files_leak_no_descriptor(pool: DecodePool, movie: Path, tmp_path: Path) -> None:
    assert works(pool, movie)
    before = num_descriptors()
    for _ in range(20):
        with pool.decode_chunks(hook(tmp_path, "endless"), LOOKS) as stream:
            next(stream)
    assert works(pool, movie)
    assert num_descriptors() <= before + 1  # the memory of the last file
