"""In-memory LRU cache of video features, so that a repeated video is neither decoded nor encoded.

The namespace is part of the key so that the speed of a hit does not reveal to one tenant which videos another has
uploaded. Concurrent requests for the same key wait for the first of them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
from cachetools import LRUCache
from numpy.typing import NDArray

from vidlex.model.types import FramePolicy, VideoInfo
from vidlex.service.classification.segments import Segment
from vidlex.service.errors import Overloaded

_OVERHEAD_BYTES = 1024  # of one entry, in addition to its arrays and tuples
_SEGMENT_BYTES = 160
_TIMESTAMP_BYTES = 40
_CANCEL_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class FeatureKey:
    namespace: str
    fingerprint: str
    sha256: str
    num_frames: int
    aggregate_by: str
    segment_ms: int | None
    start_ms: int | None
    end_ms: int | None
    frame_policy: FramePolicy = "uniform"


@dataclass(frozen=True, eq=False)
class VideoFeatures:
    video: VideoInfo
    timestamps_ms: tuple[int, ...]  # of all sampled frames
    segments: tuple[Segment, ...]  # S, at least one
    vectors: NDArray[np.float32]  # [S, D]
    frame_policy: FramePolicy = "uniform"  # in effect
    num_failed: int = 0  # frames that others took the place of, because they cannot be decoded
    num_blank: int = 0  # frames of one colour, which do not decide unless all are blank
    decoder: str = ""  # libraries and versions
    warnings: tuple[tuple[str, str], ...] = ()  # (code, detail) about the file

    @property
    def num_bytes(self) -> int:
        objects = _SEGMENT_BYTES * len(self.segments) + _TIMESTAMP_BYTES * len(self.timestamps_ms)
        objects += sum(len(code) + len(detail) for code, detail in self.warnings)
        return _OVERHEAD_BYTES + objects + self.vectors.nbytes


@dataclass(eq=False)
class _Computation:
    done: threading.Event = field(default_factory=threading.Event)
    features: VideoFeatures | None = None  # None until ``done``, and after an error


class FeatureCache:
    """Thread-safe. With ``max_bytes`` 0 nothing is cached or shared between requests."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._entries: LRUCache[FeatureKey, VideoFeatures] = LRUCache(max_bytes, getsizeof=lambda x: x.num_bytes)
        self._running: dict[FeatureKey, _Computation] = {}

    @property
    def num_bytes(self) -> int:
        return int(self._entries.currsize)

    def __len__(self) -> int:
        return len(self._entries)

    def get(
        self, key: FeatureKey, compute: Callable[[], VideoFeatures], *, deadline: float, cancelled: threading.Event
    ) -> tuple[VideoFeatures, bool]:
        """The features, and whether they came from the cache or a concurrent request rather than from ``compute``.

        Raises what ``compute`` raises, and Overloaded if ``deadline`` (of time.monotonic) passes or ``cancelled`` is
        set during the wait.
        """
        if not self._max_bytes:
            return compute(), False
        while True:
            with self._lock:
                cached = self._entries.get(key)
                if cached is not None:
                    return cached, True
                running = self._running.get(key)
                if running is None:
                    own = self._running[key] = _Computation()
                    break
            while not running.done.wait(_CANCEL_POLL_SECONDS):
                if cancelled.is_set() or time.monotonic() > deadline:
                    raise Overloaded("Timed out waiting for another request with the same video")
            if running.features is not None:
                return running.features, True
        try:
            own.features = compute()
            with self._lock, suppress(ValueError):  # larger than the cache
                self._entries[key] = own.features
            return own.features, False
        finally:
            with self._lock:
                del self._running[key]
            own.done.set()
