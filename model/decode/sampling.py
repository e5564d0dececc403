"""Which frames of a video are looked at: integer arithmetic on frame times, nothing else.

Times are milliseconds from the start of the video. Frame ``i`` is on screen from ``starts_ms[i]`` until the next
frame starts, so a time names exactly one frame, with constant and with variable frame rate.

Policies:

``uniform``    cut the window into T equal segments and take the frame on screen at the centre of each.
``keyframes``  T of the frames in the window that decode without any other, spread evenly; fast and less exact.

A window with no more frames than asked gives each of them once and then repeats the last, so the answer always has
T frames and never goes back in time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vidlex.model.types import FramePolicy

Indices = NDArray[np.int64]


def centre_times(num_frames: int, start_ms: int, end_ms: int) -> Indices:
    """Centres of ``num_frames`` equal segments of [start_ms, end_ms), rounded down: [T], not decreasing."""
    if num_frames < 1:
        raise ValueError(f"num_frames must be positive, got {num_frames = }")
    if not 0 <= start_ms < end_ms:
        raise ValueError(f"the window must not be empty or start before 0, got {start_ms = }, {end_ms = }")
    halves = np.arange(1, 2 * num_frames, 2, dtype=np.int64)
    return start_ms + halves * (end_ms - start_ms) // (2 * num_frames)


def frames_at(times_ms: Indices, starts_ms: Indices) -> Indices:
    """The frame on screen at each time; before the first frame that is the first."""
    return np.maximum(np.searchsorted(starts_ms, times_ms, side="right") - 1, 0).astype(np.int64)


def frames_in(start_ms: int, end_ms: int, starts_ms: Indices) -> Indices:
    """All frames that are on screen at some time of [start_ms, end_ms), in order; at least one."""
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
    """Indices [T = num_frames] of the frames to decode, not decreasing. ``starts_ms`` must be in order.

    ``keyframes`` (indices, in order) serves the policy of that name; with none in the window it falls back to the
    last one before it, from which the window's first frame is decoded anyway, and failing that to frame 0.
    """
    if len(starts_ms) == 0:
        raise ValueError("a video without frames has nothing to select")
    times = centre_times(num_frames, start_ms, end_ms)
    inside = frames_in(start_ms, end_ms, starts_ms)
    if policy == "uniform":
        return _padded(inside, num_frames) if len(inside) <= num_frames else frames_at(times, starts_ms)
    if policy == "keyframes":
        keys = np.asarray(keyframes, dtype=np.int64)
        within = keys[(keys >= inside[0]) & (keys <= inside[-1])]
        if len(within) == 0:
            before = keys[keys < inside[0]]
            within = before[-1:] if len(before) else np.zeros(1, np.int64)
        if len(within) <= num_frames:
            return _padded(within, num_frames)
        places = (2 * np.arange(num_frames, dtype=np.int64) + 1) * len(within) // (2 * num_frames)
        return np.take(within, places)
    raise ValueError(f"unknown {policy = }; known: uniform, keyframes")


def _padded(indices: Indices, num_frames: int) -> Indices:
    return np.concatenate([indices, np.full(num_frames - len(indices), indices[-1], np.int64)])
