"""Queued videos, and the selection of the next batch."""

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
    vector: NDArray[np.float32]  # [D], unit length
    queue_seconds: float
    encode_seconds: float  # of the forward pass, which other videos of the batch share


@dataclass(eq=False)
class VideoItem:
    frames: NDArray[np.uint8]  # [T, H, W, 3]
    deadline: float  # of time.monotonic
    cancelled: threading.Event
    queued_at: float
    future: Future[EncodedVideo] = field(default_factory=Future)
    context: Context = field(default_factory=copy_context)  # of the request, so that log lines about it carry its id


def take_videos(
    queue: deque[VideoItem], max_frames: int
) -> tuple[list[VideoItem], list[tuple[VideoItem, Overloaded]], int]:
    """Return (batch, dropped, num_frames removed from the queue).

    The batch holds the oldest valid videos: at most ``max_frames``, unless a single one is longer. Expired and
    cancelled videos are dropped with their error.
    """
    batch: list[VideoItem] = []
    dropped: list[tuple[VideoItem, Overloaded]] = []
    num_removed = num_frames = 0
    now = time.monotonic()
    while queue:
        item = queue[0]
        size = len(item.frames)
        if batch and num_frames + size > max_frames:
            break
        queue.popleft()
        num_removed += size
        if item.cancelled.is_set():
            dropped.append((item, Overloaded("The request was cancelled")))
        elif now > item.deadline:
            dropped.append((item, Overloaded("The video waited too long for the encoder")))
        elif item.future.set_running_or_notify_cancel():
            batch.append(item)
            num_frames += size
    return batch, dropped, num_removed
