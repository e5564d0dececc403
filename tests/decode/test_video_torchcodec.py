"""The torchcodec reader returns exactly PyAV's pictures.

It loads FFmpeg's libraries from PyAV's wheel. LD_LIBRARY_PATH applies only to new processes, so all tests run it in
decode processes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from support import videos
from support.decode_all import decode_all
from support.paths import TESTS
from vidlex.model.decode.decoder import decode_frames
from vidlex.model.types import FrameGeometry
from vidlex.service.decode.pool import DecodeJob, DecodePool, PoolLimits
from vidlex.service.decode.process import StartFailed

SIZE = 70
JOB = DecodeJob(FrameGeometry(SIZE), num_frames=5)
LIBRARIES = ("avcodec", "avdevice", "avfilter", "avformat", "avutil", "swresample", "swscale")

pytestmark = pytest.mark.skipif(find_spec("torchcodec") is None, reason="needs torchcodec")


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    bundled = Path(av.__file__).parent.parent / "av.libs"
    if not bundled.is_dir():
        pytest.skip("needs a PyAV wheel with FFmpeg's libraries")
    folder = tmp_path_factory.mktemp("ffmpeg")
    for library in bundled.iterdir():
        (folder / library.name).symlink_to(library)
        found = re.fullmatch(r"lib(\w+)-\w+(\.so\.\d+)\..*", library.name)
        if found and found[1] in LIBRARIES:
            (folder / f"lib{found[1]}{found[2]}").symlink_to(library)
    return folder


@contextmanager
def running_pool(libraries: Path, entry: str) -> Iterator[DecodePool]:
    limits = PoolLimits(memory_bytes=8 * 2**30, start_timeout_seconds=240.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LD_LIBRARY_PATH", str(libraries))
        patch.setenv("PYTHONPATH", str(TESTS))
        with DecodePool(1, limits, entry=entry, num_threads=1, decoder="torchcodec") as running:
            yield running


@pytest.fixture(scope="module")
def pool(libraries: Path) -> Iterator[DecodePool]:
    """Without the fallback to PyAV."""
    with running_pool(libraries, "support.decode_hooks:decode_only_by_torchcodec") as running:
        yield running


def textured(number: int) -> NDArray[np.uint8]:
    """Random coloured cells, whose edges reveal any difference in scaling."""
    cells = np.random.default_rng(number).integers(0, 256, (12, 20, 3), np.uint8)
    return np.kron(cells, np.ones((8, 8, 1), np.uint8))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("plain.mp4", {}),
        ("b_frames.mp4", {"options": {"preset": "medium", "x264-params": "bframes=4:b-pyramid=normal"}}),
        ("open.mkv", {"codec": "libx265", "options": {"x265-params": "log-level=none:open-gop=1"}}),
        ("superframes.webm", {"codec": "libvpx-vp9"}),
        ("turned.mp4", {"rotation": 90}),
        ("uneven.mp4", {"pts_ms": [0, 10, 500, 510, 900, 1500, 1510, *range(2000, 4300, 100)]}),
        ("texture.mp4", {"picture": textured, "gop": 100}),
        ("full_range.mp4", {"picture": textured, "pix_fmt": "yuvj420p"}),
        ("whole_colours.mp4", {"picture": textured, "pix_fmt": "yuv444p"}),
        ("ten_bits.mkv", {"codec": "libx265", "pix_fmt": "yuv420p10le", "options": {"x265-params": "log-level=none"}}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_pixels_equal_those_of_pyav(pool: DecodePool, tmp_path: Path, name: str, options: dict) -> None:
    if not videos.has_encoder(options.get("codec", "libx264")):
        pytest.skip("this build of FFmpeg cannot write it")
    path = videos.write_video(tmp_path / name, **options)
    for num_frames, start_ms in ((30, None), (5, None), (4, 1100)):
        job = replace(JOB, num_frames=num_frames, start_ms=start_ms)
        batch = decode_all(pool, path, job)
        expected = decode_frames(
            path, geometry=job.geometry, num_frames=num_frames, start_ms=start_ms, decoder="pyav", num_threads=1
        )
        assert batch.timestamps_ms == expected.timestamps_ms
        assert (batch.frames == expected.frames).all()


def test_unsupported_files_fall_back_to_pyav(libraries: Path, tmp_path: Path) -> None:
    path = videos.write_video(tmp_path / "v.ts", options={"preset": "medium", "x264-params": "bframes=4"})
    expected = decode_frames(path, geometry=JOB.geometry, num_frames=5)
    with running_pool(libraries, "support.decode_hooks:decode") as pool:
        assert (decode_all(pool, path, JOB).frames == expected.frames).all()


def test_a_process_without_enough_memory_reports_the_requirements() -> None:
    with pytest.raises(StartFailed, match=r"torchcodec cannot be loaded: .*VIDLEX_DECODE_MEMORY_BYTES"):
        DecodePool(1, PoolLimits(memory_bytes=2**29, start_timeout_seconds=240.0), decoder="torchcodec").start()


def test_pyav_can_be_requested_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = videos.write_video(tmp_path / "v.mp4")
    expected = decode_frames(path, geometry=JOB.geometry, num_frames=5)

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("the other reader was called")

    monkeypatch.setattr("vidlex.model.decode.video_file.read_by_torchcodec", fail)
    batch = decode_frames(path, geometry=JOB.geometry, num_frames=5, decoder="pyav")
    assert (batch.frames == expected.frames).all()
