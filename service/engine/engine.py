"""What encodes videos and labels for all requests: one queue, and for each device an owner that takes from it.

Batching and numbers: videos of one forward pass do not exchange information, but matrix products of another shape
may round otherwise, so the same video alone and in a batch agrees to about 1e-5, not bit for bit. What is exact is
the independence of stored labels: a video is encoded once per request and each label has its own product with it.

Several devices hold copies of one model, and whichever is free takes the next batch. One that fails is left out until
a pass works on it again (`vidlex.service.engine.device_worker`); ``healthy`` is false when none is left.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidlex.model.classifier import Classifier
from vidlex.service.engine.device_worker import LabelResult, Owner, OwnerState
from vidlex.service.engine.label_descriptions import DescribeResult
from vidlex.service.engine.label_queue import LabelItem
from vidlex.service.engine.scheduler import Coming, EngineLimits, Work
from vidlex.service.engine.video_queue import EncodedVideo, VideoItem
from vidlex.service.errors import EncodeFailed, Overloaded


class Engine:
    """``start()`` first, ``close()`` last; everything else from any thread."""

    def __init__(
        self,
        classifiers: Sequence[Classifier],
        limits: EngineLimits = EngineLimits(),
        *,
        on_batch: Callable[[int, int], None] | None = None,
    ) -> None:
        """``classifiers``: equal ones, one for each device. ``on_batch(num_videos, num_frames)`` is told of each
        forward pass over videos, on the owner's thread. Raises ValueError for classifiers that are not equal."""
        if not classifiers:
            raise ValueError("an engine needs a classifier")
        check_equal(classifiers)
        self._work = Work(limits)
        self._owners: list[Owner] = []
        for place, classifier in enumerate(classifiers):
            owner = Owner(
                classifier,
                self._work,
                name=f"vidlex-engine-{place}",
                others_work=lambda place=place: self._works_beside(place),  # type: ignore[misc]
                on_end=self._on_end,
                on_batch=on_batch,
            )
            self._owners.append(owner)
        self._left = len(self._owners)

    # --- life

    def start(self) -> None:
        for owner in self._owners:
            owner.start()

    def close(self, timeout_seconds: float = 10.0) -> None:
        """Refuse new work, fail what still waits, and end the threads after their present batches."""
        ends_at = time.monotonic() + timeout_seconds
        self._work.close("The service is stopping")
        for owner in self._owners:
            if owner.started:
                owner.join(max(0.0, ends_at - time.monotonic()))

    def _works_beside(self, place: int) -> bool:
        return any(owner.state == "works" for i, owner in enumerate(self._owners) if i != place)

    def _on_end(self) -> None:
        """An owner's thread ends: by itself, which is a fault, or because the engine was closed."""
        with self._work.wake:
            self._left -= 1
            last = not self._left
        if last:
            self._work.close("The encoder has stopped")

    @property
    def states(self) -> list[tuple[str, OwnerState]]:
        """Each device and how its owner is: by its last forward pass (of a request or a probe)."""
        return [(owner.device, owner.state) for owner in self._owners]

    @property
    def healthy(self) -> bool:
        """At least one device works."""
        return any(owner.state == "works" for owner in self._owners)

    @property
    def alive(self) -> bool:
        """Some owner's thread lives."""
        return any(owner.alive for owner in self._owners)

    def check(self) -> None:
        """Have each device tried on which no pass has worked lately. Does not wait: ``healthy`` tells later."""
        with self._work.wake:
            for owner in self._owners:
                owner.want_check()
            self._work.wake.notify_all()

    @property
    def queued_frames(self) -> int:
        return self._work.queued_frames

    @property
    def queued_labels(self) -> int:
        return self._work.queued_labels

    # --- work

    def expect(self) -> AbstractContextManager[Coming]:
        """While it lasts, videos of one request are on their way: a batch may wait a moment for them."""
        return self._work.expect()

    def encode_video(
        self,
        frames: NDArray[np.uint8],
        *,
        timeout_seconds: float = 60.0,
        cancelled: threading.Event | None = None,
    ) -> EncodedVideo:
        """One video [T, H, W, 3] uint8 RGB. Blocks.

        Raises Overloaded (queue full, or no turn before the timeout) or EncodeFailed. A video whose ``cancelled``
        is set is dropped when its turn comes.
        """
        return self.encode_videos([frames], timeout_seconds=timeout_seconds, cancelled=cancelled)[0]

    def encode_videos(
        self,
        videos: Sequence[NDArray[np.uint8]],
        *,
        timeout_seconds: float = 60.0,
        cancelled: threading.Event | None = None,
        coming: Coming | None = None,
    ) -> list[EncodedVideo]:
        """Several videos of one request (segments, say), admitted all or none. As ``encode_video``. ``coming``: what
        ``expect`` gave for them."""
        now = time.monotonic()
        deadline = now + timeout_seconds
        event = cancelled or threading.Event()
        items = [VideoItem(frames, deadline, event, now) for frames in videos]
        self._check_alive()
        self._work.add_videos(items, coming)
        return [self._wait(item.future, deadline) for item in items]

    def encode_labels(self, names: Sequence[str], *, timeout_seconds: float = 300.0) -> list[LabelResult]:
        """One result for each name, in order: a vector [D], LabelTextInvalid or EncodeFailed. Blocks.

        Raises Overloaded (queue full, or not done before the timeout) or EncodeFailed (the engine is stopped).
        """
        results: list[LabelResult] = self._queue_labels(LabelItem(list(names), time.monotonic() + timeout_seconds))
        return results

    def describe_labels(self, names: Sequence[str], *, timeout_seconds: float = 300.0) -> list[DescribeResult]:
        """How the encoder reads each name, in order, or why it does not. As ``encode_labels``, with its turns."""
        item = LabelItem(list(names), time.monotonic() + timeout_seconds, "describe")
        results: list[DescribeResult] = self._queue_labels(item)
        return results

    def _queue_labels(self, item: LabelItem) -> list[Any]:
        if not item.names:
            return []
        self._check_alive()
        self._work.add_labels(item)
        results: list[Any] = self._wait(item.future, item.deadline)
        return results

    def _check_alive(self) -> None:
        if not self.alive:
            raise EncodeFailed("The encoder is not running")

    @staticmethod
    def _wait(future: Future[Any], deadline: float) -> Any:
        try:
            # The engine itself gives up items past their deadline; the margin is for a batch already under way.
            return future.result(timeout=max(0.0, deadline - time.monotonic()) + 30.0)
        except TimeoutError:
            future.cancel()
            raise Overloaded("The encoder did not answer in time") from None


def check_equal(classifiers: Sequence[Classifier]) -> None:
    """Whichever serves, the scores are the same: one model, run in one way. Raises ValueError."""
    kinds = {(c.fingerprint, str(c.info().get("encoder", ""))) for c in classifiers}
    if len(kinds) > 1:
        how = "; ".join(f"{c.device}: {c.fingerprint[:12]} {c.info().get('encoder', '')}" for c in classifiers)
        raise ValueError(
            f"the devices would give different scores ({how}): name devices of one kind in VIDLEX_DEVICE, or set "
            "VIDLEX_PRECISION"
        )
