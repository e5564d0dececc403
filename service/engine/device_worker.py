"""A thread that owns one device and its copy of the model, and takes batches from the scheduler.

A failed batch is repeated item by item, so that one bad item fails alone; then the worker probes the device with a
synthetic video. While the probe fails too, the worker takes no batches if another device is healthy, and repeats the
probe every ``PROBE_INTERVAL_SECONDS``.

Between the steps of a long pass over videos, short batches of other clients are processed, for as long as the pass
itself has taken: it lasts twice as long at most. Its result is the same, bit for bit.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import structlog
from numpy.typing import NDArray

from vidlex.model.classifier import Classifier, LabelTextError
from vidlex.model.video.pauses import at_pauses
from vidlex.service.engine.label_queue import DescribeResult, LabelResult, LabelSlice
from vidlex.service.engine.scheduler import Batch, Scheduler, set_exception, set_result
from vidlex.service.engine.video_queue import EncodedVideo, VideoItem
from vidlex.service.errors import EncodeFailed, LabelTextInvalid, VidlexError

_log = structlog.get_logger("vidlex.engine")

DeviceWorkerState = Literal["healthy", "failing", "stuck", "stopped"]

PROBE_INTERVAL_SECONDS = 5.0
# A successful pass younger than this proves that the device works; ``request_probe`` then has no effect.
STALE_SECONDS = 10.0
STUCK_SECONDS = 180.0  # longer than any batch takes on a usable device
# Target duration of a batch of labels: a few with a language model on a CPU, hundreds on a GPU.
LABEL_BATCH_SECONDS = 1.0
# Target duration of a batch of videos while several clients wait, and of labels while videos come: a client's video is
# not to wait for the frames of another one that would share its batch, or for labels. More than a GPU needs for any.
SHARED_BATCH_SECONDS = 0.25
_LONG_BATCHES = 2  # a longer pass is interrupted, as a multiple of SHARED_BATCH_SECONDS
_INITIAL_LABEL_BATCH = 4
_MAX_DETAIL_CHARS = 200


@dataclass(eq=False)
class _Pass:
    videos: list[VideoItem]
    started: float  # of time.monotonic
    other_seconds: float = 0.0  # for batches of other clients

    @property
    def own_seconds(self) -> float:
        return time.monotonic() - self.started - self.other_seconds


class DeviceWorker:
    """Call ``start`` once. Stops when the scheduler is closed. Thread-safe.

    ``is_other_healthy`` and ``on_stop`` are called on the worker's thread, ``on_stop`` last.
    """

    def __init__(
        self,
        classifier: Classifier,
        scheduler: Scheduler,
        *,
        name: str,
        is_other_healthy: Callable[[], bool],
        on_stop: Callable[[], None],
        on_batch: Callable[[int, int], None] | None,
    ) -> None:
        self._classifier = classifier
        self._scheduler = scheduler
        self._is_other_healthy = is_other_healthy
        self._on_stop = on_stop
        self._on_batch = on_batch
        self._batch = Batch()
        self._interrupted: _Pass | None = None
        self._label_batch_size = min(_INITIAL_LABEL_BATCH, scheduler.limits.max_batch_labels)
        self._shared_batch_labels = self._label_batch_size
        self._shared_batch_frames = scheduler.limits.max_batch_frames
        self._is_healthy = False
        self._succeeded_at = 0.0
        self._failure_logged = False
        self._busy_since: float | None = None
        self._probe_requested = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def join(self, timeout_seconds: float) -> None:
        if self._thread.ident is not None:
            self._thread.join(timeout_seconds)

    @property
    def device(self) -> str:
        return self._classifier.device

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def state(self) -> DeviceWorkerState:
        if not self.is_alive:
            return "stopped"
        since = self._busy_since
        if since is not None and time.monotonic() - since > STUCK_SECONDS:
            return "stuck"
        return "healthy" if self._is_healthy else "failing"

    def request_probe(self) -> None:
        """The caller holds the condition and notifies it."""
        if self._is_healthy and time.monotonic() - self._succeeded_at > STALE_SECONDS:
            self._probe_requested = True

    # --- on the worker's thread

    def _run(self) -> None:
        try:
            self._probe()
            while True:
                with self._scheduler.condition:
                    self._busy_since = None
                    if not (
                        self._scheduler.is_closed
                        or self._probe_requested
                        or (self._scheduler.has_work and self._may_serve())
                    ):
                        self._scheduler.condition.wait(None if self._is_healthy else PROBE_INTERVAL_SECONDS)
                    if self._scheduler.is_closed:
                        return
                    self._busy_since = time.monotonic()
                    if self._may_serve():
                        self._batch = self._scheduler.next_batch(
                            self._label_batch_size, self._shared_batch_labels, self._shared_batch_frames
                        )
                if self._batch.labels or self._batch.videos:
                    self._process(self._batch)
                elif self._probe_requested:
                    self._probe(num_frames=1)
                self._batch = Batch()
                self._probe_requested = False
                if not self._is_healthy:
                    self._probe()
        except BaseException:
            _log.exception("device_worker_crashed", device=self.device)
            raise
        finally:
            self._is_healthy = False
            self._scheduler.fail_batch(self._batch, "The encoder has stopped")
            self._on_stop()

    def _may_serve(self) -> bool:
        # A failing device serves only if no other is healthy, so that clients get its error instead of a timeout.
        return self._is_healthy or not self._is_other_healthy()

    def _process(self, batch: Batch) -> None:
        if batch.labels:
            self._process_labels(batch.labels)
        else:
            self._encode_videos(batch.videos)

    def _process_others(self, current: _Pass) -> None:
        if not self._scheduler.has_work or current.other_seconds > current.own_seconds:
            return
        with self._scheduler.condition:
            batch = self._scheduler.next_short_batch(
                current.videos, self._shared_batch_labels, self._shared_batch_frames
            )
        if not (batch.labels or batch.videos):
            return
        began, self._interrupted = time.monotonic(), current
        try:
            self._process(batch)
        except BaseException:
            self._scheduler.fail_batch(batch, "The encoder has stopped")
            raise
        finally:
            self._interrupted = None
            current.other_seconds += time.monotonic() - began

    def _encode_videos(self, videos: list[VideoItem]) -> None:
        started = time.monotonic()
        current = _Pass(videos, started)
        is_long = sum(item.num_frames for item in videos) > _LONG_BATCHES * self._shared_batch_frames
        may_stop = is_long and self._interrupted is None
        try:
            with at_pauses(partial(self._process_others, current) if may_stop else None):
                vectors = self._forward([item.frames for item in videos])
        except Exception as error:
            if len(videos) > 1:
                _log.warning("batch_failed", device=self.device, num_videos=len(videos), error=repr(error))
                for item in videos:
                    self._encode_videos([item])
                return
            videos[0].context.run(_log.exception, "encode_failed", shape=list(videos[0].frames.shape))
            self._is_healthy = False
            set_exception(videos[0].future, EncodeFailed("The encoder failed on this video", internal=repr(error)))
            return
        self._is_healthy, self._succeeded_at = True, time.monotonic()
        encode_seconds = current.own_seconds
        num_frames = sum(len(item.frames) for item in videos)
        self._shared_batch_frames = max(1, int(SHARED_BATCH_SECONDS * num_frames / max(1e-6, encode_seconds)))
        if self._on_batch is not None:
            self._on_batch(len(videos), num_frames)
        for item, vector in zip(videos, vectors, strict=True):
            if np.isfinite(vector).all():
                set_result(item.future, EncodedVideo(vector.copy(), started - item.queued_at, encode_seconds))
            else:
                item.context.run(_log.error, "encode_not_finite", shape=list(item.frames.shape))
                set_exception(item.future, EncodeFailed("The encoder returned no usable feature for this video"))

    def _process_labels(self, slices: list[LabelSlice]) -> None:
        names = [name for part in slices for name in part.names]
        started = time.monotonic()
        process = self._encode_labels if slices[0].item.kind == "encode" else self._describe_labels
        results: list[LabelResult] | list[DescribeResult] = process(names)
        seconds_per_label = max(1e-6, time.monotonic() - started) / len(names)
        size = max(1, min(int(LABEL_BATCH_SECONDS / seconds_per_label), 4 * self._label_batch_size))
        self._label_batch_size = min(size, self._scheduler.limits.max_batch_labels)
        self._shared_batch_labels = max(1, min(int(SHARED_BATCH_SECONDS / seconds_per_label), self._label_batch_size))
        self._scheduler.finish_labels(slices, results)

    def _describe_labels(self, names: Sequence[str]) -> list[DescribeResult]:
        results: list[DescribeResult] = []
        for name in names:
            try:
                results += self._classifier.describe_labels([name])
            except Exception as error:
                results.append(_label_error(error, "describe_label_failed"))
        return results

    def _encode_labels(self, names: Sequence[str]) -> list[LabelResult]:
        results: dict[int, LabelResult] = {}
        for i, name in enumerate(names):
            try:
                self._classifier.check_label(name)
            except Exception as error:
                results[i] = _label_error(error, "check_label_failed")
        valid = [i for i in range(len(names)) if i not in results]
        if valid:
            results.update(zip(valid, self._encode_valid_labels([names[i] for i in valid]), strict=True))
        return [results[i] for i in range(len(names))]

    def _encode_valid_labels(self, names: list[str]) -> list[LabelResult]:
        try:
            vectors = np.asarray(self._classifier.encode_labels(names), dtype=np.float32)
            if vectors.shape != (len(names), self._classifier.dim):
                raise ValueError(f"encode_labels returned shape {vectors.shape} for {len(names)} names")
        except Exception as error:
            is_text_error = isinstance(error, LabelTextError)
            if len(names) == 1:
                self._is_healthy = self._is_healthy and is_text_error
                return [_label_error(error, "encode_label_failed")]
            if not is_text_error:
                _log.warning("label_batch_failed", num_labels=len(names), error=repr(error))
        else:
            not_finite = EncodeFailed("The encoder returned no usable feature for this label")
            return [vector.copy() if np.isfinite(vector).all() else not_finite for vector in vectors]
        return [result for name in names for result in self._encode_valid_labels([name])]

    def _forward(self, videos: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
        vectors = np.asarray(self._classifier.encode_video(videos), dtype=np.float32)
        if vectors.shape != (len(videos), self._classifier.dim):
            raise ValueError(f"encode_video returned shape {vectors.shape} for {len(videos)} videos")
        return vectors

    def _probe(self, num_frames: int | None = None) -> None:
        side = self._classifier.geometry.image_size
        # The default number of frames also warms up the device.
        frames = np.full((num_frames or self._classifier.num_frames, side, side, 3), 127, np.uint8)
        try:
            self._is_healthy = bool(np.isfinite(self._forward([frames])).all())
            self._succeeded_at = time.monotonic()
        except Exception:
            _log.exception("probe_failed", device=self.device)
            self._is_healthy = False
        if not self._is_healthy and not self._failure_logged:
            _log.error("device_failed", device=self.device)
        elif self._is_healthy and self._failure_logged:
            _log.info("device_recovered", device=self.device)
        self._failure_logged = not self._is_healthy


def _label_error(error: Exception, event: str) -> VidlexError:
    if isinstance(error, LabelTextError):
        return LabelTextInvalid(str(error)[:_MAX_DETAIL_CHARS])
    _log.exception(event)  # the caller is an exception handler
    return EncodeFailed("The encoder failed on this label", internal=repr(error))
