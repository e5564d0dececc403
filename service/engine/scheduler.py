"""The queues in front of the devices: videos, bounded in frames, and label names, bounded in names.

Batches alternate between the two, so that many labels do not delay a video and vice versa. A batch holds what is
queued when a device becomes free. Clients share each queue, and the batches, by frames and by names.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any, TypeVar

from vidlex.service.engine.label_queue import DescribeResult, LabelItem, LabelResult, LabelSlice, take_labels
from vidlex.service.engine.video_queue import VideoItem, take_videos
from vidlex.service.errors import EncodeFailed, Overloaded, ShareExceeded, VidlexError
from vidlex.service.sharing.fair_queue import FairQueue
from vidlex.service.sharing.requester import BACKGROUND
from vidlex.service.sharing.shares import Shares

ValueT = TypeVar("ValueT")

_VIDEO_SECONDS = 5.0  # after a video, the next one is expected for this long
_POLL_SECONDS = 0.1  # of the requester's ``cancelled``, an event of another thread


@dataclass(frozen=True)
class EngineLimits:
    max_queued_frames: int = 4096
    max_queued_labels: int = 8192
    max_batch_frames: int = 128
    max_batch_labels: int = 32  # upper bound; workers use smaller batches where labels are slow


@dataclass(frozen=True, eq=False)
class Batch:
    """Videos, or labels of one kind, or nothing."""

    videos: list[VideoItem] = field(default_factory=list)
    labels: list[LabelSlice] = field(default_factory=list)


class Scheduler:
    """Thread-safe. ``condition`` guards all state and is notified when a worker may have something to do."""

    def __init__(self, limits: EngineLimits) -> None:
        self.limits = limits
        self.condition = threading.Condition()
        self.is_closed = False
        self._videos: FairQueue[VideoItem] = FairQueue()
        self._labels: FairQueue[LabelItem[Any]] = FairQueue()
        self._frame_places = Shares(
            limits.max_queued_frames, "queued_frames", "frames waiting to be encoded", fits_any=True
        )
        # Of names not done yet, including those in a batch.
        self._name_places = Shares(
            limits.max_queued_labels, "queued_labels", "labels waiting to be encoded", fits_any=True
        )
        self._labels_next = False
        self._videos_added_at = -math.inf
        self._num_waiting = 0  # threads that wait for room

    @property
    def queued_frames(self) -> int:
        return self._frame_places.num_held

    @property
    def queued_labels(self) -> int:
        return self._name_places.num_held

    def add_videos(self, items: Sequence[VideoItem], *, wait_for_room: bool = False) -> None:
        """Add the videos of one request, all or none.

        Waits, until the requester's deadline, while its client holds its share of the frames; with ``wait_for_room``
        also while others do. Raises Overloaded or ShareExceeded, or EncodeFailed if closed; so does ``add_labels``,
        which waits for nothing.
        """
        requester = items[0].requester
        num_frames = sum(item.num_frames for item in items)

        def must_wait() -> bool:
            refusal = self._frame_places.refusal(requester.client, num_frames)
            may_wait = not (self.is_closed or requester.cancelled.is_set())
            return may_wait and (isinstance(refusal, ShareExceeded) or (wait_for_room and refusal is not None))

        with self.condition:
            self._num_waiting += 1
            try:
                while must_wait() and (seconds := requester.deadline - time.monotonic()) > 0:
                    self.condition.wait(min(seconds, _POLL_SECONDS))
            finally:
                self._num_waiting -= 1
            self._check_open()
            requester.check()
            self._frame_places.take(requester.client, num_frames)
            self._videos_added_at = time.monotonic()
            for item in items:
                self._videos.push(requester.client, item)
            self.condition.notify_all()  # a single notified worker could be one whose device fails

    def add_labels(self, item: LabelItem[Any]) -> None:
        with self.condition:
            self._check_open()
            self._name_places.take(item.requester.client, len(item.names))
            self._labels.push(item.requester.client, item)
            self.condition.notify_all()

    def withdraw(self, items: Sequence[VideoItem | LabelItem[Any]]) -> None:
        """Drop what is still queued of a request that was given up."""
        with self.condition:
            for item in items:
                item.future.cancel()
                client = item.requester.client
                if isinstance(item, LabelItem):
                    if self._labels.remove(client, item):
                        self._release_names(item)
                elif self._videos.remove(client, item):
                    self._release_frames([item])

    def _check_open(self) -> None:
        if self.is_closed:
            raise EncodeFailed("The encoder is not running")

    @property
    def has_work(self) -> bool:
        return bool(self._videos or self._labels)

    def next_batch(self, max_labels: int, max_shared_labels: int, max_shared_frames: int) -> Batch:
        """``max_shared_labels`` while videos come too, ``max_shared_frames`` while those of several clients are queued.

        The caller holds ``condition``.
        """
        use_labels = bool(self._labels) and (self._labels_next or not self._videos)
        self._labels_next = not use_labels
        if use_labels:
            is_shared = time.monotonic() - self._videos_added_at < _VIDEO_SECONDS
            return self._take_labels(max_shared_labels if is_shared else max_labels)
        max_frames = self.limits.max_batch_frames
        if self._videos.num_clients > 1:
            max_frames = min(max_frames, max_shared_frames)
        return self._take_videos(max_frames)

    def next_short_batch(self, in_progress: Sequence[VideoItem], max_labels: int, max_frames: int) -> Batch:
        """For other clients than those of ``in_progress``, with no video longer than half of it.

        The caller holds ``condition``.
        """
        clients = {BACKGROUND, *(item.requester.client for item in in_progress)}
        longest = sum(item.num_frames for item in in_progress) // 2
        for is_labels in (self._labels_next, not self._labels_next):
            if is_labels:
                batch = self._take_labels(max_labels, lambda item: item.requester.client not in clients)
            else:
                batch = self._take_videos(
                    max_frames, lambda item: item.requester.client not in clients and item.num_frames <= longest
                )
            if batch.labels or batch.videos:
                self._labels_next = not is_labels
                return batch
        return Batch()

    def _take_labels(self, max_names: int, accepts: Callable[[LabelItem[Any]], bool] = lambda item: True) -> Batch:
        slices, over = take_labels(self._labels, max_names, accepts)
        for item in over:
            self._release_names(item)
            set_exception(item.future, Overloaded("The labels waited too long for the encoder", limit="timeout"))
        return Batch(labels=slices)

    def _take_videos(self, max_frames: int, accepts: Callable[[VideoItem], bool] = lambda item: True) -> Batch:
        videos, dropped = take_videos(self._videos, max_frames, accepts)
        self._release_frames([*videos, *(video for video, _ in dropped)])
        for video, error in dropped:
            set_exception(video.future, error)
        return Batch(videos=videos)

    def _release_names(self, item: LabelItem[Any]) -> None:
        """Those not taken: a worker still has the others."""
        self._name_places.give_back(item.requester.client, len(item.names) - item.num_taken)

    def _release_frames(self, items: Sequence[VideoItem]) -> None:
        for item in items:
            self._frame_places.give_back(item.requester.client, item.num_frames)
        if items and self._num_waiting:
            self.condition.notify_all()

    def finish_labels(
        self, slices: Sequence[LabelSlice], results: Sequence[LabelResult] | Sequence[DescribeResult]
    ) -> None:
        first = 0
        with self.condition:
            for part in slices:
                item, num_names = part.item, len(part.names)
                item.results[part.start : part.start + num_names] = results[first : first + num_names]
                item.num_done += num_names
                self._name_places.give_back(item.requester.client, num_names)
                first += num_names
        for part in slices:
            if part.item.num_done == len(part.item.names):
                set_result(part.item.future, part.item.results)

    def fail_batch(self, batch: Batch, detail: str) -> None:
        with self.condition:
            for part in batch.labels:
                self._name_places.give_back(part.item.requester.client, len(part.names))
        self._fail([item.future for item in batch.videos] + [part.item.future for part in batch.labels], detail)

    def close(self, detail: str) -> None:
        with self.condition:
            self.is_closed = True
            videos, labels = self._videos.clear(), self._labels.clear()
            self._release_frames(videos)
            for item in labels:
                self._release_names(item)
            futures: list[Future[Any]] = [video.future for video in videos]
            futures += [item.future for item in labels]
            self.condition.notify_all()
        self._fail(futures, detail)

    @staticmethod
    def _fail(futures: Sequence[Future[Any]], detail: str) -> None:
        for future in futures:
            set_exception(future, EncodeFailed(detail))


def set_result(future: Future[ValueT], value: ValueT) -> None:
    with contextlib.suppress(InvalidStateError):  # cancelled by the caller
        future.set_result(value)


def set_exception(future: Future[Any], error: VidlexError) -> None:
    with contextlib.suppress(InvalidStateError):  # cancelled by the caller
        future.set_exception(error)
