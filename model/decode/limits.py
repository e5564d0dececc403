"""What a video file may ask for, and what is said when it asks for more.

Nothing native is imported here: the service's own process reads this file and must not load a decoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

DecodeCode = Literal[
    "undecodable_video",
    "video_too_long",
    "resolution_too_large",
    "unsupported_media",
    "invalid_parameter",
    "too_many_frames",
]


@dataclass(frozen=True)
class DecodeLimits:
    """What a file may ask for at most. Everything is refused from the header where the header tells."""

    max_bytes: int = 5 * 2**30
    max_pixels: int = 8192 * 4320
    max_side: int = 8192
    max_aspect_ratio: float = 32.0
    max_duration_ms: int = 2 * 3600 * 1000
    max_fps: float = 240.0
    max_frames: int = 2048
    """Frames sampled in one call."""
    max_file_frames: int = 2_000_000
    """Frames in the file: each costs memory for its time stamp."""
    max_streams: int = 32


class DecodeError(Exception):
    """``str(error)`` is written for a stranger; ``internal`` holds the native text, for the log alone."""

    def __init__(self, code: DecodeCode, message: str, *, internal: str = "") -> None:
        super().__init__(message)
        self.code: DecodeCode = code
        self.internal = internal

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self.code, str(self), self.internal)


def _rebuild(code: DecodeCode, message: str, internal: str) -> DecodeError:
    return DecodeError(code, message, internal=internal)


def check_size(width: int, height: int, limits: DecodeLimits) -> None:
    if max(width, height) > limits.max_side or width * height > limits.max_pixels:
        raise DecodeError(
            "resolution_too_large",
            f"The video is {width}x{height} pixels; at most {limits.max_side} on a side "
            f"and {limits.max_pixels} in all are allowed.",
        )
    if min(width, height) > 0 and max(width, height) > limits.max_aspect_ratio * min(width, height):
        raise DecodeError(
            "resolution_too_large",
            f"The video is {width}x{height} pixels; "
            f"one side may be at most {limits.max_aspect_ratio:g} times the other.",
        )


def check_duration(duration_ms: int, limits: DecodeLimits) -> None:
    if duration_ms > limits.max_duration_ms:
        raise DecodeError(
            "video_too_long",
            f"The video lasts {duration_ms / 1000:.0f} s; at most {limits.max_duration_ms / 1000:g} s are allowed.",
        )


def check_file_frames(num_frames: int, limits: DecodeLimits) -> None:
    if num_frames > limits.max_file_frames:
        raise DecodeError(
            "video_too_long", f"The video has {num_frames} frames; at most {limits.max_file_frames} are allowed."
        )
