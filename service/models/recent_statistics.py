"""Mean and covariance of the features of recently classified videos, for a calibration to the service's own traffic.

Nothing of a single video is kept. In memory, per replica; lost with the process.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from vidlex.model.calibration.statistics import DomainStatistics

MAX_VIDEOS = 10_000  # of weight: with more, older videos fade


class RecentStatistics:
    """Thread-safe. Of the most recently used ``max_namespaces``, by namespace and model."""

    def __init__(self, *, is_enabled: bool, max_namespaces: int) -> None:
        self.is_enabled = is_enabled
        self._max_namespaces = max_namespaces
        self._statistics: OrderedDict[tuple[str, str], DomainStatistics] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, namespace: str, fingerprint: str, feature: NDArray[np.float32]) -> None:
        if not self.is_enabled:
            return
        key = (namespace, fingerprint)
        with self._lock:
            old = self._statistics.pop(key, None)
            new = DomainStatistics.of(feature[None]) if old is None else old.add(feature)
            self._statistics[key] = replace(new, num_videos=min(new.num_videos, MAX_VIDEOS))
            while len(self._statistics) > self._max_namespaces:
                self._statistics.popitem(last=False)

    def of(self, namespace: str, fingerprint: str) -> DomainStatistics | None:
        with self._lock:
            return self._statistics.get((namespace, fingerprint))
