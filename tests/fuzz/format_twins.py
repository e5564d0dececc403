"""A hostile twin of each format: forged sizes and times, missing ends, pictures under the name of another codec."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from fuzz.answers import ANY_ANSWER, OK, TOO_LARGE, TOO_LONG, UNDECODABLE, UNSUPPORTED
from fuzz.format_files import SAMPLES
from fuzz.gif_files import CLEAR, GifFrame, gif_file
from fuzz.webp_files import WebpFrame, animated_webp, canvas_chunk, frame_chunk, webp_chunk, webp_file

_GREYS = np.repeat(np.arange(0, 256, 16, dtype=np.uint8)[:, None], 3, axis=1)


def format_twins(files: dict[str, bytes]) -> Iterator[tuple[Any, ...]]:
    """``files``: valid ones by name, as `format_files` writes them."""
    for name, data in files.items():
        yield f"half of {name}", data[: len(data) // 2], OK, UNDECODABLE
        yield f"start of {name}", data[:600], OK, UNDECODABLE, UNSUPPORTED
        yield f"zeros in {name}", data[: len(data) // 2] + bytes(len(data) - len(data) // 2), OK, UNDECODABLE
        yield f"twice {name}", data + data, OK, UNDECODABLE, UNSUPPORTED
    yield from _forged_sizes(files)
    yield from _forged_times(files)
    yield from _wrong_names(files)
    yield from _animations()


def _forged_sizes(files: dict[str, bytes]) -> Iterator[tuple[Any, ...]]:
    """The containers' size is 96x64, or 20000 in each direction where the field is wide enough."""
    large = 20_000
    for name, old, new in (
        ("a.gif", struct.pack("<HH", 96, 64), b"\xff\xff\xff\xff"),
        ("wmv2.wmv", struct.pack("<II", 96, 64), struct.pack("<II", large, large)),
        ("wmv2.wmv", struct.pack("<II", 96, 64), struct.pack("<II", 2**31 - 1, 2**31 - 1)),
        ("divx3.avi", struct.pack("<II", 96, 64), struct.pack("<II", large, large)),
        ("cinepak.avi", struct.pack("<II", 96, 64), struct.pack("<iI", -large, large)),
        ("ffv1.avi", struct.pack("<II", 96, 64), struct.pack("<II", large, large)),
        ("png.avi", struct.pack("<II", 96, 64), struct.pack("<II", large, large)),
        ("qtrle.mov", struct.pack(">HH", 96, 64), struct.pack(">HH", large, large)),
        ("png.mov", struct.pack(">HH", 96, 64), struct.pack(">HH", large, large)),
        ("prores.mov", struct.pack(">HH", 96, 64), struct.pack(">HH", large, large)),
        ("dnxhr.mov", struct.pack(">HH", 256, 128), struct.pack(">HH", large, large)),
        ("cinepak.mov", struct.pack(">HH", 96, 64), struct.pack(">HH", large, large)),
    ):
        assert old in files[name]
        yield f"claims {new.hex()} {name}", files[name].replace(old, new), TOO_LARGE, UNDECODABLE
    for name, old, new in (
        # sizes in the pictures, which the containers do not claim
        ("mpeg1.mpg", b"\0\0\x01\xb3\x06\0\x40", b"\0\0\x01\xb3\xff\xff\xff"),
        ("a.m2v", b"\0\0\x01\xb3\x06\0\x40", b"\0\0\x01\xb3\xff\xff\xff"),
        ("png.mov", b"IHDR" + struct.pack(">II", 96, 64), b"IHDR" + struct.pack(">II", 2**31 - 1, 2**31 - 1)),
        ("png.mov", b"IHDR" + struct.pack(">II", 96, 64), b"IHDR" + struct.pack(">II", 65_000, 65_000)),
        ("png.avi", b"IHDR" + struct.pack(">II", 96, 64), b"IHDR" + struct.pack(">II", 8000, 4000)),
        ("flv1.flv", struct.pack(">d", 96.0), struct.pack(">d", 1e300)),
    ):
        assert old in files[name]
        yield f"pictures claim {new.hex()} {name}", files[name].replace(old, new), *ANY_ANSWER
    yield "theora claims 65520x65520.ogv", _theora_of_size(files["theora.ogv"], 4095, 4095), TOO_LARGE, UNDECODABLE
    yield "a zlib bomb.mov", _zlib_bomb(files["png.mov"]), OK, UNDECODABLE


def _theora_of_size(ogg: bytes, width: int, height: int) -> bytes:
    """``width`` and ``height`` in blocks of 16 pixels; the first page's checksum is corrected."""
    place = ogg.index(b"\x80theora") + 10
    changed = bytearray(ogg)
    changed[place : place + 10] = struct.pack(">HH", width, height) + b"\xff\xf0\x00\xff\xf0\x00"
    end = 27 + changed[26] + sum(changed[27 : 27 + changed[26]])
    changed[22:26] = bytes(4)
    changed[22:26] = struct.pack("<I", _ogg_checksum(changed[:end]))
    return bytes(changed)


def _ogg_checksum(page: bytes) -> int:
    value = 0
    for byte in page:
        value ^= byte << 24
        for _ in range(8):
            value = (value << 1 ^ (0x04C11DB7 if value & 1 << 31 else 0)) & 0xFFFFFFFF
    return value


def _zlib_bomb(movie: bytes) -> bytes:
    """Each picture's compressed part claims to begin 64 MB of zeros, cut to the room that there is."""
    bomb = zlib.compress(bytes(64 * 2**20), 9)
    out = bytearray(movie)
    place = movie.find(b"IDAT")
    while place >= 0:
        size = struct.unpack_from(">I", movie, place - 4)[0]
        out[place + 4 : place + 4 + size] = bomb[:size]
        place = movie.find(b"IDAT", place + 4 + size)
    return bytes(out)


