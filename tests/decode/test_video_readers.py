"""Selected frames are exactly those of decoding the whole file. No torch is imported."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from support import videos
from vidlex.model.decode.decoder import decode_chunks, decode_frames
from vidlex.model.decode.framing import scaled_size
from vidlex.model.decode.limits import DecodeLimits
from vidlex.model.decode.probe import read_header
from vidlex.model.decode.readers import ReaderError, read_by_time
from vidlex.model.decode.scaler import Scaler
from vidlex.model.decode.video_file import split_among_decoders
from vidlex.model.types import FrameBatch, FrameGeometry

SQUARE = FrameGeometry(96)


def decode(path: Path, num_frames: int = 5, **job: int) -> FrameBatch:
    return decode_frames(path, geometry=SQUARE, num_frames=num_frames, **job)


def numbers(batch: FrameBatch) -> list[int]:
    return [videos.read_number(frame) for frame in batch.frames]


def read_both_ways(path: Path, geometry: FrameGeometry, indices: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Pictures found by their time stamps, and the same ones of a decode of the whole file."""
    header = read_header(path, DecodeLimits())
    assert header.index is not None
    size = scaled_size(geometry, header.width, header.height)
    by_time = read_by_time(header, header.index, np.array(indices), size=size, limits=DecodeLimits(), num_threads=2)
    with av.open(str(path)) as container:
        scaler = Scaler(size, header.orientation)
        whole = [scaler(frame) for number, frame in enumerate(container.decode(video=0)) if number in indices]
    return np.stack([frame.picture for frame in by_time]), np.stack(whole)


