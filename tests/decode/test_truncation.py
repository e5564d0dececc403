"""What the structure of a container tells about its end."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from fuzz.format_files import FORMATS, sample_files, valid_formats, write_format, write_webp
from support.video_cases import ffmpeg
from support.videos import write_video
from vidlex.model.decode.containers.formats import CONTAINERS
from vidlex.model.decode.containers.sniff import demuxer_of
from vidlex.model.decode.containers.truncation import container_ends_early, has_second_recording

TELLING = {"mov", "matroska", "avi", "asf", "dv", "webp", "gif", "flv"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return valid_formats(tmp_path_factory.mktemp("files"))


def ends_early(folder: Path, data: bytes, demuxer: str | None = None) -> bool | None:
    path = folder / "a.bin"
    path.write_bytes(data)
    if demuxer is None:
        with path.open("rb") as file:
            demuxer = demuxer_of(file)
    assert demuxer is not None
    return container_ends_early(path, demuxer)


def test_whole_files(tmp_path: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (tmp_path / "b.bin").write_bytes(data)
        with (tmp_path / "b.bin").open("rb") as file:
            demuxer = demuxer_of(file)
        expected = False if demuxer in TELLING else None
        assert ends_early(tmp_path, data) is expected, name
        assert not has_second_recording(tmp_path / "b.bin", demuxer or ""), name


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.9, 0.98])
def test_cut_files(tmp_path: Path, files: dict[str, bytes], keep: float) -> None:
    for name, data in files.items():
        (tmp_path / "b.bin").write_bytes(data)
        with (tmp_path / "b.bin").open("rb") as file:
            demuxer = demuxer_of(file)
        assert demuxer is not None
        found = ends_early(tmp_path, data[: int(len(data) * keep)], demuxer)
        if demuxer == "avi" and found is False:  # only the index after the pictures is missing
            end = data.index(b"movi") + struct.unpack_from("<I", data, data.index(b"movi") - 4)[0]
            assert len(data) * keep >= end
        else:
            expected = {True} if demuxer in TELLING else {True, None} if demuxer == "ogg" else {None}
            assert found in expected, name


@pytest.mark.parametrize("flags", ["faststart", "frag_keyframe+empty_moov+default_base_moof", "write_colr"])
def test_mp4_with_its_header_first_or_last(tmp_path: Path, flags: str) -> None:
    path = write_video(tmp_path / "a.mp4", num_frames=60, audio_seconds=6.0, container_options={"movflags": flags})
    data = path.read_bytes()
    assert ends_early(tmp_path, data) is False
    assert ends_early(tmp_path, data + b"appended by a camera" * 20) is False
    for num_missing in (1000, 5000):  # more than the table of fragments at the end
        assert ends_early(tmp_path, data[:-num_missing]) is True


def test_mp4_that_was_cut_between_boxes(tmp_path: Path) -> None:
    """The header lists pictures after the end of the file."""
    data = write_video(tmp_path / "a.mp4", num_frames=60, container_options={"movflags": "faststart"}).read_bytes()
    place = data.index(b"mdat") - 4
    whole = data[:place] + struct.pack(">I", 0) + data[place + 4 :]  # a box without a size
    assert ends_early(tmp_path, whole) is False
    assert ends_early(tmp_path, whole[: place + (len(data) - place) // 2]) is True
    assert ends_early(tmp_path, data[:place]) is True


def test_live_matroska_does_not_tell(tmp_path: Path) -> None:
    source = write_video(tmp_path / "a.mkv", num_frames=60, gop=5)
    live = tmp_path / "live.mkv"
    ffmpeg("-i", source, "-c", "copy", "-live", "1", "-cluster_time_limit", "500", live)
    data = live.read_bytes()
    assert ends_early(tmp_path, data) is None
    # a segment without a size has clusters with one, unless each is written at once
    assert ends_early(tmp_path, data[: len(data) * 2 // 3]) in (True, None)


def test_avi_that_was_not_finished(tmp_path: Path, files: dict[str, bytes]) -> None:
    """A recorder that lost its power left sizes of zero."""
    data = bytearray(files["mpeg4.avi"])
    data[4:8] = bytes(4)
    assert ends_early(tmp_path, bytes(data)) is None
    data = bytearray(files["mpeg4.avi"])
    place = data.index(b"movi")
    data[place - 4 : place] = bytes(4)
    assert ends_early(tmp_path, bytes(data)) is None


def test_gif_without_a_trailer_is_whole(tmp_path: Path, files: dict[str, bytes]) -> None:
    assert ends_early(tmp_path, files["a.gif"][:-1]) is False
    assert ends_early(tmp_path, files["a.gif"] + b"appended") is False


def test_broadcast_asf_does_not_tell(tmp_path: Path, files: dict[str, bytes]) -> None:
    data = bytearray(files["wmv2.wmv"])
    properties = data.index(bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365"))
    data[properties + 88] |= 1
    assert ends_early(tmp_path, bytes(data[:2000])) is None


@pytest.mark.parametrize(
    ("name", "is_found"), [("h264.mp4", True), ("h264.flv", True), ("wmv2.wmv", True), ("h264.ts", False)]
)
def test_second_recordings(tmp_path: Path, name: str, is_found: bool) -> None:
    wanted = next(wanted for wanted in FORMATS if wanted.name == name)
    data = write_format(tmp_path, wanted).read_bytes()
    for num_files in (2, 3):
        (tmp_path / "b.bin").write_bytes(data * num_files)
        assert has_second_recording(tmp_path / "b.bin", wanted.demuxer) == is_found


@pytest.mark.parametrize("flags", ["faststart", "frag_keyframe+empty_moov+default_base_moof"])
def test_second_movie_after_each_kind_of_first(tmp_path: Path, flags: str) -> None:
    first = write_video(tmp_path / "a.mp4", num_frames=20, container_options={"movflags": flags}).read_bytes()
    second = write_video(tmp_path / "b.mp4", num_frames=20).read_bytes()
    path = tmp_path / "c.mp4"
    for data, expected in ((first, False), (second, False), (first + second, True), (second + first, True)):
        path.write_bytes(data)
        assert has_second_recording(path, "mov") == expected
    # a copy of the header, as some editors leave behind, is no second recording
    moov = second[second.index(b"moov") - 4 :]
    path.write_bytes(second + moov)
    assert not has_second_recording(path, "mov")


@pytest.mark.parametrize("seed", range(40))
def test_any_bytes_are_answered(tmp_path: Path, files: dict[str, bytes], seed: int) -> None:
    rng = random.Random(seed)
    data = bytearray(rng.choice(list(files.values()))[:20_000])
    for _ in range(20):
        place = rng.randrange(len(data))
        data[place : place + 4] = rng.choice((bytes(4), b"\0\0\0\1", b"\xff" * 4, b"\0\0\0\x08", rng.randbytes(4)))
    path = tmp_path / "a.bin"
    for content in (bytes(data), rng.randbytes(3000), bytes(3000), b"\xff" * 3000, b"", b"\x1a", b"G", b"RIFF"):
        path.write_bytes(content)
        for demuxer in CONTAINERS:
            assert container_ends_early(path, demuxer) in (True, False, None)
            assert has_second_recording(path, demuxer) in (True, False)


def test_samples_and_webp(tmp_path: Path) -> None:
    assert ends_early(tmp_path, write_webp(tmp_path / "a.webp", [40, 50, 60]).read_bytes()) is False
    wmv9 = sample_files(tmp_path)["wmv9.wmv"]
    assert (ends_early(tmp_path, wmv9), ends_early(tmp_path, wmv9[:-1])) == (False, True)
