"""Encrypted pictures are recognised by the bytes of a file, and clear ones are not taken for encrypted."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from fuzz.format_files import FORMATS, valid_formats, write_format
from support.video_cases import ffmpeg
from support.video_cases_mkv import changed, element, encrypted
from support.video_cases_ts import restrided, scrambled
from support.videos import write_video
from vidlex.model.decode.containers.encryption import encryption_of
from vidlex.model.decode.containers.formats import CONTAINERS
from vidlex.model.decode.containers.sniff import demuxer_of

KEYS = ("-encryption_key", "00112233445566778899aabbccddeeff", "-encryption_kid", "0123456789abcdef0123456789abcdef")


@pytest.fixture(scope="module")
def mp4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("mp4") / "a.mp4", num_frames=50, audio_seconds=2.0)


@pytest.mark.parametrize("flags", ["faststart", "frag_keyframe+empty_moov", "default_base_moof"])
def test_common_encryption(tmp_path: Path, mp4: Path, flags: str) -> None:
    path = tmp_path / "b.mp4"
    ffmpeg("-i", mp4, "-c", "copy", "-encryption_scheme", "cenc-aes-ctr", *KEYS, "-movflags", flags, path)
    assert encryption_of(path, "mov") == "Common Encryption (cenc)"
    data = path.read_bytes()
    for scheme in ("cbcs", "cens", "cbc1"):
        path.write_bytes(data.replace(b"cenc", scheme.encode()))
        assert encryption_of(path, "mov") == f"Common Encryption ({scheme})"


def test_protected_entries_of_unknown_schemes(tmp_path: Path, mp4: Path) -> None:
    data = mp4.read_bytes()
    for entry, name in ((b"encv", "MP4 encryption"), (b"drmi", "FairPlay")):
        path = tmp_path / "c.mp4"
        path.write_bytes(data.replace(b"avc1\0\0\0\0\0\0\0\1", entry + b"\0\0\0\0\0\0\0\1"))
        assert encryption_of(path, "mov") == name
    # only the sound is encrypted
    path.write_bytes(data.replace(b"mp4a\0\0\0\0\0\0\0\1", b"enca\0\0\0\0\0\0\0\1"))
    assert path.read_bytes() != data
    assert encryption_of(path, "mov") is None


@pytest.mark.parametrize("with_key_id", [True, False])
def test_matroska_encryption(tmp_path: Path, with_key_id: bool) -> None:
    source = write_video(tmp_path / "a.mkv", num_frames=10)
    assert encryption_of(source, "matroska") is None
    target = encrypted(source, tmp_path / "b.mkv", with_key_id=with_key_id)
    assert encryption_of(target, "matroska") == "Matroska encryption"


def test_compressed_matroska_is_not_encrypted(tmp_path: Path) -> None:
    """Header stripping, which old writers used, is a content encoding, too."""
    stripping = element(
        "6240", element("5031", b"\0") + element("5033", b"\0") + element("5034", element("4254", b"\3"))
    )
    source = write_video(tmp_path / "a.mkv", num_frames=10)
    data = changed(
        source.read_bytes(), lambda name, payload: payload + element("6d80", stripping) if name == "ae" else payload
    )
    (tmp_path / "b.mkv").write_bytes(data)
    assert encryption_of(tmp_path / "b.mkv", "matroska") is None


def write_stream(path: Path, num_frames: int = 60) -> Path:
    return write_video(path, num_frames=num_frames, audio_seconds=num_frames / 10)


@pytest.mark.parametrize("headers", [True, False])
@pytest.mark.parametrize("stride", [188, 192, 204])
def test_scrambled_transport_streams(tmp_path: Path, headers: bool, stride: int) -> None:
    source = write_stream(tmp_path / "a.ts")
    assert encryption_of(source, "mpegts") is None
    target = scrambled(source, tmp_path / "b.ts", headers=headers)
    if stride != 188:
        target = restrided(target, tmp_path / "c.ts", stride)
    target.write_bytes(target.read_bytes()[50:])
    assert encryption_of(target, "mpegts") == "conditional access (scrambled MPEG-TS)"


def test_a_transport_stream_of_which_a_part_is_scrambled(tmp_path: Path) -> None:
    """A receiver that found its key after a few seconds; the rest can be read."""
    source = write_stream(tmp_path / "a.ts")
    clear, hidden = source.read_bytes(), scrambled(source, tmp_path / "b.ts", headers=True).read_bytes()
    cut = len(clear) // 188 // 10 * 188
    (tmp_path / "c.ts").write_bytes(hidden[:cut] + clear[cut:])
    assert encryption_of(tmp_path / "c.ts", "mpegts") is None
    (tmp_path / "c.ts").write_bytes(clear[:cut] + hidden[cut:])
    assert encryption_of(tmp_path / "c.ts", "mpegts") is not None


def test_hls_sample_encryption(tmp_path: Path) -> None:
    """Packets are in the clear, pictures not; the table says so by the type of the stream."""
    data = write_stream(tmp_path / "a.ts").read_bytes()
    h264 = b"\x1b\xe1\x00\xf0\x00"
    assert h264 in data
    (tmp_path / "b.ts").write_bytes(data.replace(h264, b"\xdb" + h264[1:]))
    assert encryption_of(tmp_path / "b.ts", "mpegts") == "HLS sample encryption (SAMPLE-AES)"


def css(data: bytes, *, is_noise: bool, share: float = 0.6) -> bytes:
    """Sectors of a DVD that are flagged as encrypted; from byte 128 on they are noise."""
    rng, out = random.Random(3), bytearray(data)
    for start in range(0, len(data) - 2047, 2048):
        place = data.find(b"\0\0\x01\xe0", start, start + 2048)
        if place >= 0 and rng.random() < share:
            out[place + 6] |= 0x10
            if is_noise:
                out[start + 128 : start + 2048] = rng.randbytes(1920)
    return bytes(out)


def test_css_of_a_dvd(tmp_path: Path) -> None:
    wanted = next(wanted for wanted in FORMATS if wanted.name == "dvd.mpg")
    data = write_format(tmp_path, wanted, num_frames=300).read_bytes()
    path = tmp_path / "b.vob"
    for kind, expected in ((False, None), (True, "DVD (CSS)")):
        path.write_bytes(css(data, is_noise=kind))
        assert path.read_bytes() != data
        assert encryption_of(path, "mpeg") == expected


def test_windows_media_drm(tmp_path: Path) -> None:
    data = (write_format(tmp_path, next(wanted for wanted in FORMATS if wanted.name == "wmv2.wmv"))).read_bytes()
    for identifier in ("fbb3112223bdd211b4b700a0c955fc6e", "335805438169e6499b74ad12cb86d58c"):
        item = bytes.fromhex(identifier) + struct.pack("<Q", 60) + bytes(36)
        size, count = struct.unpack_from("<QI", data, 16)
        head = data[:16] + struct.pack("<QI", size + len(item), count + 1) + data[28:size]
        (tmp_path / "b.wmv").write_bytes(head + item + data[size:])
        assert encryption_of(tmp_path / "b.wmv", "asf") == "Windows Media DRM"


def test_flash_access(tmp_path: Path) -> None:
    data = bytearray(
        write_format(tmp_path, next(wanted for wanted in FORMATS if wanted.name == "h264.flv")).read_bytes()
    )
    place = 13
    while place < len(data):
        if data[place] == 9:
            data[place] |= 0x20
        place += 15 + int.from_bytes(data[place + 1 : place + 4], "big")
    (tmp_path / "b.flv").write_bytes(data)
    assert encryption_of(tmp_path / "b.flv", "flv") == "Flash Access"


def test_clear_files_of_every_format(tmp_path: Path) -> None:
    for name, data in valid_formats(tmp_path).items():
        path = tmp_path / f"clear {name}"
        path.write_bytes(data)
        with path.open("rb") as file:
            demuxer = demuxer_of(file)
        assert demuxer is not None
        assert encryption_of(path, demuxer) is None, name


@pytest.mark.parametrize("seed", range(30))
def test_any_bytes_are_answered(tmp_path: Path, mp4: Path, seed: int) -> None:
    rng = random.Random(seed)
    data = bytearray(mp4.read_bytes() if seed % 2 else rng.randbytes(5000))
    for _ in range(30):
        place = rng.randrange(len(data))
        data[place : place + 4] = rng.choice(
            (b"\0\0\0\0", b"\0\0\0\1", b"\xff\xff\xff\xff", b"\0\0\0\x08", rng.randbytes(4))
        )
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(data))
    for demuxer in CONTAINERS:
        assert encryption_of(path, demuxer) is None or isinstance(encryption_of(path, demuxer), str)


def test_a_tree_of_boxes_is_not_walked_for_ever(tmp_path: Path) -> None:
    """300,000 boxes in as few bytes as they take."""
    inner = struct.pack(">I4s", 8, b"stsd") * 60
    for kind in (b"stbl", b"minf", b"mdia", b"trak", b"moov"):
        inner = (struct.pack(">I4s", 8 + len(inner), kind) + inner) * (8 if len(inner) < 1 << 20 else 1)
    assert inner.count(b"stsd") > 200_000
    (tmp_path / "a.mp4").write_bytes(inner)
    assert encryption_of(tmp_path / "a.mp4", "mov") is None
