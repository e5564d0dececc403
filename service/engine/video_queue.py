"""Videos that wait for the engine, and which of them make up the next batch."""

from __future__ import annotations

import threading
import time
from collections import deque
from concurrent.futures import Future
from contextvars import Context, copy_context
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vidlex.service.errors import Overloaded


@dataclass(frozen=True, eq=False)
class EncodedVideo:
    vector: NDArray[np.float32]
    """[D], unit length."""
    queue_seconds: float
    encode_seconds: float
    """Time of the forward pass that held this video; shared with whoever was in the same batch."""


@dataclass(eq=False)
class VideoItem:
    frames: NDArray[np.uint8]
    """[T, H, W, 3]"""
    deadline: float
    """A time of ``time.monotonic``."""
    cancelled: threading.Event
    queued_at: float
    future: Future[EncodedVideo] = field(default_factory=Future)
    context: Context = field(default_factory=copy_context)
    """Of the request, so that log lines about it carry its id."""


def take_videos(
    queue: deque[VideoItem], max_frames: int
) -> tuple[list[VideoItem], list[tuple[VideoItem, Overloaded]], int]:
    """The next batch, oldest first: at least one video, at most ``max_frames``; those that are too late or given up,
    with the reason; and how many frames have left the queue."""
    batch: list[VideoItem] = []
    dropped: list[tuple[VideoItem, Overloaded]] = []
    num_taken = num_frames = 0
    now = time.monotonic()
    while queue:
        item = queue[0]
        size = len(item.frames)
        if batch and num_frames + size > max_frames:
            break
        queue.popleft()
        num_taken += size
        if item.cancelled.is_set():
            dropped.append((item, Overloaded("The request was given up")))
        elif now > item.deadline:
            dropped.append((item, Overloaded("The video waited too long for the encoder")))
        elif item.future.set_running_or_notify_cancel():
            batch.append(item)
            num_frames += size
    return batch, dropped, num_taken
