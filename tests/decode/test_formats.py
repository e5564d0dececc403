"""Which containers and codecs are read, and how a container is recognised."""

from __future__ import annotations

import io
import random
import struct
from pathlib import Path
from typing import Any

import av
import pytest
from av.codec import Codec
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fuzz.format_files import FORMATS, FileFormat, as_video_cd, sample_files, write_format
from fuzz.reference_files import write_movie_with_reference
from support.video_cases import assert_like_ffmpeg, shown_by_ffmpeg
from support.video_cases_mp4 import with_large_mdat
from support.video_cases_ts import restrided
from support.videos import numbered_picture, read_number, write_video
from vidlex.model.decode.container import open_video
from vidlex.model.decode.containers.formats import CODECS, CONTAINERS, WEBP
from vidlex.model.decode.containers.sniff import demuxer_of
from vidlex.model.decode.decoder import decode_frames
from vidlex.model.decode.limits import DecodeError
from vidlex.model.types import FrameGeometry

# Files of codecs that have no encoder here: (demuxer, codec)
SAMPLE_CODECS = {
    "theora.ogv": ("ogg", "theora"),
    "wmv9.wmv": ("asf", "wmv3"),
    "vp6.flv": ("flv", "vp6f"),
    "vp6.avi": ("avi", "vp6"),
    "vp6a.flv": ("flv", "vp6a"),
    "vc1.wmv": ("asf", "vc1"),
    "vc1.ts": ("mpegts", "vc1"),
    "msmpeg4v1.avi": ("avi", "msmpeg4v1"),
}
NUMBERED = {"theora.ogv": 12, "vc1.wmv": 6, "vc1.ts": 6, "msmpeg4v1.avi": 6}


def sniffed(data: bytes) -> str | None:
    return demuxer_of(io.BytesIO(data))


def demuxer_of_path(path: Path) -> str | None:
    with path.open("rb") as file:
        return demuxer_of(file)


# --- each format -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", FORMATS, ids=lambda wanted: wanted.name)
def test_frames_sizes_and_times_are_those_that_ffmpeg_shows(tmp_path: Path, wanted: FileFormat) -> None:
    path = write_format(tmp_path, wanted)
    assert demuxer_of_path(path) == wanted.demuxer
    batch = assert_like_ffmpeg(path, num_frames=min(4, wanted.num_frames))
    assert batch.video.codec == wanted.codec
    assert batch.video.num_frames == wanted.num_frames
    assert batch.warnings == ()


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return sample_files(tmp_path_factory.mktemp("samples"))


@pytest.mark.parametrize("name", SAMPLE_CODECS)
def test_samples_of_codecs_without_an_encoder(tmp_path: Path, samples: dict[str, bytes], name: str) -> None:
    demuxer, codec = SAMPLE_CODECS[name]
    path = tmp_path / name
    path.write_bytes(samples[name])
    assert demuxer_of_path(path) == demuxer
    truth = shown_by_ffmpeg(path)
    batch = decode_frames(path, geometry=FrameGeometry(96, "squash"), num_frames=len(truth))
    assert batch.video.codec == codec
    assert batch.video.num_frames == len(truth) >= 6
    squashed = Image.fromarray(truth.first).resize((96, 96), Image.Resampling.BICUBIC)
    difference = abs(batch.frames[0].astype(int) - squashed).mean()
    assert difference < 4
    if name in NUMBERED:
        assert truth.numbers == list(range(NUMBERED[name]))
        assert_like_ffmpeg(path, num_frames=4)


def test_each_codec_has_a_decoder_and_a_file() -> None:
    for codec in CODECS:
        names = [name for name in av.codecs_available if _canonical_name(name) == codec]
        assert names, f"PyAV has no decoder of {codec}"
    proved = {wanted.codec for wanted in FORMATS} | {codec for _, codec in SAMPLE_CODECS.values()}
    assert set(CODECS) == proved
    assert {wanted.demuxer for wanted in FORMATS} | {"ogg", WEBP} == set(CONTAINERS)


