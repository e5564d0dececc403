"""Selects the frames of a video to decode, by integer arithmetic on frame times.

Times are milliseconds from the start of the video. Frame ``i`` is shown from ``starts_ms[i]`` until the next frame
starts, so every time has exactly one frame, with constant and with variable frame rate.

Policies:

``uniform``    the frames shown at the centres of T equal segments of the window.
``keyframes``  T keyframes of the window, spread evenly; faster and less exact.

If the window has at most T frames, each is selected once and the last is repeated: the result always has T frames in
presentation order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vidlex.model.types import FramePolicy

Indices = NDArray[np.int64]


def centre_times(num_frames: int, start_ms: int, end_ms: int) -> Indices:
    """[T] centres of equal segments of [start_ms, end_ms), rounded down."""
    if num_frames < 1:
        raise ValueError(f"num_frames must be positive, got {num_frames = }")
    if not 0 <= start_ms < end_ms:
        raise ValueError(f"the window must not be empty or start before 0, got {start_ms = }, {end_ms = }")
    halves = np.arange(1, 2 * num_frames, 2, dtype=np.int64)
    return start_ms + halves * (end_ms - start_ms) // (2 * num_frames)


def frames_at(times_ms: Indices, starts_ms: Indices) -> Indices:
    return np.maximum(np.searchsorted(starts_ms, times_ms, side="right") - 1, 0).astype(np.int64)


def frames_in(start_ms: int, end_ms: int, starts_ms: Indices) -> Indices:
    first = int(frames_at(np.array([start_ms]), starts_ms)[0])
    last = int(frames_at(np.array([end_ms - 1]), starts_ms)[0])
    return np.arange(first, last + 1, dtype=np.int64)


def select_frames(
    starts_ms: Indices,
    *,
    num_frames: int,
    start_ms: int,
    end_ms: int,
    policy: FramePolicy = "uniform",
    keyframes: Sequence[int] | Indices = (),
) -> Indices:
    """[T] indices of the frames to decode, not decreasing. ``starts_ms`` and ``keyframes`` (indices) must be sorted.

    The ``keyframes`` policy falls back to the last keyframe before the window, or else to frame 0.
    """
    if len(starts_ms) == 0:
        raise ValueError("cannot select frames of a video without frames")
    times = centre_times(num_frames, start_ms, end_ms)
    inside = frames_in(start_ms, end_ms, starts_ms)
    if policy == "uniform":
        return _repeat_last(inside, num_frames) if len(inside) <= num_frames else frames_at(times, starts_ms)
    if policy == "keyframes":
        keys = np.asarray(keyframes, dtype=np.int64)
        within = keys[(keys >= inside[0]) & (keys <= inside[-1])]
        if len(within) == 0:
            before = keys[keys < inside[0]]
            within = before[-1:] if len(before) else np.zeros(1, np.int64)
        if len(within) <= num_frames:
            return _repeat_last(within, num_frames)
        centres = (2 * np.arange(num_frames, dtype=np.int64) + 1) * len(within) // (2 * num_frames)
        return np.take(within, centres)
    raise ValueError(f"unknown {policy = }; known: uniform, keyframes")


def _repeat_last(indices: Indices, num_frames: int) -> Indices:
    return np.concatenate([indices, np.full(num_frames - len(indices), indices[-1], np.int64)])
