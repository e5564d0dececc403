"""Queued videos, and the selection of the next batch."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import Context, copy_context
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vidlex.service.errors import Overloaded
from vidlex.service.sharing.fair_queue import FairQueue
from vidlex.service.sharing.requester import Requester


@dataclass(frozen=True, eq=False)
class EncodedVideo:
    vector: NDArray[np.float32]  # [D], unit length
    queue_seconds: float
    encode_seconds: float  # of the forward pass, which other videos of the batch share


@dataclass(eq=False)
class VideoItem:
    frames: NDArray[np.uint8]  # [T, H, W, 3]
    requester: Requester
    queued_at: float
    future: Future[EncodedVideo] = field(default_factory=Future)
    context: Context = field(default_factory=copy_context)  # of the request, so that log lines about it carry its id

    @property
    def is_in_batch(self) -> bool:
        return self.future.running()

    @property
    def num_frames(self) -> int:
        return len(self.frames)


def take_videos(
    queue: FairQueue[VideoItem],
    max_frames: int,
    accepts: Callable[[VideoItem], bool] = lambda item: True,
) -> tuple[list[VideoItem], list[tuple[VideoItem, Overloaded]]]:
    """Return (batch, dropped).

    The batch holds the valid, accepted videos of the least served clients: at most ``max_frames``, unless a single one
    is longer. Expired and cancelled videos are dropped with their error.
    """
    batch: list[VideoItem] = []
    dropped: list[tuple[VideoItem, Overloaded]] = []
    num_frames = 0
    now = time.monotonic()

    def fits(client: str, item: VideoItem) -> bool:
        return accepts(item) and (not batch or num_frames + item.num_frames <= max_frames)

    while (item := queue.take(fits)) is not None:
        if item.requester.cancelled.is_set():
            dropped.append((item, Overloaded("The request was cancelled")))
        elif now > item.requester.deadline:
            dropped.append((item, Overloaded("The video waited too long for the encoder", limit="timeout")))
        elif item.future.set_running_or_notify_cancel():
            batch.append(item)
            num_frames += item.num_frames
            queue.charge(item.requester.client, item.num_frames)
        else:
            dropped.append((item, Overloaded("The request was cancelled")))
    return batch, dropped