def _canonical_name(name: str) -> str:
    try:
        return str(Codec(name, "r").canonical_name)
    except av.codec.codec.UnknownCodecError:
        return ""


def test_other_codecs_in_these_containers_are_refused(tmp_path: Path) -> None:
    for codec, name, pix_fmt in (
        ("huffyuv", "a.avi", "yuv422p"),
        ("snow", "b.mkv", "yuv420p"),
        ("flashsv", "c.flv", "bgr24"),
    ):
        path = write_video(tmp_path / name, codec=codec, pix_fmt=pix_fmt, num_frames=2)
        with pytest.raises(DecodeError) as error:
            decode_frames(path, geometry=FrameGeometry(32), num_frames=1)
        assert error.value.code == "unsupported_media"


# --- containers ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def transport_streams(tmp_path_factory: pytest.TempPathFactory) -> dict[int, bytes]:
    folder = tmp_path_factory.mktemp("ts")
    plain = write_video(folder / "a.ts", num_frames=60)
    strides = {size: restrided(plain, folder / f"{size}.ts", size).read_bytes() for size in (192, 204)}
    return {188: plain.read_bytes(), **strides}


@pytest.mark.parametrize("stride", [188, 192, 204])
@pytest.mark.parametrize("offset", [0, 1, 3, 4, 100, 187, 191, 700, 1500])
def test_a_transport_stream_need_not_be_cut_at_a_packet(
    tmp_path: Path, transport_streams: dict[int, bytes], stride: int, offset: int
) -> None:
    data = transport_streams[stride][offset:]
    assert sniffed(data) == "mpegts"
    (tmp_path / "a.ts").write_bytes(data)
    assert_like_ffmpeg(tmp_path / "a.ts", num_frames=5)


@pytest.mark.parametrize("stride", [188, 192, 204])
def test_bytes_before_the_first_packet(tmp_path: Path, transport_streams: dict[int, bytes], stride: int) -> None:
    for num_bytes in (1, 88, 1000, 4000):
        junk = bytes(random.Random(num_bytes).choices([byte for byte in range(256) if byte != 0x47], k=num_bytes))
        assert sniffed(junk + transport_streams[stride]) == "mpegts"
        (tmp_path / "a.ts").write_bytes(junk + transport_streams[stride])
        assert_like_ffmpeg(tmp_path / "a.ts", num_frames=5)


def test_a_transport_stream_of_three_packets_is_recognised(transport_streams: dict[int, bytes]) -> None:
    data = transport_streams[188]
    assert sniffed(data[: 3 * 188]) == "mpegts"
    assert sniffed(data[: 2 * 188]) is None


_LINES = st.lists(st.text("G \n\tGaä€", max_size=200), max_size=60).map("".join)


@given(_LINES, st.sampled_from(["utf-8", "latin-1", "utf-8-sig"]))
def test_text_is_never_taken(text: str, encoding: str) -> None:
    assert sniffed(text.encode(encoding, errors="replace")) is None


@given(st.binary(min_size=1, max_size=12), st.integers(1, 8))
def test_repeated_text_is_never_taken(unit: bytes, shift: int) -> None:
    text = bytes(32 + byte % 95 for byte in unit)
    assert sniffed(b"G" * shift + (text + b"G") * 2000) is None
    assert sniffed(text[:4].ljust(4) + b"mdat" + text * 2000) is None


@given(st.binary(max_size=3000))
def test_any_bytes_are_answered(data: bytes) -> None:
    assert sniffed(data) in {None, *CONTAINERS}
    for prefix in (b"\0\0\x01\xba", b"\0\0\x01\xb3", b"\x1f\x07\0\x3f", b"\0\0\0\x18ftyp", b"\x47" * 4, b"RIFF"):
        assert sniffed(prefix + data) in {None, *CONTAINERS}


