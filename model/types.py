"""Frames of one video and facts about its file.

Shape letters of the whole package: B videos, T frames, C channels, H height, W width, D embedding, V labels, N
prefixes, K attributes per prefix, L tokens per attribute, M prompt tokens, P patches.

Imports no torch: every decode process loads this module and must stay small.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

ResizeMode = Literal["shortest", "squash", "longest"]
FramePolicy = Literal["uniform", "keyframes", "shots"]
SHORT_MS = 20_000  # windows of at most this length are sampled evenly by the policy ``shots``, too: one segment
DecoderName = Literal["auto", "pyav", "torchcodec"]


@dataclass(frozen=True)
class FrameGeometry:
    """How a decoded picture becomes a square model input of ``image_size`` pixels, uint8 RGB.

    ``shortest`` scales the short side and crops the centre (open_clip's default), ``squash`` ignores the
    aspect ratio, ``longest`` scales the long side and pads with black.
    """

    image_size: int
    resize_mode: ResizeMode = "shortest"

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise ValueError(f"image_size must be positive, got {self.image_size = }")
        if self.resize_mode not in ("shortest", "squash", "longest"):
            raise ValueError(f"unknown {self.resize_mode = }; known: shortest, squash, longest")


@dataclass(frozen=True)
class VideoInfo:
    """Facts about a video file as decoded (after rotation), not as claimed by its header."""

    duration_ms: int
    width: int
    height: int
    fps: float
    codec: str
    num_frames: int
    num_bytes: int
    start_ms: int = 0  # when the first frame is shown on the file's clock, on which the sound may begin earlier


@dataclass(frozen=True, eq=False)
class FrameContent:
    """What each frame shows, as far as it takes no model. Arrays [T], bool."""

    is_blank: NDArray[np.bool_]  # one colour: black, white, a missing signal
    is_repeated: NDArray[np.bool_]  # looks like the frame before it: a frozen or static picture
    starts_shot: NDArray[np.bool_]  # of another shot than the frame before it


@dataclass(frozen=True, eq=False)
class FrameBatch:
    frames: NDArray[np.uint8]  # [T, H, W, C=3] RGB
    timestamps_ms: tuple[int, ...]  # [T] presentation times from the first frame of the video on; not decreasing
    video: VideoInfo
    warnings: tuple[tuple[str, str], ...] = ()  # (code, sentence) about the file
    num_failed: int = 0  # frames of the batch that took the place of others, which cannot be decoded
    content: FrameContent | None = None

    def __post_init__(self) -> None:
        shape = self.frames.shape
        if self.frames.dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or shape[0] < 1:
            raise ValueError(f"frames must be uint8 [T>=1, H, W, 3], got {self.frames.dtype} {list(shape)}")
        if len(self.timestamps_ms) != shape[0]:
            raise ValueError(f"{len(self.timestamps_ms)} timestamps for {shape[0]} frames")
        if any(b < a for a, b in zip(self.timestamps_ms, self.timestamps_ms[1:], strict=False)):
            raise ValueError("timestamps_ms must not decrease")

    def __repr__(self) -> str:
        t, h, w, _ = self.frames.shape
        span = f"{self.timestamps_ms[0]}..{self.timestamps_ms[-1]} ms"
        return f"FrameBatch(T={t}, H={h}, W={w}, {span}, {self.video.codec})"
