"""The kept videos of all namespaces: records in the label store's server, features in files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import redis
from numpy.typing import NDArray

from vidlex.service.labels.store.redis_types import Guard, accept_any
from vidlex.service.videos.records import FeatureTable, KeptFeatures, KeptSegment, KeptVideo, NewKeptVideo


@dataclass(frozen=True)
class VideoLimits:
    max_bytes: int  # per namespace
    keep_seconds: float | None  # default; None: for ever


class KeptVideoStore:
    """Thread-safe. Every method raises StoreUnavailable."""

    def __init__(self, client: redis.Redis, root: Path, limits: VideoLimits, *, guard: Guard = accept_any) -> None:
        raise NotImplementedError

    def keep(
        self, new: NewKeptVideo, fingerprint: str, segments: Sequence[KeptSegment], vectors: NDArray[np.float32]
    ) -> KeptVideo:
        """Durable on return. A video of equal content and sampling is updated: its id stays, and its features of other
        encoders too. Raises ByteQuotaExceeded, StorageFull.
        """
        raise NotImplementedError

    def get(self, namespace: str, video_id: str) -> KeptVideo:
        """Raises NotFound."""
        raise NotImplementedError

    def get_many(self, namespace: str, video_ids: Sequence[str]) -> list[KeptVideo]:
        """Those that exist, in this order."""
        raise NotImplementedError

    def remove(self, namespace: str, video_id: str) -> None:
        """Raises NotFound."""
        raise NotImplementedError

    def features(self, namespace: str, video_id: str, fingerprint: str) -> KeptFeatures | None:
        """None if the video has none of this encoder. Raises NotFound."""
        raise NotImplementedError

    def table(self, namespace: str, fingerprint: str) -> FeatureTable:
        raise NotImplementedError

    def generations(self, namespace: str) -> Mapping[str, int]:
        """Encoder fingerprint -> number of videos."""
        raise NotImplementedError
