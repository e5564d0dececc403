"""Small video files for tests, valid and invalid, written with PyAV.

Each frame of `write_video` shows its number as a 3x3 grid of black and white cells in the central square of the
picture, which `read_number` reads after any resize, crop or pad.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

GRID = 3
MAX_NUMBER = 2 ** (GRID * GRID)

Picture = Callable[[int], NDArray[np.uint8]]  # frame number -> RGB picture [H, W, 3]


def has_encoder(name: str) -> bool:
    return name in av.codecs_available


def numbered_picture(number: int, width: int, height: int) -> NDArray[np.uint8]:
    """[H, W, 3] grey picture with ``number`` in binary in the central square, least significant bit first."""
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
    """The number in ``box``, the position of the numbered square (left, top, right, bottom, relative to the frame)."""
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
    """Write a video in the container of the file's suffix.

    ``pts_ms`` sets the presentation time of each frame (a variable frame rate). ``rotation`` sets the display matrix,
    in counter-clockwise degrees. ``picture`` replaces the numbered picture.
    """
    draw = picture or (lambda number: numbered_picture(number % MAX_NUMBER, width, height))
    default_options = {"libx": {"preset": "ultrafast", "crf": "18"}, "libv": {"deadline": "realtime", "cpu-used": "8"}}
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream: Any = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.gop_size = gop
        stream.options = {**default_options.get(codec[:4], {}), **(options or {})}
        # one thread: those of libvpx wait for each other in a loop, for ever if a signal interrupts one of them
        stream.thread_type, stream.codec_context.thread_count = "NONE", 1
        if codec in ("libvpx-vp9", "libvpx", "mpeg4", "mjpeg"):
            stream.bit_rate = 2_000_000
        time_base = Fraction(1, 1000) if pts_ms is not None else Fraction(1, fps)
        if pts_ms is not None:
            stream.time_base = stream.codec_context.time_base = time_base
        if rotation:
            stream.set_display_rotation(rotation)
        audio = container.add_stream("aac", rate=16000) if audio_seconds else None
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(draw(number), format="rgb24")
            frame.pts = number if pts_ms is None else pts_ms[number]
            frame.time_base = time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if audio is not None:
            _encode_tone(container, audio, audio_seconds)
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
    """An mp4 with a single AAC stream."""
    with av.open(str(path), "w") as container:
        _encode_tone(container, container.add_stream("aac", rate=16000), seconds)
    return path


def write_corner_video(path: Path, *, width: int = 160, height: int = 96, rotation: int = 0) -> Path:
    """Six frames with one colour in each quarter of the *stored* picture: red, green / blue, white."""
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


def truncate(source: Path, target: Path, keep: float) -> Path:
    """Write the first ``keep`` fraction of a file."""
    data = source.read_bytes()
    target.write_bytes(data[: int(len(data) * keep)])
    return target


def flip_bits(source: Path, target: Path, *, seed: int, num_flips: int = 40, start: int = 64) -> Path:
    """Write a copy with ``num_flips`` random bits flipped after the first ``start`` bytes."""
    data = bytearray(source.read_bytes())
    rng = np.random.default_rng(seed)
    for position in rng.integers(start, len(data), num_flips):
        data[position] ^= 1 << int(rng.integers(8))
    target.write_bytes(bytes(data))
    return target