@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_selected_frames_have_the_pixels_of_the_whole_file(tmp_path: Path, rotation: int, mode: str) -> None:
    options = {"preset": "medium"}
    path = videos.write_video(tmp_path / "v.mp4", rotation=rotation, num_frames=60, gop=20, options=options)
    for size in (70, 96):
        by_time, whole = read_both_ways(path, FrameGeometry(size, mode), [0, 7, 8, 19, 20, 41, 59])  # type: ignore[arg-type]
        assert by_time.shape == whole.shape
        assert (by_time == whole).all()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mpeg4.avi", {"codec": "mpeg4"}),
        ("pyramid.mkv", {"options": {"preset": "medium", "x264-params": "bframes=4:b-pyramid=normal"}}),
        ("av1.mkv", {"codec": "libsvtav1"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_skipping_frames_does_not_change_the_others(tmp_path: Path, name: str, options: dict) -> None:
    if not videos.has_encoder(options.get("codec", "libx264")):
        pytest.skip("this build of FFmpeg cannot write it")
    path = videos.write_video(tmp_path / name, **options)
    for indices in ([2, 11, 13, 29], [0, 12], list(range(30))):
        by_time, whole = read_both_ways(path, FrameGeometry(70), indices)
        assert (by_time == whole).all()
        assert [videos.read_number(picture, (0.2, 0, 0.8, 1)) for picture in by_time] == indices


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("b_frames.ts", {"options": {"preset": "medium", "x264-params": "bframes=4:b-pyramid=normal"}}),
        ("closed.mp4", {"codec": "libx265", "options": {"x265-params": "log-level=none:open-gop=0"}}),
        ("open.mkv", {"codec": "libx265", "options": {"x265-params": "log-level=none:open-gop=1"}}),
        ("superframes.webm", {"codec": "libvpx-vp9"}),
        ("b_frames.avi", {"codec": "mpeg4", "options": {"bf": "2"}}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_frames_equal_those_of_decoding_the_whole_file(tmp_path: Path, name: str, options: dict) -> None:
    """Files for most of which decord fails or returns wrong frames."""
    if not videos.has_encoder(options.get("codec", "libx264")):
        pytest.skip("this build of FFmpeg cannot write it")
    path = videos.write_video(tmp_path / name, width=96, **options)
    with av.open(str(path)) as container:
        all_frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    for start, num_frames in ((0, 30), (0, 5), (1100, 4), (2500, 2)):
        batch = decode(path, num_frames, start_ms=start)
        for frame, time in zip(batch.frames, batch.timestamps_ms, strict=True):
            assert videos.read_number(frame) == time // 100
            assert (frame == all_frames[time // 100]).all()


def test_frames_that_are_not_where_the_index_says_are_found_by_decoding_the_whole_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ReaderError("no frame at any time")

    path = videos.write_video(tmp_path / "plain.mp4", options={"preset": "medium"})
    expected = decode(path, 7)
    monkeypatch.setattr("vidlex.model.decode.video_file.read_by_time", fail)
    scanned = decode(path, 7)
    assert (scanned.frames == expected.frames).all()
    assert (scanned.timestamps_ms, scanned.num_failed) == (expected.timestamps_ms, 0)
    chunks = list(decode_chunks(path, max_chunk_frames=3, geometry=SQUARE, num_frames=7))
    assert (np.concatenate([chunk.frames for chunk in chunks]) == expected.frames).all()


@pytest.mark.parametrize("size", [1, 3, 7, 100])
@pytest.mark.parametrize("job", [{}, {"policy": "keyframes"}, {"segment_ms": 900}, {"policy": "shots"}], ids=str)
def test_chunks_are_the_frames_of_one_batch(tmp_path: Path, size: int, job: dict) -> None:
    path = videos.write_video(tmp_path / "v.mp4", num_frames=300, gop=25, options={"preset": "medium"})
    (whole,) = decode_chunks(path, max_chunk_frames=1000, geometry=SQUARE, num_frames=8, **job)
    chunks = list(decode_chunks(path, max_chunk_frames=size, geometry=SQUARE, num_frames=8, **job))
    assert all(len(chunk.frames) == size for chunk in chunks[:-1])
    assert (np.concatenate([chunk.frames for chunk in chunks]) == whole.frames).all()
    assert tuple(time for chunk in chunks for time in chunk.timestamps_ms) == whole.timestamps_ms
    assert {chunk.video for chunk in chunks} == {whole.video}
    assert tuple(warning for chunk in chunks for warning in chunk.warnings) == whole.warnings
    for name in ("is_blank", "is_repeated", "starts_shot"):
        parts = [getattr(chunk.content, name) for chunk in chunks]
        assert (np.concatenate(parts) == getattr(whole.content, name)).all()


@pytest.mark.parametrize("threads", [1, 2, 3, 0])
@pytest.mark.parametrize("policy", ["uniform", "keyframes"])
def test_parallel_decoders_return_the_same_frames(tmp_path: Path, threads: int, policy: str) -> None:
    """With groups of pictures of unequal length and repeated frames."""
    path = videos.write_video(tmp_path / "v.mp4", width=96, num_frames=90, gop=20, options={"preset": "medium"})
    with av.open(str(path)) as container:
        all_frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    for num_frames, window in ((1, {}), (2, {}), (7, {}), (90, {}), (12, {"start_ms": 3500, "end_ms": 4100})):
        batch = decode_frames(
            path, geometry=SQUARE, num_frames=num_frames, policy=policy, num_threads=threads, **window
        )
        assert len(batch.timestamps_ms) == num_frames
        for frame, time in zip(batch.frames, batch.timestamps_ms, strict=True):
            assert (frame == all_frames[time // 100]).all()


@pytest.mark.parametrize("gop", [5, 90])
def test_the_number_of_threads_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gop: int) -> None:
    """Each thread of each decoder holds pictures in memory."""
    threads: list[int] = []

    def counted(*arguments: Any, num_threads: int, **options: Any) -> Any:
        threads.append(num_threads)
        return read_by_time(*arguments, num_threads=1, **options)

    monkeypatch.setattr("vidlex.model.decode.video_file.read_by_time", counted)
    path = videos.write_video(tmp_path / "v.mp4", width=96, num_frames=90, gop=gop)
    decode_frames(path, geometry=SQUARE, num_frames=90, num_threads=64)
    assert 2 <= sum(threads) <= 16


def test_decoder_parts_cover_every_frame_once_and_keep_groups_together(tmp_path: Path) -> None:
    path = videos.write_video(tmp_path / "v.mp4", num_frames=90, gop=10)
    index = read_header(path, DecodeLimits()).index
    assert index is not None and len(index.keyframes) == 9
    for indices in ([5], [5, 6, 7], [0, 25, 55, 88], list(range(90)), [9, 10, 11, 79]):
        for max_decoders in (1, 2, 3, 8):
            parts = split_among_decoders(index, np.array(indices), max_decoders)
            assert [i for first, last in parts for i in range(first, last)] == list(range(len(indices)))
            assert len(parts) <= max_decoders
            for (_, last), (first, _) in pairwise(parts):
                assert indices[last - 1] // 10 < indices[first] // 10, "a group of pictures is decoded twice"
    assert len(split_among_decoders(index, np.array([5, 35, 65, 85]), 2)) == 2
    assert len(split_among_decoders(index, np.array([3, 5, 9, 10]), 2)) == 1, "one group has most of the work"


def test_a_decode_process_loads_no_torch() -> None:
    """A decode process takes about 50 MB; torch takes hundreds."""
    code = "import sys, vidlex.model.decode.decoder; assert 'torch' not in sys.modules and 'decord' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
