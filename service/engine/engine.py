"""Encodes videos and labels for all requests: one scheduler, and one worker with a copy of the model per device.

Videos of one forward pass do not exchange information, but matrix products of different shapes may round differently: a
video alone and in a batch agrees to about 1e-5, not bit for bit. Scores of stored labels are exactly independent of
each other: a video is encoded once per request and each label has its own product with it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from vidlex.model.classifier import Classifier
from vidlex.service.engine.device_worker import DeviceWorker, DeviceWorkerState
from vidlex.service.engine.label_queue import DescribeResult, LabelItem, LabelResult, ResultT
from vidlex.service.engine.scheduler import EngineLimits, Scheduler
from vidlex.service.engine.video_queue import EncodedVideo, VideoItem
from vidlex.service.errors import EncodeFailed, Overloaded

ValueT = TypeVar("ValueT")

# For a batch that is running at the deadline; the scheduler itself drops queued items past it.
_WAIT_MARGIN_SECONDS = 30.0


class Engine:
    """Call ``start`` first and ``close`` last. Thread-safe.

    ``classifiers`` are equal ones, one per device; raises ValueError otherwise. ``on_batch(num_videos, num_frames)`` is
    called after each forward pass over videos, on the worker's thread.
    """

    def __init__(
        self,
        classifiers: Sequence[Classifier],
        limits: EngineLimits = EngineLimits(),
        *,
        on_batch: Callable[[int, int], None] | None = None,
    ) -> None:
        if not classifiers:
            raise ValueError("an engine needs a classifier")
        _check_equal(classifiers)
        self.scheduler = Scheduler(limits)
        self._workers = [
            DeviceWorker(
                classifier,
                self.scheduler,
                name=f"vidlex-engine-{index}",
                is_other_healthy=lambda index=index: self._is_other_healthy(index),  # type: ignore[misc]
                on_stop=self._on_worker_stop,
                on_batch=on_batch,
            )
            for index, classifier in enumerate(classifiers)
        ]
        self._num_running = len(self._workers)

    def start(self) -> None:
        for worker in self._workers:
            worker.start()

    def close(self, timeout_seconds: float = 10.0) -> None:
        deadline = time.monotonic() + timeout_seconds
        self.scheduler.close("The service is stopping")
        for worker in self._workers:
            worker.join(max(0.0, deadline - time.monotonic()))

    def _is_other_healthy(self, index: int) -> bool:
        return any(worker.state == "healthy" for i, worker in enumerate(self._workers) if i != index)

    def _on_worker_stop(self) -> None:
        with self.scheduler.condition:
            self._num_running -= 1
            is_last = not self._num_running
        if is_last:
            self.scheduler.close("The encoder has stopped")

    @property
    def device_states(self) -> list[tuple[str, DeviceWorkerState]]:
        return [(worker.device, worker.state) for worker in self._workers]

    @property
    def num_healthy(self) -> int:
        return sum(worker.state == "healthy" for worker in self._workers)

    @property
    def is_healthy(self) -> bool:
        return self.num_healthy > 0

    @property
    def is_alive(self) -> bool:
        return any(worker.is_alive for worker in self._workers)

    def request_probes(self) -> None:
        with self.scheduler.condition:
            for worker in self._workers:
                worker.request_probe()
            self.scheduler.condition.notify_all()

    def encode_video(
        self,
        frames: NDArray[np.uint8],
        *,
        timeout_seconds: float = 60.0,
        cancelled: threading.Event | None = None,
    ) -> EncodedVideo:
        return self.encode_videos([frames], timeout_seconds=timeout_seconds, cancelled=cancelled)[0]

    def encode_videos(
        self,
        videos: Sequence[NDArray[np.uint8]],
        *,
        timeout_seconds: float = 60.0,
        cancelled: threading.Event | None = None,
        wait_for_room: bool = False,
    ) -> list[EncodedVideo]:
        """Encode the videos [T, H, W, 3] uint8 RGB of one request, queued all or none. Blocks.

        Raises Overloaded (queue full, cancelled, or not taken before the timeout) or EncodeFailed. Queued videos whose
        ``cancelled`` is set are dropped. With ``wait_for_room`` a full queue is waited for: to refuse the second hour
        of a video whose first one is encoded would only make the client send it again.
        """
        now = time.monotonic()
        deadline = now + timeout_seconds
        event = cancelled or threading.Event()
        items = [VideoItem(frames, deadline, event, now) for frames in videos]
        self._check_alive()
        self.scheduler.add_videos(items, wait_seconds=timeout_seconds if wait_for_room else 0.0)
        return [self._wait(item.future, deadline) for item in items]

    def encode_labels(self, names: Sequence[str], *, timeout_seconds: float = 300.0) -> list[LabelResult]:
        """One result per name, in order. Blocks.

        Raises Overloaded (queue full, or not done before the timeout) or EncodeFailed (the engine has stopped).
        """
        return self._process_labels(LabelItem[LabelResult](list(names), time.monotonic() + timeout_seconds, "encode"))

    def describe_labels(self, names: Sequence[str], *, timeout_seconds: float = 300.0) -> list[DescribeResult]:
        return self._process_labels(
            LabelItem[DescribeResult](list(names), time.monotonic() + timeout_seconds, "describe")
        )

    def _process_labels(self, item: LabelItem[ResultT]) -> list[ResultT]:
        if not item.names:
            return []
        self._check_alive()
        self.scheduler.add_labels(item)
        return self._wait(item.future, item.deadline)

    def _check_alive(self) -> None:
        if not self.is_alive:
            raise EncodeFailed("The encoder is not running")

    @staticmethod
    def _wait(future: Future[ValueT], deadline: float) -> ValueT:
        try:
            return future.result(timeout=max(0.0, deadline - time.monotonic()) + _WAIT_MARGIN_SECONDS)
        except TimeoutError:
            future.cancel()
            raise Overloaded("The encoder did not answer in time") from None


def _check_equal(classifiers: Sequence[Classifier]) -> None:
    kinds = {(c.fingerprint, str(c.info().get("encoder", ""))) for c in classifiers}
    if len(kinds) > 1:
        listed = "; ".join(f"{c.device}: {c.fingerprint[:12]} {c.info().get('encoder', '')}" for c in classifiers)
        raise ValueError(
            f"the devices would give different scores ({listed}): name devices of one kind in VIDLEX_DEVICE, or set "
            "VIDLEX_PRECISION"
        )
