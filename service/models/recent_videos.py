"""Frames of the last classified videos, to compare a new model with the served one on what is really classified.

Frames and not features, because features of another video encoder cannot be compared. In memory only, bounded in
number and bytes, and apart for each namespace: nobody's videos are measured for another.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]
"""[T, H, W, 3] uint8 RGB at the size of the model that was asked."""


class KeptVideos:
    """Thread-safe."""

    def __init__(self, max_videos: int, max_bytes: int) -> None:
        """``max_videos`` of each namespace (0: keep nothing), ``max_bytes`` of all together."""
        self._max_videos = max_videos
        self._max_bytes = max_bytes
        self._frames: OrderedDict[tuple[str, str], Frames] = OrderedDict()
        self._num_bytes = 0
        self._lock = threading.Lock()

    def add(self, namespace: str, sha256: str, frames: Frames) -> None:
        """Keep a copy. The oldest ones make room; the same video again replaces itself."""
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
        """Oldest first."""
        with self._lock:
            return [frames for (owner, _), frames in self._frames.items() if owner == namespace]

    @property
    def num_bytes(self) -> int:
        return self._num_bytes

    def _drop(self, key: tuple[str, str]) -> None:
        old = self._frames.pop(key, None)
        if old is not None:
            self._num_bytes -= old.nbytes