def _forged_times(files: dict[str, bytes]) -> Iterator[tuple[Any, ...]]:
    frame = GifFrame(np.full((16, 16), 3, np.uint8), delay=65_535)
    yield "eleven minutes a frame.gif", gif_file(16, 16, _GREYS, [frame] * 12), TOO_LONG
    pixels = np.full((16, 16, 4), 90, np.uint8)
    yield "five hours a frame.webp", animated_webp(16, 16, [WebpFrame(pixels, duration_ms=2**24 - 1)] * 2), TOO_LONG
    duration = files["flv1.flv"].index(b"duration") + 9
    for seconds in (1e9, -1.0, float("nan"), float("inf")):
        data = files["flv1.flv"]
        data = data[:duration] + struct.pack(">d", seconds) + data[duration + 8 :]
        yield f"claims {seconds} seconds.flv", data, OK, TOO_LONG, UNDECODABLE
    properties = files["wmv2.wmv"].index(bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365"))
    for units in (10**16, 2**63 - 1, 2**64 - 1):
        data = files["wmv2.wmv"]
        data = data[: properties + 64] + struct.pack("<Q", units) + data[properties + 72 :]
        yield f"plays {units} units.wmv", data, OK, TOO_LONG, UNDECODABLE
    data = files["theora.ogv"]
    pages = [place for place in range(len(data)) if data[place : place + 4] == b"OggS"]
    changed = bytearray(data)
    changed[pages[-1] + 6 : pages[-1] + 14] = b"\xff" * 7 + b"\x7f"
    end = pages[-1] + 27 + changed[pages[-1] + 26]
    end += sum(changed[pages[-1] + 27 : end])
    changed[pages[-1] + 22 : pages[-1] + 26] = bytes(4)
    changed[pages[-1] + 22 : pages[-1] + 26] = struct.pack("<I", _ogg_checksum(changed[pages[-1] : end]))
    yield "granule of 2^63.ogv", bytes(changed), OK, TOO_LONG, UNDECODABLE


_AVI_NAMES = (
    *(b"H264", b"hev1", b"MJPG", b"mpg1", b"mpg2", b"MPG4", b"MP42", b"DIV3", b"WMV1", b"WMV2", b"WMV3", b"WVC1"),
    *(b"cvid", b"dvsd", b"FFV1", b"MPNG", b"VP60", b"VP61", b"VP62", b"VP6F", b"VP6A", b"VP80", b"VP90", b"AV01"),
    *(b"theo", b"FLV1", b"H263", b"AVdn", b"apcn", b"rle ", b"gif "),
)


def _wrong_names(files: dict[str, bytes]) -> Iterator[tuple[Any, ...]]:
    """Pictures of one codec under the name of each other."""
    for fourcc in _AVI_NAMES:
        for name, old in (("mpeg4.avi", b"FMP4"), ("png.avi", b"MPNG")):
            label = fourcc.decode().strip()
            yield f"{name} named {label}.avi", files[name].replace(old, fourcc), *ANY_ANSWER
    for name, old, new in (
        ("msmpeg4v2.avi", b"MP42", b"MPG4"),
        ("msmpeg4v2.avi", b"MP42", b"DIV3"),
        ("wmv9.wmv", b"WMV3", b"WVC1"),
        ("wmv9.wmv", b"WMV3", b"WMV2"),
        ("wmv2.wmv", b"WMV2", b"WMV3"),
        ("wmv2.wmv", b"WMV2", b"WVC1"),
        ("qtrle.mov", b"rle ", b"png "),
        ("png.mov", b"png ", b"rle "),
        ("prores.mov", b"apch", b"AVdn"),
        ("prores.mov", b"apch", b"ap4x"),
    ):
        assert old in files[name]
        yield f"{name} named {new.decode().strip()}", files[name].replace(old, new), *ANY_ANSWER
    vp6 = (SAMPLES / "vp6.flv").read_bytes()
    yield "vp6 named sorenson.flv", vp6.replace(b"\x14", b"\x12").replace(b"\x24", b"\x22"), OK, UNDECODABLE


def _animations() -> Iterator[tuple[Any, ...]]:
    """A few bytes a frame that draw, clear or restore a whole large canvas."""
    dot = GifFrame(np.zeros((1, 1), np.uint8), disposal=CLEAR, delay=2, transparent=1)
    yield "canvas of 8192x4000.gif", gif_file(8192, 4000, _GREYS, [dot] * 60), OK, UNDECODABLE
    yield "canvas of 8192x8192.gif", gif_file(8192, 8192, _GREYS, [dot] * 3), TOO_LARGE
    outside = GifFrame(np.zeros((40, 40), np.uint8), left=65_000, top=65_000)
    yield "frame outside of the canvas.gif", gif_file(16, 16, _GREYS, [outside] * 3), OK, UNDECODABLE
    small = WebpFrame(np.full((2, 2, 4), 90, np.uint8), duration_ms=20)
    anim, frame = webp_chunk(b"ANIM", bytes(6)), frame_chunk(small)
    yield "2000 large frames.webp", webp_file(canvas_chunk(8192, 4000), anim, *[frame] * 2000), TOO_LONG
    yield "canvas of 2^24.webp", webp_file(canvas_chunk(2**24, 2**24), anim, frame), TOO_LARGE
    yield "nothing.webp", webp_file(), UNDECODABLE
    yield "300000 chunks.webp", webp_file(canvas_chunk(16, 16), anim, *[webp_chunk(b"ANMF", b"")] * 300_000), TOO_LONG
