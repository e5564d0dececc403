"""What waits for the devices: two bounded queues, videos (counted in frames) and label names (counted in names).

They take turns, so that a thousand new labels do not keep a video waiting and the other way round. A batch holds what
is already waiting. Only where more videos are on their way (being decoded) does it wait for them, and a moment at most.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any

from vidlex.service.engine.label_queue import LabelItem, LabelShare, take_labels
from vidlex.service.engine.video_queue import VideoItem, take_videos
from vidlex.service.errors import EncodeFailed, Overloaded, VidlexError


@dataclass(frozen=True)
class EngineLimits:
    max_queued_frames: int = 4096
    max_queued_labels: int = 4096
    max_batch_frames: int = 128
    max_batch_labels: int = 32
    """At most so many labels in one turn; fewer where they take long."""
    batch_delay_seconds: float = 0.0
    """Longest that a video waits for others on their way to share its forward pass."""


@dataclass(frozen=True, eq=False)
class Turn:
    """What an owner does next: videos, or labels, or neither."""

    videos: list[VideoItem] = field(default_factory=list)
    labels: list[LabelShare] = field(default_factory=list)


@dataclass(eq=False)
class Coming:
    """A request whose videos are on their way, until they are added or will not come."""

    is_counted: bool = True


class Work:
    """Thread-safe. ``wake`` guards everything and is notified of whatever an owner may wait for."""

    def __init__(self, limits: EngineLimits) -> None:
        self.limits = limits
        self.wake = threading.Condition()
        self.closed = False
        self.queued_frames = 0
        self.queued_labels = 0
        self._videos: deque[VideoItem] = deque()
        self._labels: deque[LabelItem] = deque()
        self._labels_next = False
        self._num_coming = 0

    @contextlib.contextmanager
    def expect(self) -> Iterator[Coming]:
        """Count a request as coming for as long as this lasts, or until it is handed to ``add_videos``."""
        coming = Coming()
        with self.wake:
            self._num_coming += 1
        try:
            yield coming
        finally:
            with self.wake:
                self._has_come(coming)

    def _has_come(self, coming: Coming | None) -> None:
        """Call with the lock."""
        if coming is not None and coming.is_counted:
            coming.is_counted = False
            self._num_coming -= 1
            self.wake.notify_all()

    def add_videos(self, items: Sequence[VideoItem], coming: Coming | None = None) -> None:
        """All or none. Raises Overloaded, or EncodeFailed when it is closed."""
        cost = sum(len(item.frames) for item in items)
        with self.wake:
            self._check_open()
            # One request that alone exceeds the bound is admitted when nothing else waits.
            if self.queued_frames and self.queued_frames + cost > self.limits.max_queued_frames:
                raise Overloaded("Too many videos are waiting to be encoded")
            self.queued_frames += cost
            self._videos.extend(items)
            self._has_come(coming)
            self.wake.notify_all()  # one that is woken alone may be one that has been taken out

    def add_labels(self, item: LabelItem) -> None:
        """Raises Overloaded, or EncodeFailed when it is closed."""
        with self.wake:
            self._check_open()
            if self.queued_labels and self.queued_labels + len(item.names) > self.limits.max_queued_labels:
                raise Overloaded("Too many labels are waiting to be encoded")
            self.queued_labels += len(item.names)
            self._labels.append(item)
            self.wake.notify_all()

    def _check_open(self) -> None:
        if self.closed:
            raise EncodeFailed("The encoder is not running")

    @property
    def waits(self) -> bool:
        return bool(self._videos or self._labels)

    def gather(self) -> None:
        """Wait for videos on their way, while the first that is here has not waited ``batch_delay_seconds``, its batch
        has room and no label wants the device. Call with the lock, which is given up meanwhile."""
        while self._videos and self._num_coming and not self._labels and not self.closed:
            left = self._videos[0].queued_at + self.limits.batch_delay_seconds - time.monotonic()
            if left <= 0 or self.queued_frames >= self.limits.max_batch_frames:
                return
            self.wake.wait(left)

    def take(self, label_room: int) -> Turn:
        """The next batch: videos of at most ``max_batch_frames``, or ``label_room`` names. Call with the lock."""
        use_labels = bool(self._labels) and (self._labels_next or not self._videos)
        self._labels_next = not use_labels
        if use_labels:
            shares, late = take_labels(self._labels, label_room)
            for item in late:
                self.queued_labels -= len(item.names) - item.num_taken
                fail(item.future, Overloaded("The labels waited too long for the encoder"))
            return Turn(labels=shares)
        batch, dropped, num_taken = take_videos(self._videos, self.limits.max_batch_frames)
        self.queued_frames -= num_taken
        for video, error in dropped:
            fail(video.future, error)
        return Turn(videos=batch)

    def finish_labels(self, shares: Sequence[LabelShare], results: list[Any]) -> None:
        """``results``: one for each name, over all shares. Settles each request that is now done."""
        with self.wake:
            for share in shares:
                item, end = share.item, share.start + len(share.names)
                item.results[share.start : end] = results[: len(share.names)]
                del results[: len(share.names)]
                item.num_done += len(share.names)
                self.queued_labels -= len(share.names)
        for share in shares:
            if share.item.num_done == len(share.item.names):
                settle(share.item.future, share.item.results)

    def abandon(self, turn: Turn, detail: str) -> None:
        """Fail what an owner has taken and will not finish."""
        with self.wake:
            self.queued_labels -= sum(len(share.names) for share in turn.labels)
        for future in [item.future for item in turn.videos] + [share.item.future for share in turn.labels]:
            fail(future, EncodeFailed(detail))

    def close(self, detail: str) -> None:
        """Take nothing more, and fail all that waits."""
        with self.wake:
            self.closed = True
            waiting = [item.future for item in self._videos] + [item.future for item in self._labels]
            self.queued_frames = 0
            self.queued_labels -= sum(len(item.names) - item.num_taken for item in self._labels)
            self._videos.clear()
            self._labels.clear()
            self.wake.notify_all()
        for future in waiting:
            fail(future, EncodeFailed(detail))


def settle(future: Future[Any], value: object) -> None:
    with contextlib.suppress(InvalidStateError):  # its waiter gave up
        future.set_result(value)


def fail(future: Future[Any], error: VidlexError) -> None:
    with contextlib.suppress(InvalidStateError):
        future.set_exception(error)
