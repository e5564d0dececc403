"""Animated and still WebP, which FFmpeg cannot compose, read with Pillow.

What is transparent is shown on white, as FFmpeg's decoder of GIF does. A frame of 10 ms or less is shown for 100 ms,
as browsers do, and FFmpeg for GIF. An animation is played once.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vidlex.model.decode.containers.structure import Element, Structure
from vidlex.model.decode.limits import (
    DecodeError,
    DecodeLimits,
    check_duration,
    check_file_frames,
    check_size,
    no_frame,
)
from vidlex.model.decode.source import VideoSource

MAX_BYTES = 128 * 2**20  # the whole file is in memory, up to three times
MAX_COMPOSED_PIXELS = 2**32  # of all frames, some 40 s of work; 100 KB can hold 2000 frames of 35 million pixels

_MIN_DELAY_MS, _DEFAULT_DELAY_MS = 11, 100
_PILLOW_ERRORS = (OSError, SyntaxError, ValueError, EOFError, RuntimeError)
_WHITE = (255, 255, 255)


@dataclass(frozen=True, eq=False)
class AnimatedWebp:
    """Frame i is shown from ``starts_ms[i]`` to ``ends_ms[i]``. Arrays [T], int64."""

    starts_ms: NDArray[np.int64]
    ends_ms: NDArray[np.int64]
    width: int
    height: int
    _data: bytes

    @cached_property
    def _image(self) -> Image.Image:
        return Image.open(io.BytesIO(self._data), formats=["WEBP"])

    def pictures(self, indices: Iterable[int]) -> Iterator[NDArray[np.uint8]]:
        """The whole pictures [H, W, C=3] RGB at ``indices``, which must not decrease.

        Frames build on the ones before them, so all up to the last index are decoded; the next call goes on from there,
        or from the first frame if it must. Ends at the first frame that cannot be decoded; raises `DecodeError` if that
        is before the first picture.
        """
        is_first = True
        try:
            for index in indices:
                self._image.seek(index)
                yield _on_white(self._image)
                is_first = False
        except _PILLOW_ERRORS as error:
            if is_first:
                raise no_frame(f"WebP: {type(error).__name__}: {error}") from error


def read_webp(source: VideoSource, limits: DecodeLimits) -> AnimatedWebp:
    """Reads the file and the times of its frames, but decodes none. Raises `DecodeError` or OSError.

    A file whose end is missing is read up to its last whole frame.
    """
    with source.open("rb") as file:
        structure = Structure(file)
        if structure.num_bytes > MAX_BYTES:
            raise DecodeError(
                "video_too_long", f"The file has {structure.num_bytes} bytes; a WebP may have at most {MAX_BYTES}."
            )
        chunks = _whole_chunks(structure)
        if structure.is_exhausted:
            raise DecodeError("video_too_long", f"The WebP file has {len(chunks)} parts, which is too many.")
        width, height = _canvas(structure, chunks)
        check_size(width, height, limits)
        delays = [_delay_ms(structure, chunk) for chunk in chunks if chunk.kind == b"ANMF"]
        if not delays and any(chunk.kind in (b"VP8 ", b"VP8L") for chunk in chunks):
            delays = [_DEFAULT_DELAY_MS]
        if not delays:
            raise no_frame("WebP: no frame")
        check_file_frames(len(delays), limits)
        check_composition(len(delays), width, height)
        ends = np.cumsum(delays, dtype=np.int64)
        check_duration(int(ends[-1]), limits)
        end = chunks[-1].end + chunks[-1].end % 2
        content = structure.read(8, end - 8).ljust(end - 8, b"\0")
    data = b"RIFF" + len(content).to_bytes(4, "little") + content
    return AnimatedWebp(ends - np.array(delays, np.int64), ends, width, height, data)


def check_composition(num_frames: int, width: int, height: int) -> None:
    """For an animation whose frames, however small, are all drawn on the whole canvas. Raises `DecodeError`."""
    if num_frames * width * height > MAX_COMPOSED_PIXELS:
        raise DecodeError(
            "video_too_long",
            f"The animation has {num_frames} frames of {width} x {height} pixels; "
            f"at most {MAX_COMPOSED_PIXELS} pixels in all are allowed.",
        )


def _whole_chunks(structure: Structure) -> list[Element]:
    riff = Element(b"WEBP", 12, structure.num_bytes)
    return [chunk for chunk in structure.riff_chunks(riff) if chunk.end <= structure.num_bytes]


def _canvas(structure: Structure, chunks: list[Element]) -> tuple[int, int]:
    """(width, height) of the whole picture, by the first chunk."""
    kind, head = (chunks[0].kind, structure.content(chunks[0], 10)) if chunks else (b"", b"")
    if kind == b"VP8X" and len(head) == 10:
        return int.from_bytes(head[4:7], "little") + 1, int.from_bytes(head[7:10], "little") + 1
    if kind == b"VP8L" and len(head) >= 5 and head[0] == 0x2F:
        bits = int.from_bytes(head[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 " and len(head) == 10 and head[3:6] == b"\x9d\x01\x2a":
        return int.from_bytes(head[6:8], "little") & 0x3FFF, int.from_bytes(head[8:10], "little") & 0x3FFF
    raise no_frame("WebP: no size of the canvas")


def _delay_ms(structure: Structure, frame: Element) -> int:
    delay = int.from_bytes(structure.content(frame, 15)[12:15], "little")
    return delay if delay >= _MIN_DELAY_MS else _DEFAULT_DELAY_MS


def _on_white(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode == "RGB":
        return np.array(image)
    picture = image.convert("RGBA")
    ground = Image.new("RGB", picture.size, _WHITE)
    ground.paste(picture, mask=picture.getchannel("A"))
    return np.array(ground)
