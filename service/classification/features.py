"""Video features that are kept for a while: the same video against new labels is then one matrix product.

A feature is found again by namespace, encoder, sha256 of the file and everything that chooses its frames. The namespace
is part of it on purpose: a hit, which is fast and says so, must not tell one tenant that another has uploaded the same
video. Requests for the same video at the same time wait for the first of them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vidlex.model.types import VideoInfo
from vidlex.service.classification.matching import Part
from vidlex.service.errors import Overloaded
from vidlex.service.registration.byte_lru import ByteBounded

_ENTRY_BYTES = 1024
_PART_BYTES = 160
_TIMESTAMP_BYTES = 40
_GIVEN_UP_SECONDS = 0.1
"""How often a request that waits for another looks whether its own client has left."""


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
    frame_policy: str = "uniform"


@dataclass(frozen=True, eq=False)
class VideoFeatures:
    """A video as the encoder sees it, without its frames."""

    video: VideoInfo
    timestamps_ms: tuple[int, ...]
    parts: tuple[Part, ...]
    """S of them, at least one."""
    vectors: NDArray[np.float32]
    """[S, D]"""

    @property
    def num_bytes(self) -> int:
        """What keeping it takes, about."""
        objects = _PART_BYTES * len(self.parts) + _TIMESTAMP_BYTES * len(self.timestamps_ms)
        return _ENTRY_BYTES + objects + self.vectors.nbytes


@dataclass(eq=False)
class _Running:
    done: threading.Event = field(default_factory=threading.Event)
    features: VideoFeatures | None = None


class FeatureCache:
    """Thread-safe. What was not used for longest goes when ``max_bytes`` are full; 0 keeps nothing."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._entries = ByteBounded[FeatureKey, VideoFeatures](max_bytes)
        self._running: dict[FeatureKey, _Running] = {}

    @property
    def num_bytes(self) -> int:
        return self._entries.num_bytes

    def __len__(self) -> int:
        return len(self._entries)

    def get(
        self, key: FeatureKey, make: Callable[[], VideoFeatures], *, deadline: float, cancelled: threading.Event
    ) -> tuple[VideoFeatures, bool]:
        """The features and whether they were there already: kept, or made for another request meanwhile.

        When the other request fails, this one makes them itself. Raises what ``make`` raises, and Overloaded when
        ``deadline`` (of time.monotonic) passes or ``cancelled`` is set while it waits.
        """
        if not self._max_bytes:
            return make(), False
        while True:
            with self._lock:
                found = self._entries.get(key)
                if found is not None:
                    return found, True
                running = self._running.get(key)
                if running is None:
                    mine = self._running[key] = _Running()
                    break
            while not running.done.wait(_GIVEN_UP_SECONDS):
                if cancelled.is_set() or time.monotonic() > deadline:
                    raise Overloaded("The video waited too long for another request with the same one")
            if running.features is not None:
                return running.features, True
        try:
            mine.features = make()
            with self._lock:
                self._entries.put(key, mine.features, mine.features.num_bytes)
            return mine.features, False
        finally:
            with self._lock:
                del self._running[key]
            mine.done.set()
