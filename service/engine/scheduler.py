"""The queues in front of the devices: videos, bounded in frames, and label names, bounded in names.

Batches alternate between the two, so that many labels do not delay a video and vice versa. A batch holds what is
queued when a device becomes free.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any, TypeVar

from vidlex.service.engine.label_queue import DescribeResult, LabelItem, LabelResult, LabelSlice, take_labels
from vidlex.service.engine.video_queue import VideoItem, take_videos
from vidlex.service.errors import EncodeFailed, Overloaded, VidlexError

ValueT = TypeVar("ValueT")


@dataclass(frozen=True)
class EngineLimits:
    max_queued_frames: int = 4096
    max_queued_labels: int = 4096
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
        self.queued_frames = 0
        self.queued_labels = 0  # names not done yet, including those in a batch
        self._videos: deque[VideoItem] = deque()
        self._labels: deque[LabelItem[Any]] = deque()
        self._labels_next = False
        self._num_waiting = 0  # threads that wait for room

    def add_videos(self, items: Sequence[VideoItem], *, wait_seconds: float = 0.0) -> None:
        """Add all or none, as soon as there is room. Raises Overloaded if there is none within ``wait_seconds``, or
        EncodeFailed if closed; so does ``add_labels``.
        """
        num_frames = sum(len(item.frames) for item in items)

        def has_room() -> bool:
            # A single request larger than the bound is admitted when the queue is empty.
            return not self.queued_frames or self.queued_frames + num_frames <= self.limits.max_queued_frames

        def is_cancelled() -> bool:
            return any(item.cancelled.is_set() for item in items)

        with self.condition:
            if wait_seconds > 0 and not has_room():
                self._num_waiting += 1
                self.condition.wait_for(lambda: self.is_closed or is_cancelled() or has_room(), wait_seconds)
                self._num_waiting -= 1
            self._check_open()
            if not has_room():
                raise Overloaded("Too many videos are waiting to be encoded")
            self.queued_frames += num_frames
            self._videos.extend(items)
            self.condition.notify_all()  # a single notified worker could be one whose device fails

    def add_labels(self, item: LabelItem[Any]) -> None:
        with self.condition:
            self._check_open()
            if self.queued_labels and self.queued_labels + len(item.names) > self.limits.max_queued_labels:
                raise Overloaded("Too many labels are waiting to be encoded")
            self.queued_labels += len(item.names)
            self._labels.append(item)
            self.condition.notify_all()

    def _check_open(self) -> None:
        if self.is_closed:
            raise EncodeFailed("The encoder is not running")

    @property
    def has_work(self) -> bool:
        return bool(self._videos or self._labels)

    def next_batch(self, max_labels: int) -> Batch:
        """The caller holds ``condition``."""
        use_labels = bool(self._labels) and (self._labels_next or not self._videos)
        self._labels_next = not use_labels
        if use_labels:
            slices, expired = take_labels(self._labels, max_labels)
            for item in expired:
                self.queued_labels -= len(item.names) - item.num_taken
                set_exception(item.future, Overloaded("The labels waited too long for the encoder"))
            return Batch(labels=slices)
        videos, dropped, num_removed = take_videos(self._videos, self.limits.max_batch_frames)
        self.queued_frames -= num_removed
        if self._num_waiting:
            self.condition.notify_all()
        for video, error in dropped:
            set_exception(video.future, error)
        return Batch(videos=videos)

    def finish_labels(
        self, slices: Sequence[LabelSlice], results: Sequence[LabelResult] | Sequence[DescribeResult]
    ) -> None:
        first = 0
        with self.condition:
            for part in slices:
                item, num_names = part.item, len(part.names)
                item.results[part.start : part.start + num_names] = results[first : first + num_names]
                item.num_done += num_names
                self.queued_labels -= num_names
                first += num_names
        for part in slices:
            if part.item.num_done == len(part.item.names):
                set_result(part.item.future, part.item.results)

    def fail_batch(self, batch: Batch, detail: str) -> None:
        with self.condition:
            self.queued_labels -= sum(len(part.names) for part in batch.labels)
        self._fail([item.future for item in batch.videos] + [part.item.future for part in batch.labels], detail)

    def close(self, detail: str) -> None:
        with self.condition:
            self.is_closed = True
            futures = [item.future for item in self._videos] + [item.future for item in self._labels]
            self.queued_frames = 0
            self.queued_labels -= sum(len(item.names) - item.num_taken for item in self._labels)
            self._videos.clear()
            self._labels.clear()
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
