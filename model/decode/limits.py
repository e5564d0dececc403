"""Limits on video files. Imports no native decoder: the service's main process loads this module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

DecodeCode = Literal[
    "undecodable_video",
    "video_too_long",
    "resolution_too_large",
    "unsupported_media",
    "invalid_parameter",
    "too_many_frames",
]


@dataclass(frozen=True)
class DecodeLimits:  # all inclusive
    max_bytes: int = 5 * 2**30
    max_pixels: int = 8192 * 4320
    max_side: int = 8192
    max_aspect_ratio: float = 32.0
    max_duration_ms: int = 2 * 3600 * 1000
    max_frames: int = 2048  # sampled evenly per call, or per segment
    max_total_frames: int = 16_384  # sampled per call, of all segments
    max_looks: int = 1024  # sampled by the policy ``shots``
    max_file_frames: int = 2_000_000  # in the file; each takes memory in the index
    max_streams: int = 32


class DecodeError(Exception):
    """``str(error)`` is public; ``internal`` has native error text, for logs only."""

    def __init__(self, code: DecodeCode, message: str, *, internal: str = "") -> None:
        super().__init__(message)
        self.code: DecodeCode = code
        self.internal = internal


def no_frame(internal: str) -> DecodeError:
    return DecodeError(
        "undecodable_video",
        "No frame of the video can be decoded: its data is damaged or missing.",
        internal=internal,
    )


def check_size(width: int, height: int, limits: DecodeLimits) -> None:
    if max(width, height) > limits.max_side or width * height > limits.max_pixels:
        raise DecodeError(
            "resolution_too_large",
            f"The video is {width} x {height} pixels; at most {limits.max_side} on a side "
            f"and {limits.max_pixels} in all are allowed.",
        )
    if min(width, height) > 0 and max(width, height) > limits.max_aspect_ratio * min(width, height):
        raise DecodeError(
            "resolution_too_large",
            f"The video is {width} x {height} pixels; "
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
