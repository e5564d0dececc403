"""Small real video files for tests: well-formed ones, awkward ones and hostile ones, built on the spot with PyAV.

Each frame of `write_video` carries its own number as a 3x3 grid of black and white cells in the central square of
the picture (`read_number` reads it back after any resize, crop or pad), so a test can say *which* frame it was given.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

GRID = 3
MAX_NUMBER = 2 ** (GRID * GRID)

Picture = Callable[[int], NDArray[np.uint8]]
"""Frame number -> RGB picture [H, W, 3]."""


def has_encoder(name: str) -> bool:
    return name in av.codecs_available


def numbered_picture(number: int, width: int, height: int) -> NDArray[np.uint8]:
    """A grey picture whose central square shows ``number`` in binary, least significant bit first."""
    picture = np.full((height, width, 3), 90, np.uint8)
    side = min(width, height)
    top, left = (height - side) // 2, (width - side) // 2
    edges = [round(i * side / GRID) for i in range(GRID + 1)]
    for bit in range(GRID * GRID):
        row, column = divmod(bit, GRID)
        value = 235 if number >> bit & 1 else 20
        picture[top + edges[row] : top + edges[row + 1], left + edges[column] : left + edges[column + 1]] = value
    return picture


def read_number(frame: NDArray[np.uint8], box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)) -> int:
    """The number shown in ``box`` (left, top, right, bottom as shares of the frame), the numbered square's place."""
    height, width = frame.shape[:2]
    left, top, right, bottom = box
    number = 0
    for bit in range(GRID * GRID):
        row, column = divmod(bit, GRID)
        y = int((top + (bottom - top) * (row + 0.5) / GRID) * height)
        x = int((left + (right - left) * (column + 0.5) / GRID) * width)
        cell = frame[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
        number |= int(cell.mean() > 128) << bit
    return number


def write_video(
    path: Path,
    *,
    width: int = 160,
    height: int = 96,
    num_frames: int = 30,
    fps: int = 10,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    gop: int = 12,
    rotation: int = 0,
    pts_ms: Sequence[int] | None = None,
    picture: Picture | None = None,
    audio_seconds: float = 0.0,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Write a video; the container follows from the file's suffix.

    ``pts_ms`` gives each frame's own time (a variable frame rate); ``rotation`` is the display matrix in degrees,
    counter-clockwise, as a phone writes it; ``picture`` replaces the numbered picture.
    """
    paint = picture or (lambda number: numbered_picture(number % MAX_NUMBER, width, height))
    default_options = {"libx": {"preset": "ultrafast", "crf": "18"}, "libv": {"deadline": "realtime", "cpu-used": "8"}}
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream: Any = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.gop_size = gop
        stream.options = {**default_options.get(codec[:4], {}), **(options or {})}
        stream.thread_type = "NONE"
        if codec in ("libvpx-vp9", "libvpx", "mpeg4", "mjpeg"):
            stream.bit_rate = 2_000_000
        time_base = Fraction(1, 1000) if pts_ms is not None else Fraction(1, fps)
        if pts_ms is not None:
            stream.time_base = stream.codec_context.time_base = time_base
        if rotation:
            stream.set_display_rotation(rotation)
        sound = container.add_stream("aac", rate=16000) if audio_seconds else None
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(paint(number), format="rgb24")
            frame.pts = number if pts_ms is None else pts_ms[number]
            frame.time_base = time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if sound is not None:
            _encode_tone(container, sound, audio_seconds)
    return path


def _encode_tone(container: Any, stream: Any, seconds: float) -> None:
    rate = 16000
    wave = (np.sin(np.arange(int(seconds * rate)) * 0.05) * 8000).astype(np.int16)
    for start in range(0, len(wave), 1024):
        chunk = av.AudioFrame.from_ndarray(wave[None, start : start + 1024], format="s16", layout="mono")
        chunk.sample_rate, chunk.pts = rate, start
        container.mux(stream.encode(chunk))
    container.mux(stream.encode())


def write_audio_only(path: Path, seconds: float = 1.0) -> Path:
    """An mp4 with one AAC stream and no picture."""
    with av.open(str(path), "w") as container:
        _encode_tone(container, container.add_stream("aac", rate=16000), seconds)
    return path


def write_corner_video(path: Path, *, width: int = 160, height: int = 96, rotation: int = 0) -> Path:
    """Six frames, each quarter of the *stored* picture in its own colour: red, green / blue, white."""
    picture = np.zeros((height, width, 3), np.uint8)
    middle_y, middle_x = height // 2, width // 2
    picture[:middle_y, :middle_x] = (230, 20, 20)
    picture[:middle_y, middle_x:] = (20, 200, 20)
    picture[middle_y:, :middle_x] = (20, 20, 230)
    picture[middle_y:, middle_x:] = 230
    return write_video(path, width=width, height=height, num_frames=6, rotation=rotation, picture=lambda _: picture)


def corner_names(frame: NDArray[np.uint8]) -> tuple[str, str, str, str]:
    """Colours of the quarters (top left, top right, bottom left, bottom right) as letters r, g, b, w."""

    def name(y: float, x: float) -> str:
        red, green, blue = frame[int(y * frame.shape[0]), int(x * frame.shape[1])].astype(int)
        if min(red, green, blue) > 150:
            return "w"
        return max((red, "r"), (green, "g"), (blue, "b"))[1]

    return name(0.25, 0.25), name(0.25, 0.75), name(0.75, 0.25), name(0.75, 0.75)


def cut(source: Path, target: Path, keep: float) -> Path:
    """The first ``keep`` share of a file: an upload that broke off."""
    data = source.read_bytes()
    target.write_bytes(data[: int(len(data) * keep)])
    return target


def flip_bits(source: Path, target: Path, *, seed: int, num_flips: int = 40, start: int = 64) -> Path:
    """A file with ``num_flips`` random bits turned over, sparing the first ``start`` bytes."""
    data = bytearray(source.read_bytes())
    rng = np.random.default_rng(seed)
    for place in rng.integers(start, len(data), num_flips):
        data[place] ^= 1 << int(rng.integers(8))
    target.write_bytes(bytes(data))
    return target


# --- an H.264 header that claims a picture of any size -----------------------------------------------------------


def write_claimed_size(source: Path, target: Path, *, width: int, height: int, box_too: bool = True) -> Path:
    """A copy of the H.264 mp4 ``source`` whose stream header claims ``width`` x ``height``.

    With ``box_too=False`` only the H.264 header tells, and the container's own fields keep the small size: a file
    that lies to whoever reads the container alone. ``source`` must have its moov box at the end (the default).
    """
    data = source.read_bytes()
    moov = _find_box(data, 0, len(data), b"moov")
    sps = _sps(width, height)
    pps = bytes([0x68, 0xEE, 0x3C, 0x80])
    avcc = struct.pack(">BBBBBBH", 1, 100, 0, 62, 0xFF, 0xE1, len(sps)) + sps + struct.pack(">BH", 1, len(pps)) + pps
    avcc += bytes([0xFD, 0xF8, 0xF8, 0])  # chroma 4:2:0, 8 bits, no SPS extension
    new = _rewrite(data[moov[0] : moov[1]], [b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"avc1", b"avcC"], avcc)
    if box_too:
        place = new.index(b"avc1") + 4 + 24
        new = new[:place] + struct.pack(">HH", width, height) + new[place + 4 :]
    target.write_bytes(data[: moov[0]] + new + data[moov[1] :])
    return target


# bytes between a box's header and its children
_LEADING = {b"stsd": 8, b"avc1": 78}


def _find_box(data: bytes, start: int, end: int, kind: bytes) -> tuple[int, int]:
    while start + 8 <= end:
        size = struct.unpack_from(">I", data, start)[0]
        if data[start + 4 : start + 8] == kind:
            return start, start + size
        start += size
    raise ValueError(f"no {kind!r} box")


def _rewrite(box: bytes, path: list[bytes], payload: bytes) -> bytes:
    """``box`` with the payload of its descendant at ``path`` replaced and all sizes on the way put right."""
    if not path:
        return struct.pack(">I", len(payload) + 8) + box[4:8] + payload
    start, end = _find_box(box, 8 + _LEADING.get(box[4:8], 0), len(box), path[0])
    new = box[:start] + _rewrite(box[start:end], path[1:], payload) + box[end:]
    return struct.pack(">I", len(new)) + new[4:]


def _sps(width: int, height: int) -> bytes:
    """An H.264 sequence parameter set (High profile, level 6.2, frames only) of a size in whole macroblocks."""
    bits = ""

    def unsigned(value: int) -> str:
        code = bin(value + 1)[2:]
        return "0" * (len(code) - 1) + code

    bits += unsigned(0) + unsigned(1) + unsigned(0) + unsigned(0) + "00"  # id, 4:2:0, 8 bits, 8 bits, no matrices
    bits += unsigned(0) + unsigned(2) + unsigned(1) + "0"  # frame number bits, order by decoding, 1 reference, no gaps
    bits += unsigned(width // 16 - 1) + unsigned(height // 16 - 1)
    bits += "1" + "1" + "0" + "0"  # frames only, 8x8 inference, no cropping, no VUI
    bits += "1"
    bits += "0" * (-len(bits) % 8)
    raw = bytes([0x67, 100, 0, 62]) + int(bits, 2).to_bytes(len(bits) // 8, "big")
    out = bytearray()
    zeros = 0
    for byte in raw:  # emulation prevention, as the format asks
        if zeros >= 2 and byte <= 3:
            out.append(3)
            zeros = 0
        out.append(byte)
        zeros = zeros + 1 if byte == 0 else 0
    return bytes(out)


def claim_duration(source: Path, target: Path, *, seconds: float) -> Path:
    """A copy of a Matroska or WebM file that claims to last ``seconds``; its frames stay as they are."""
    data = source.read_bytes().replace(b"DURATION", b"XXXXXXXX")  # the tag that tells a stream's own length
    place = data.index(bytes([0x44, 0x89, 0x88])) + 3  # Duration, a double, in milliseconds
    target.write_bytes(data[:place] + struct.pack(">d", seconds * 1000) + data[place + 8 :])
    return target


def playlist(target_url: str) -> bytes:
    """An HLS playlist that asks whoever opens it to fetch ``target_url``."""
    lines = ["#EXTM3U", "#EXT-X-MEDIA-SEQUENCE:0", "#EXTINF:10.0,", target_url, "#EXT-X-ENDLIST", ""]
    return "\n".join(lines).encode()
