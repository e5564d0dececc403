"""Encodes videos and labels for all requests: one scheduler, and one worker with a copy of the model per device.

Videos of one forward pass do not exchange information, but matrix products of different shapes may round differently: a
video alone and in a batch agrees to about 1e-5, not bit for bit. Scores of stored labels are exactly independent of
each other: a video is encoded once per request and each label has its own product with it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from vidlex.model.classifier import Classifier
from vidlex.service.engine.device_worker import DeviceWorker, DeviceWorkerState
from vidlex.service.engine.label_queue import DescribeResult, LabelItem, LabelResult, ResultT
from vidlex.service.engine.scheduler import EngineLimits, Scheduler
from vidlex.service.engine.video_queue import EncodedVideo, VideoItem
from vidlex.service.errors import EncodeFailed, Overloaded
from vidlex.service.sharing.requester import Requester

ValueT = TypeVar("ValueT")

# For a batch that is running at the deadline; what is still queued then is dropped.
_WAIT_MARGIN_SECONDS = 30.0
_POLL_SECONDS = 0.1  # of the requester's ``cancelled``, an event of another thread


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
        self, frames: NDArray[np.uint8], *, requester: Requester | None = None, timeout_seconds: float = 60.0
    ) -> EncodedVideo:
        return self.encode_videos([frames], requester=requester, timeout_seconds=timeout_seconds)[0]

    def encode_videos(
        self,
        videos: Sequence[NDArray[np.uint8]],
        *,
        requester: Requester | None = None,
        timeout_seconds: float = 60.0,
        wait_for_room: bool = False,
    ) -> list[EncodedVideo]:
        """Encode the videos [T, H, W, 3] uint8 RGB of one request, queued all or none. Blocks.

        Raises Overloaded (queue full, cancelled, or not taken before the timeout or the requester's deadline),
        ShareExceeded or EncodeFailed. What is still queued when the request is cancelled is dropped. With
        ``wait_for_room`` a full queue is waited for: to refuse the second hour of a video whose first one is encoded
        would only make the client send it again.
        """
        now = time.monotonic()
        asking = (requester or Requester()).by(now + timeout_seconds)
        items = [VideoItem(frames, asking, now) for frames in videos]
        self._check_alive()
        self.scheduler.add_videos(items, wait_for_room=wait_for_room)
        try:
            return [self._wait(item, item.future) for item in items]
        except Overloaded:
            self.scheduler.withdraw(items)
            raise

    def encode_labels(
        self,
        names: Sequence[str],
        *,
        requester: Requester | None = None,
        timeout_seconds: float = 300.0,
        on_abandoned: Callable[[list[LabelResult | None]], None] = lambda results: None,
    ) -> list[LabelResult]:
        """One result per name, in order. Blocks.

        Raises Overloaded (queue full, cancelled, or not done before the timeout or the requester's deadline),
        ShareExceeded or EncodeFailed (the engine has stopped). The names still queued are dropped then;
        ``on_abandoned`` receives the results of those that are done, in order, and None for the others.
        """
        asking = (requester or Requester()).by(time.monotonic() + timeout_seconds)
        item = LabelItem[LabelResult](list(names), asking, "encode")
        try:
            return self._process_labels(item)
        except Overloaded:
            if item.num_done:
                on_abandoned(list(item.results))
            raise

    def describe_labels(
        self, names: Sequence[str], *, requester: Requester | None = None, timeout_seconds: float = 300.0
    ) -> list[DescribeResult]:
        """As ``encode_labels``."""
        asking = (requester or Requester()).by(time.monotonic() + timeout_seconds)
        return self._process_labels(LabelItem[DescribeResult](list(names), asking, "describe"))

    def _process_labels(self, item: LabelItem[ResultT]) -> list[ResultT]:
        if not item.names:
            return []
        item.requester.check()
        self._check_alive()
        self.scheduler.add_labels(item)
        try:
            return self._wait(item, item.future)
        except Overloaded:
            self.scheduler.withdraw([item])
            raise

    def _check_alive(self) -> None:
        if not self.is_alive:
            raise EncodeFailed("The encoder is not running")

    @staticmethod
    def _wait(item: VideoItem | LabelItem[Any], future: Future[ValueT]) -> ValueT:
        while True:
            try:
                return future.result(timeout=_POLL_SECONDS)
            except (TimeoutError, CancelledError):
                item.requester.check()
                late_seconds = time.monotonic() - item.requester.deadline
                if late_seconds > (_WAIT_MARGIN_SECONDS if item.is_in_batch else 0.0):
                    raise Overloaded("The encoder did not answer in time", limit="timeout") from None


def _check_equal(classifiers: Sequence[Classifier]) -> None:
    kinds = {(c.fingerprint, str(c.info().get("encoder", ""))) for c in classifiers}
    if len(kinds) > 1:
        listed = "; ".join(f"{c.device}: {c.fingerprint[:12]} {c.info().get('encoder', '')}" for c in classifiers)
        raise ValueError(
            f"the devices would give different scores ({listed}): name devices of one kind in VIDLEX_DEVICE, or set "
            "VIDLEX_PRECISION"
        )
