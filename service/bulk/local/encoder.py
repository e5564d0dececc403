"""A model in this process: a copy per device, whose one owner is the engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from vidlex.model.classifier import Classifier
from vidlex.service.engine.engine import Engine
from vidlex.service.engine.label_queue import LabelResult
from vidlex.service.engine.loading import load_copies
from vidlex.service.engine.scheduler import EngineLimits
from vidlex.service.engine.video_queue import EncodedVideo
from vidlex.service.models.served_model import ModelFacts
from vidlex.service.registration.label_cache import LabelCache
from vidlex.service.sharing.requester import Requester

if TYPE_CHECKING:
    from vidlex.model.video.precision import Precision

_LABELS_PER_CALL = 256  # then they are in the cache: an interrupted start goes on there


class TimedClassifier:
    """Adds up the time of forward passes over videos."""

    def __init__(self, classifier: Classifier) -> None:
        self._classifier = classifier
        self._is_busy = False
        self.busy_seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._classifier, name)

    def encode_video(self, *args: Any, **options: Any) -> NDArray[np.float32]:
        if self._is_busy:  # at a pause of a longer pass, whose time includes this one
            return self._classifier.encode_video(*args, **options)
        started, self._is_busy = time.monotonic(), True
        try:
            return self._classifier.encode_video(*args, **options)
        finally:
            self.busy_seconds += time.monotonic() - started
            self._is_busy = False


class LocalEncoder:
    """Of equal ``classifiers``, one per device. Call ``close`` last. Thread-safe.

    The first forward pass, which warms up the device, runs while the caller goes on.
    """

    def __init__(self, classifiers: Sequence[Classifier], limits: EngineLimits = EngineLimits()) -> None:
        self._timed = [TimedClassifier(classifier) for classifier in classifiers]
        self._engine = Engine([cast(Classifier, timed) for timed in self._timed], limits)
        self.facts = ModelFacts.of(classifiers[0])
        self.device = classifiers[0].device
        self.max_batch_frames = limits.max_batch_frames
        self._engine.start()

    @classmethod
    def load(
        cls,
        spec: str,
        *,
        device: str = "auto",
        precision: Precision = "auto",
        limits: EngineLimits = EngineLimits(),
    ) -> LocalEncoder:
        """Raises what ``load_copies`` raises."""
        return cls(load_copies(spec, device=device, precision=precision), limits)

    def close(self) -> None:
        self._engine.close()

    @property
    def num_devices(self) -> int:
        return len(self._timed)

    @property
    def busy_seconds(self) -> float:
        """Of all devices together."""
        return sum(timed.busy_seconds for timed in self._timed)

    @property
    def is_healthy(self) -> bool:
        return self._engine.is_healthy

    def encode_videos(
        self,
        videos: Sequence[NDArray[np.uint8]],
        *,
        requester: Requester | None = None,
        timeout_seconds: float = 60.0,
        wait_for_room: bool = False,
    ) -> list[EncodedVideo]:
        return self._engine.encode_videos(
            videos, requester=requester, timeout_seconds=timeout_seconds, wait_for_room=wait_for_room
        )

    def encode_labels(
        self,
        names: Sequence[str],
        cache: LabelCache,
        *,
        namespace: str = "",
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[LabelResult]:
        """One result per name, in order: its vector [D], or why there is none. Blocks.

        ``namespace`` is that of the store that the names are of. ``on_progress(num_done, num_names)`` is called on this
        thread. Raises EncodeFailed if the encoder has stopped.
        """
        scope = (namespace, self.facts.fingerprint, self.device)
        results: dict[str, LabelResult] = dict(cache.get(scope, names))
        missing = [name for name in dict.fromkeys(names) if name not in results]
        num_cached = len(results)
        for start in range(0, len(missing), _LABELS_PER_CALL):
            part = missing[start : start + _LABELS_PER_CALL]
            encoded = dict(zip(part, self._engine.encode_labels(part, timeout_seconds=float("inf")), strict=True))
            cache.put(scope, {name: x for name, x in encoded.items() if isinstance(x, np.ndarray)})
            results |= encoded
            on_progress(num_cached + start + len(part), num_cached + len(missing))
        return [results[name] for name in names]
