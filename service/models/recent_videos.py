"""Frames of the most recently classified videos, on which a new model is compared with the served one.

Frames rather than features, because features of different video encoders are not comparable.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]  # [T, H, W, 3] RGB, at the input size of the model that classified the video


class RecentVideos:
    """In memory. Thread-safe. ``max_videos`` is per namespace (0 disables), ``max_bytes`` in total."""

    def __init__(self, max_videos: int, max_bytes: int) -> None:
        self._max_videos = max_videos
        self._max_bytes = max_bytes
        self._frames: OrderedDict[tuple[str, str], Frames] = OrderedDict()  # oldest first
        self._num_bytes = 0
        self._lock = threading.Lock()

    def add(self, namespace: str, sha256: str, frames: Frames) -> None:
        if not self._max_videos or frames.nbytes > self._max_bytes:
            return
        with self._lock:
            self._drop((namespace, sha256))
            self._frames[namespace, sha256] = frames.copy()
            self._num_bytes += frames.nbytes
            own = [key for key in self._frames if key[0] == namespace]
            for key in own[: -self._max_videos]:
                self._drop(key)
            while self._num_bytes > self._max_bytes:
                self._drop(next(iter(self._frames)))

    def videos(self, namespace: str) -> list[Frames]:
        with self._lock:
            return [frames for (owner, _), frames in self._frames.items() if owner == namespace]

    @property
    def num_bytes(self) -> int:
        return self._num_bytes

    def _drop(self, key: tuple[str, str]) -> None:
        frames = self._frames.pop(key, None)
        if frames is not None:
            self._num_bytes -= frames.nbytes
