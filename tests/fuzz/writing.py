"""Writes short videos of a moving gradient."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

WIDTH, HEIGHT, FPS, NUM_FRAMES = 96, 64, 10, 20

_CODEC_OPTIONS = {
    "libx264": {"preset": "ultrafast"},
    "libx265": {"x265-params": "log-level=none"},
    "libsvtav1": {"preset": "10"},
    "libvpx": {"deadline": "realtime", "cpu-used": "8"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8"},
}


def write(
    path: Path,
    codec: str = "libx264",
    *,
    pix_fmt: str = "yuv420p",
    width: int = WIDTH,
    height: int = HEIGHT,
    num_frames: int = NUM_FRAMES,
    rate: int = FPS,
    rotation: int = 0,
    has_audio: bool = False,
    times: Callable[[int], int] | None = None,
    num_streams: int = 1,
    attach: bytes | None = None,
    options: dict[str, str] | None = None,
    container_format: str | None = None,
    tags: dict[str, str] | None = None,
) -> bytes:
    """Write a short video of a moving gradient. ``times`` maps a frame number to milliseconds."""
    with av.open(str(path), "w", format=container_format, options=options or {}) as container:
        container.metadata.update(tags or {})
        streams: list[Any] = []
        for _ in range(num_streams):
            stream: Any = container.add_stream(codec, rate=rate)
            stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
            stream.thread_type = "NONE"
            stream.options = dict(_CODEC_OPTIONS.get(codec, {}))
            stream.codec_context.thread_count = 1
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000 if times else rate)
            streams.append(stream)
        if rotation:
            streams[0].set_display_rotation(rotation)
        audio: Any = container.add_stream("aac", rate=16000) if has_audio else None
        if attach is not None:
            container.add_attachment("font.ttf", "application/x-truetype-font", attach)
        for number in range(num_frames):
            for stream in streams:
                frame = av.VideoFrame.from_ndarray(gradient(number, width, height), format="rgb24")
                frame.time_base = stream.codec_context.time_base
                frame.pts = times(number) if times else number
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode())
        if audio is not None:
            encode_tone(container, audio)
    return path.read_bytes()


def gradient(number: int, width: int, height: int) -> Any:
    columns = (np.arange(width) * 255 // width + number * 8) % 256
    picture = np.empty((height, width, 3), np.uint8)
    picture[..., 0] = columns
    picture[..., 1] = (np.arange(height) * 255 // height)[:, None]
    picture[..., 2] = number * 12 % 256
    return picture


def encode_tone(container: Any, stream: Any) -> None:
    for start in range(0, 16000, 1024):
        samples = (np.sin(np.arange(start, start + 1024) * 0.05) * 8000).astype(np.int16)
        chunk = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        chunk.sample_rate, chunk.pts = 16000, start
        container.mux(stream.encode(chunk))
    container.mux(stream.encode())
