"""Decoding segments in one pass equals two passes, the first of which only measures the duration."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support import videos
from support.decode_all import decode_all
from support.serving import add, assert_problem, classify, serving
from vidlex.model.decode.decoder import decode_frames
from vidlex.model.decode.limits import DecodeError, DecodeLimits
from vidlex.model.types import FrameBatch, FrameGeometry
from vidlex.service.decode.pool import DecodeJob, DecodePool, PoolLimits
from vidlex.service.errors import InvalidParameter

GEOMETRY = FrameGeometry(32, "squash")
LIMITS = DecodeLimits(max_frames=120, max_total_frames=120)
UNEVEN = [0, 40, 90, 400, 1500, 1510, 1520, 2600, 2700, 3900, 4000, 4100]
WRITERS: dict[str, Callable[[Path], Path]] = {
    "steady.mp4": lambda path: videos.write_video(path, num_frames=43),
    "uneven.mp4": lambda path: videos.write_video(path, num_frames=len(UNEVEN), pts_ms=UNEVEN, gop=4),
    "uneven.mkv": lambda path: videos.write_video(path, num_frames=len(UNEVEN), pts_ms=[t + 700 for t in UNEVEN]),
    "still.mp4": lambda path: videos.write_video(path, num_frames=1),
    "sound.mp4": lambda path: videos.write_video(path, num_frames=20, audio_seconds=3.5),
    "stream.ts": lambda path: videos.write_video(path, num_frames=25),
    "short.avi": lambda path: videos.write_video(path, num_frames=12, codec="mpeg4"),
}
JOBS: list[dict[str, Any]] = [
    {"num_frames": 4, "segment_ms": 1000},
    {"num_frames": 1, "segment_ms": 333, "policy": "keyframes"},
    {"num_frames": 3, "segment_ms": 700, "start_ms": 50, "end_ms": 1100},
    {"num_frames": 2, "segment_ms": 90, "start_ms": 99},
    {"num_frames": 8, "segment_ms": 100_000, "end_ms": 5_000_000},
    {"num_frames": 40, "segment_ms": 1000},
    {"num_frames": 2, "segment_ms": 1000, "start_ms": 3000},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for name, write in WRITERS.items():
        write(folder / name)
    return folder


def two_passes(path: Path, num_frames: int, segment_ms: int, **job: Any) -> FrameBatch | None:
    """The reference implementation; None if the segments need too many frames."""
    duration_ms = decode_frames(path, geometry=GEOMETRY, num_frames=1, limits=LIMITS, **job).video.duration_ms
    end_ms = min(job.get("end_ms") or duration_ms, duration_ms)
    num_frames *= len(range(job.get("start_ms") or 0, end_ms, segment_ms))
    if num_frames > LIMITS.max_frames:
        return None
    return decode_frames(path, geometry=GEOMETRY, num_frames=num_frames, limits=LIMITS, **job)


def one_pass(path: Path, **job: Any) -> FrameBatch:
    return decode_frames(path, geometry=GEOMETRY, limits=LIMITS, **job)


def outcome(decode: Callable[..., FrameBatch | None], path: Path, job: dict[str, Any]) -> tuple[Any, ...]:
    try:
        batch = decode(path, **job)
    except DecodeError as error:
        return (error.code,) if error.code == "too_many_frames" else (error.code, str(error))
    if batch is None:
        return ("too_many_frames",)
    return batch.frames.shape, batch.frames.tobytes(), batch.timestamps_ms, batch.video


@pytest.mark.parametrize("name", WRITERS)
def test_one_pass_equals_two_passes(folder: Path, name: str) -> None:
    path = folder / name
    for job in JOBS:
        assert outcome(one_pass, path, job) == outcome(two_passes, path, job), job


def test_the_jobs_cover_each_outcome(folder: Path) -> None:
    outcomes = [outcome(two_passes, folder / "uneven.mp4", job) for job in JOBS]
    assert {len(x) for x in outcomes} == {1, 4} and len({x[0] for x in outcomes if len(x) == 4}) >= 4
    assert outcome(two_passes, folder / "still.mp4", JOBS[-1])[:1] == ("invalid_parameter",)


def test_one_pass_equals_two_passes_for_truncated_files(folder: Path, tmp_path: Path) -> None:
    for keep in (0.3, 0.6, 0.9):
        path = videos.truncate(folder / "stream.ts", tmp_path / "cut.ts", keep)
        for job in JOBS:
            assert outcome(one_pass, path, job) == outcome(two_passes, path, job), (keep, job)


@pytest.fixture(scope="module")
def pool() -> Iterator[DecodePool]:
    with DecodePool(1, PoolLimits(decode=LIMITS)) as running:
        yield running


def test_a_decode_process_returns_as_many_frames_as_the_file_needs(pool: DecodePool, folder: Path) -> None:
    for name in ("steady.mp4", "uneven.mp4"):
        expected = two_passes(folder / name, 3, 1000, start_ms=150)
        batch = decode_all(pool, folder / name, DecodeJob(GEOMETRY, 3, start_ms=150, segment_ms=1000))
        assert expected is not None and (expected.frames == batch.frames).all()
        assert (expected.timestamps_ms, expected.video) == (batch.timestamps_ms, batch.video)
    with pytest.raises(InvalidParameter) as caught:
        decode_all(pool, folder / "steady.mp4", DecodeJob(GEOMETRY, 40, segment_ms=1000))
    assert caught.value.extra["max_frames"] == 120
    for job in (DecodeJob(GEOMETRY, 3, segment_ms=0), DecodeJob(GEOMETRY, 121, segment_ms=10**9)):
        with pytest.raises(InvalidParameter):
            decode_all(pool, folder / "steady.mp4", job)
    assert pool.num_alive == 1


def test_a_request_decodes_its_file_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: list[DecodeJob] = []
    decode_chunks = DecodePool.decode_chunks

    def counted(self: DecodePool, path: Path, job: DecodeJob, **options: Any) -> Any:
        jobs.append(job)
        return decode_chunks(self, path, job, **options)

    monkeypatch.setattr(DecodePool, "decode_chunks", counted)
    with serving(tmp_path, max_frames=64, max_total_frames=64) as client:
        add(client, "red")
        body = classify(client, folder / "steady.mp4", aggregate_by="segments", segment_ms=1000).json()
        assert len(body["labels"][0]["segments"]) == 5 and body["coverage"]["frames_requested"] == 20
        assert [(job.num_frames, job.segment_ms) for job in jobs] == [(4, 1000)]
        answer = classify(client, folder / "steady.mp4", aggregate_by="segments", segment_ms=100)
        assert assert_problem(answer, 422, "invalid_parameter")["max_frames"] == 64
