"""Files by path and by descriptor: each reader has a position of its own."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import numpy as np
import pytest

from support import videos
from support.decode_all import decode_all
from vidlex.model.decode.decoder import decode_frames
from vidlex.model.decode.limits import DecodeError
from vidlex.model.decode.source import OpenFile, num_bytes_of, open_unbuffered
from vidlex.model.types import FrameGeometry
from vidlex.service.decode.pool import DecodeJob, DecodePool
from vidlex.service.errors import UnsupportedMedia

GEOMETRY = FrameGeometry(32)


def test_readers_of_one_descriptor_do_not_move_each_other(tmp_path: Path) -> None:
    path = tmp_path / "v.bin"
    path.write_bytes(bytes(range(100)))
    descriptor = os.open(path, os.O_RDONLY)
    try:
        source = OpenFile(descriptor)
        assert num_bytes_of(source) == num_bytes_of(path) == 100
        with source.open() as first, source.open() as second, open_unbuffered(source) as third:
            assert first.read(10) == bytes(range(10))
            second.seek(50)
            assert third.seek(-5, os.SEEK_END) == 95
            assert (first.read(2), second.read(2), third.read(9)) == (b"\x0a\x0b", b"23", bytes(range(95, 100)))
            assert third.seek(-3, os.SEEK_CUR) == third.tell() == 97
            assert third.read() == bytes(range(97, 100)) and third.read(1) == b""
            with pytest.raises(ValueError, match="position"):
                third.seek(-1)
        os.fstat(descriptor)  # it is the caller's
        with pytest.raises(ValueError, match="reading"):
            source.open("wb")
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("num_threads", [1, 4])
def test_a_descriptor_gives_the_frames_of_the_path(tmp_path: Path, num_threads: int) -> None:
    """Four decoders read at four places at the same time."""
    path = videos.write_video(tmp_path / "v.mp4", num_frames=80, gop=5)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        by_path, by_descriptor = (
            decode_frames(source, geometry=GEOMETRY, num_frames=16, num_threads=num_threads)
            for source in (path, OpenFile(descriptor))
        )
    finally:
        os.close(descriptor)
    assert np.array_equal(by_path.frames, by_descriptor.frames)
    assert (by_path.timestamps_ms, by_path.video) == (by_descriptor.timestamps_ms, by_descriptor.video)


def test_no_descriptor_is_kept(tmp_path: Path) -> None:
    path = videos.write_video(tmp_path / "v.mp4")
    decode_frames(path, geometry=GEOMETRY, num_frames=4)
    gc.collect()  # what other tests have left is not closed in between
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        decode_frames(path, geometry=GEOMETRY, num_frames=4)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


def test_what_is_not_a_file_is_refused(tmp_path: Path) -> None:
    """Opening a FIFO to read would wait for a writer."""
    os.mkfifo(tmp_path / "fifo")
    with DecodePool(1) as pool:
        for path in (tmp_path, tmp_path / "fifo", Path("/dev/null")):
            with pytest.raises(DecodeError, match="not a file"):
                decode_frames(path, geometry=GEOMETRY, num_frames=1)
            with pytest.raises(UnsupportedMedia, match="not a file"):
                decode_all(pool, path, DecodeJob(GEOMETRY, 1))
