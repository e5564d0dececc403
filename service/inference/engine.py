"""The one owner of the device: a thread that runs the classifier for all requests, in small batches.

Requests wait in two bounded queues, videos (counted in frames) and label names (counted in names), and take turns,
so that a thousand new labels do not keep a video waiting and the other way round. A batch holds only what is
already waiting; nothing waits for a batch to fill.

Batching and numbers: videos of one forward pass do not exchange information, but matrix products of another shape
may round otherwise, so the same video alone and in a batch agrees to about 1e-5, not bit for bit. What is exact is
the independence of stored labels: a video is encoded once per request and each label has its own product with it.

A batch that fails is repeated item by item, so that one bad item fails alone. After such a failure the warm-up input
is run; ``healthy`` is false until it works again.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from model.classifier import Classifier, LabelTextError
from service.errors import EncodeFailed, LabelTextInvalid, Overloaded, VidlexError
from service.inference.described import DescribeResult, described
from service.inference.label_queue import LabelItem, take_labels
from service.inference.video_queue import EncodedVideo, VideoItem, take_videos

log = structlog.get_logger("vidlex.engine")

LabelResult = NDArray[np.float32] | VidlexError
"""The vector of one label [D], or why there is none."""

PROBE_SECONDS = 5.0
CHECK_SECONDS = 10.0
"""A pass that is not older tells that the encoder works; after that, whoever asks has one made."""
STUCK_SECONDS = 180.0
"""No batch takes so long on any device that can serve: its pass does not come back."""
LABEL_STEP_SECONDS = 1.0
"""Aim for one turn of labels: a language model on few cores needs a second for a few, a GPU for hundreds."""
_FIRST_LABELS = 4


@dataclass(frozen=True)
class EngineLimits:
    max_queued_frames: int = 4096
    max_queued_labels: int = 4096
    max_batch_frames: int = 128
    max_batch_labels: int = 32
    """At most so many labels in one turn; fewer where they take long."""


class Engine:
    """``start()`` first, ``close()`` last; everything else from any thread."""

    def __init__(
        self,
        classifier: Classifier,
        limits: EngineLimits = EngineLimits(),
        *,
        on_batch: Callable[[int, int], None] | None = None,
    ) -> None:
        """``on_batch(num_videos, num_frames)`` is told of each forward pass over videos."""
        self._classifier = classifier
        self._limits = limits
        self._on_batch = on_batch
        self._wake = threading.Condition()
        self._videos: deque[VideoItem] = deque()
        self._labels: deque[LabelItem] = deque()
        self._queued_frames = 0
        self._queued_labels = 0
        self._closing = False
        self._running: list[Future[Any]] = []
        self._labels_next = False
        self._label_step = min(_FIRST_LABELS, limits.max_batch_labels)
        self._works = False
        self._worked_at = 0.0
        self._busy_since: float | None = None
        self._check_wanted = False
        self._thread = threading.Thread(target=self._run, name="vidlex-engine", daemon=True)

    # --- life

    def start(self) -> None:
        self._thread.start()

    def close(self, timeout_seconds: float = 10.0) -> None:
        """Refuse new work, fail what still waits, and end the thread after its present batch."""
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        if self._thread.ident is None:
            self._fail_all("The service is stopping")
        else:
            self._thread.join(timeout_seconds)  # the thread itself fails what still waits

    @property
    def healthy(self) -> bool:
        """The thread lives, its last forward pass (of a request or of a probe) worked, and none hangs."""
        return self._works and self._thread.is_alive() and not self.stuck

    @property
    def stuck(self) -> bool:
        """The pass at work does not come back."""
        since = self._busy_since
        return since is not None and time.monotonic() - since > STUCK_SECONDS

    def check(self) -> None:
        """Have a pass over one frame made if none has worked lately. Does not wait: ``healthy`` tells later."""
        if self._works and time.monotonic() - self._worked_at > CHECK_SECONDS:
            with self._wake:
                self._check_wanted = True
                self._wake.notify()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def queued_frames(self) -> int:
        return self._queued_frames

    @property
    def queued_labels(self) -> int:
        return self._queued_labels

    # --- work

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
    ) -> list[EncodedVideo]:
        """Several videos of one request (segments, say), admitted all or none. As ``encode_video``."""
        now = time.monotonic()
        deadline = now + timeout_seconds
        event = cancelled or threading.Event()
        items = [VideoItem(frames, deadline, event, now) for frames in videos]
        cost = sum(len(item.frames) for item in items)
        with self._wake:
            self._check_open()
            # One request that alone exceeds the bound is admitted when nothing else waits.
            if self._queued_frames and self._queued_frames + cost > self._limits.max_queued_frames:
                raise Overloaded("Too many videos are waiting to be encoded")
            self._queued_frames += cost
            self._videos.extend(items)
            self._wake.notify()
        return [self._wait(item.future, deadline) for item in items]

    def encode_labels(self, names: Sequence[str], *, timeout_seconds: float = 300.0) -> list[LabelResult]:
        """One result for each name, in order: a vector [D], LabelTextInvalid or EncodeFailed. Blocks.

        Raises Overloaded (queue full, or not done before the timeout) or EncodeFailed (the engine is stopped).
        """
        results: list[LabelResult] = self._queue_labels(names, self._encode_names, timeout_seconds)
        return results

    def describe_labels(self, names: Sequence[str], *, timeout_seconds: float = 300.0) -> list[DescribeResult]:
        """How the encoder reads each name, in order, or why it does not. As ``encode_labels``, with its turns."""
        results: list[DescribeResult] = self._queue_labels(names, self._describe_names, timeout_seconds)
        return results

    def _describe_names(self, names: list[str]) -> list[DescribeResult]:
        return described(self._classifier, names)

    def _queue_labels(
        self, names: Sequence[str], read: Callable[[list[str]], list[Any]], timeout_seconds: float
    ) -> list[Any]:
        if not names:
            return []
        deadline = time.monotonic() + timeout_seconds
        item = LabelItem(list(names), deadline, read)
        with self._wake:
            self._check_open()
            if self._queued_labels and self._queued_labels + len(item.names) > self._limits.max_queued_labels:
                raise Overloaded("Too many labels are waiting to be encoded")
            self._queued_labels += len(item.names)
            self._labels.append(item)
            self._wake.notify()
        results: list[Any] = self._wait(item.future, deadline)
        return results

    def _check_open(self) -> None:
        if self._closing or not self._thread.is_alive():
            raise EncodeFailed("The encoder is not running")

    @staticmethod
    def _wait(future: Future[Any], deadline: float) -> Any:
        try:
            # The engine itself gives up items past their deadline; the margin is for a batch already under way.
            return future.result(timeout=max(0.0, deadline - time.monotonic()) + 30.0)
        except TimeoutError:
            future.cancel()
            raise Overloaded("The encoder did not answer in time") from None

    # --- the thread

    def _run(self) -> None:
        try:
            self._probe()
            while True:
                with self._wake:
                    self._busy_since = None
                    if not (self._closing or self._videos or self._labels or self._check_wanted):
                        self._wake.wait(None if self._works else PROBE_SECONDS)
                    if self._closing:
                        return
                    self._busy_since = time.monotonic()
                    use_labels = bool(self._labels) and (self._labels_next or not self._videos)
                    self._labels_next = not use_labels
                    batch = [] if use_labels else self._take_videos()
                    labels = self._take_labels() if use_labels else []
                    self._running = [item.future for item in batch] + [item.future for item, _ in labels]
                if labels:
                    self._step_labels(labels)
                elif batch:
                    self._encode_batch(batch)
                elif self._check_wanted:
                    self._probe(num_frames=1)
                self._check_wanted = False
                if not self._works:
                    self._probe()
        except BaseException:
            log.exception("engine_died")
            raise
        finally:
            with self._wake:
                self._closing = True
            self._works = False
            self._fail_all("The encoder has stopped")

    def _take_videos(self) -> list[VideoItem]:
        """The next batch: oldest first, at least one video, at most ``max_batch_frames``. Call with the lock."""
        batch, dropped, num_taken = take_videos(self._videos, self._limits.max_batch_frames)
        self._queued_frames -= num_taken
        for item, error in dropped:
            _fail(item.future, error)
        return batch

    def _encode_batch(self, batch: list[VideoItem]) -> None:
        started = time.monotonic()
        try:
            vectors = self._forward([item.frames for item in batch])
        except Exception as error:
            if len(batch) > 1:
                log.warning("batch_failed", num_videos=len(batch), error=repr(error))
                for item in batch:
                    self._encode_batch([item])
                return
            batch[0].context.run(log.exception, "encode_failed", shape=list(batch[0].frames.shape))
            self._works = False
            _fail(batch[0].future, EncodeFailed("The encoder failed on this video", internal=repr(error)))
            return
        self._works, self._worked_at = True, time.monotonic()
        seconds = self._worked_at - started
        if self._on_batch is not None:
            self._on_batch(len(batch), sum(len(item.frames) for item in batch))
        for item, vector in zip(batch, vectors, strict=True):
            if np.isfinite(vector).all():
                encoded = EncodedVideo(vector.copy(), started - item.queued_at, seconds)
                _settle(item.future, encoded)
            else:
                item.context.run(log.error, "encode_not_finite", shape=list(item.frames.shape))
                _fail(item.future, EncodeFailed("The encoder gave no usable feature for this video"))

    def _take_labels(self) -> list[tuple[LabelItem, list[str]]]:
        """The next few names. Call with the lock."""
        batch, dropped = take_labels(self._labels, self._label_step)
        for item in dropped:
            self._queued_labels -= len(item.names) - len(item.results)
            _fail(item.future, Overloaded("The labels waited too long for the encoder"))
        return batch

    def _step_labels(self, batch: list[tuple[LabelItem, list[str]]]) -> None:
        """Read the names in one batch, and settle each request that is now done."""
        names = [name for _, some in batch for name in some]
        started = time.monotonic()
        results = batch[0][0].read(names)
        seconds_each = max(1e-6, time.monotonic() - started) / len(names)
        fitting = max(1, min(int(LABEL_STEP_SECONDS / seconds_each), 4 * self._label_step))
        self._label_step = min(fitting, self._limits.max_batch_labels)
        with self._wake:
            self._queued_labels -= len(names)
        for item, some in batch:
            item.results.extend(results[: len(some)])
            del results[: len(some)]
            if len(item.results) == len(item.names):
                _settle(item.future, item.results)

    def _encode_names(self, names: Sequence[str]) -> list[LabelResult]:
        results: dict[int, LabelResult] = {}
        for i, name in enumerate(names):
            try:
                self._classifier.check_label(name)
            except LabelTextError as error:
                results[i] = LabelTextInvalid(str(error)[:200])
            except Exception as error:
                log.exception("check_label_failed")
                results[i] = EncodeFailed("The encoder failed on this label", internal=repr(error))
        rest = [i for i in range(len(names)) if i not in results]
        if rest:
            results.update(zip(rest, self._encode_checked([names[i] for i in rest]), strict=True))
        return [results[i] for i in range(len(names))]

    def _encode_checked(self, names: list[str]) -> list[LabelResult]:
        try:
            vectors = np.asarray(self._classifier.encode_labels(names), dtype=np.float32)
            if vectors.shape != (len(names), self._classifier.dim):
                raise ValueError(f"encode_labels gave {vectors.shape} for {len(names)} names")
        except LabelTextError as error:
            if len(names) == 1:
                return [LabelTextInvalid(str(error)[:200])]
        except Exception as error:
            if len(names) == 1:
                log.exception("encode_label_failed")
                self._works = False
                return [EncodeFailed("The encoder failed on this label", internal=repr(error))]
            log.warning("label_batch_failed", num_labels=len(names), error=repr(error))
        else:
            failed = EncodeFailed("The encoder gave no usable feature for this label")
            return [vector.copy() if np.isfinite(vector).all() else failed for vector in vectors]
        return [result for name in names for result in self._encode_checked([name])]

    def _forward(self, videos: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
        vectors = np.asarray(self._classifier.encode_video(videos), dtype=np.float32)
        if vectors.shape != (len(videos), self._classifier.dim):
            raise ValueError(f"encode_video gave {vectors.shape} for {len(videos)} videos")
        return vectors

    def _probe(self, num_frames: int | None = None) -> None:
        """Warm-up and test in one: a grey video of the usual size, or of so many frames."""
        side = self._classifier.geometry.image_size
        frames = np.full((num_frames or self._classifier.num_frames, side, side, 3), 127, np.uint8)
        try:
            self._works = bool(np.isfinite(self._forward([frames])).all())
            self._worked_at = time.monotonic()
        except Exception:
            log.exception("probe_failed")
            self._works = False

    def _fail_all(self, detail: str) -> None:
        with self._wake:
            futures: list[Future[Any]] = [*self._running]
            futures += [video.future for video in self._videos]
            futures += [label.future for label in self._labels]
            self._videos.clear()
            self._labels.clear()
            self._queued_frames = self._queued_labels = 0
        for future in futures:
            _fail(future, EncodeFailed(detail))


def _settle(future: Future[Any], value: object) -> None:
    with contextlib.suppress(InvalidStateError):  # its waiter gave up
        future.set_result(value)


def _fail(future: Future[Any], error: VidlexError) -> None:
    with contextlib.suppress(InvalidStateError):
        future.set_exception(error)