@pytest.mark.parametrize("size_bits", [32, 64])
@pytest.mark.parametrize("lead", [b"", struct.pack(">I4s", 8, b"wide")], ids=["mdat", "wide, mdat"])
def test_a_large_box_of_pictures_may_come_first(tmp_path: Path, size_bits: int, lead: bytes) -> None:
    source = write_video(tmp_path / "a.mov", num_frames=20)
    path = with_large_mdat(source, tmp_path / "b.mov", num_bytes=1_700_000_000, size_bits=size_bits, lead=lead)
    assert demuxer_of_path(path) == "mov"
    assert_like_ffmpeg(path, num_frames=4)


def test_a_large_first_box_needs_a_second_one() -> None:
    assert sniffed(struct.pack(">I4s", 0x20202020, b"mdat") + bytes(4000)) is None
    with_second = struct.pack(">I4s", 1 << 24, b"mdat") + bytes((1 << 24) - 8)
    assert sniffed(with_second + struct.pack(">I4s", 100, b"moov")) == "mov"
    assert sniffed(with_second + struct.pack(">I4s", 7, b"moov")) is None
    assert sniffed(with_second + b"text and more text") is None


def test_program_streams_of_discs_and_of_recorders(tmp_path: Path) -> None:
    dvd = write_format(tmp_path, next(wanted for wanted in FORMATS if wanted.name == "dvd.mpg")).read_bytes()
    for offset in (1, 14, 2000):
        assert sniffed(dvd[offset:]) == "mpeg"
    path = tmp_path / "video cd.dat"
    mpeg1 = write_format(tmp_path, next(wanted for wanted in FORMATS if wanted.name == "mpeg1.mpg"))
    path.write_bytes(as_video_cd(mpeg1.read_bytes()))
    assert demuxer_of_path(path) == "mpeg"
    assert_like_ffmpeg(path, num_frames=4)


def test_still_pictures_in_heif_are_refused_and_sequences_read(tmp_path: Path) -> None:
    first, *others = (Image.fromarray(numbered_picture(k, 96, 64)) for k in range(6))
    first.save(tmp_path / "still.avif")
    first.save(tmp_path / "moving.avif", save_all=True, append_images=others, duration=40, quality=95)
    assert demuxer_of_path(tmp_path / "still.avif") is None
    assert demuxer_of_path(tmp_path / "moving.avif") == "mov"
    # ffmpeg shows the first stream by default, which is the picture for programs that know no sequences
    batch = decode_frames(tmp_path / "moving.avif", geometry=FrameGeometry(96), num_frames=6)
    assert [read_number(frame) for frame in batch.frames] == list(range(6))
    assert batch.timestamps_ms == tuple(range(0, 240, 40))
    for brand in (b"heic", b"heix", b"mif1"):
        assert sniffed(struct.pack(">I4s4s", 24, b"ftyp", brand) + bytes(1000)) is None


# --- references ------------------------------------------------------------------------------------------------------


def test_no_container_opens_other_files_or_addresses() -> None:
    """Demuxers of scripts and playlists, of numbered files, of devices and of networks."""
    others = "hls dash concat sdp rtp rtsp image2 image2pipe smoothstreaming sap imf lavfi vobsub webm_dash_manifest"
    assert not set(CONTAINERS) & set(others.split())
    assert set(CONTAINERS) - {WEBP, "matroska", "mov"} <= av.formats_available


def test_data_references_of_a_movie_are_not_followed(tmp_path: Path) -> None:
    other = write_video(tmp_path / "other.mov", num_frames=20)
    path = write_movie_with_reference(tmp_path, other)

    def num_packets(container: Any) -> int:
        with container:
            return sum(packet.size > 0 for packet in container.demux())

    assert num_packets(open_video(path, "mov")) == 0
    # the same file is an attack where the demuxer follows references
    assert num_packets(av.open(str(path), options={"enable_drefs": "1", "use_absolute_path": "1"})) > 0
