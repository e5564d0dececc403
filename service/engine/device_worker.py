"""The one owner of a device: a thread with its own copy of the model, which takes its work from the common queues.

A batch that fails is repeated item by item, so that one bad item fails alone. After such a failure the warm-up input
is run. An owner on whose device that fails too is out: it leaves the queues to the others, as long as another works,
and tries again every few seconds until a pass succeeds.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import structlog
from numpy.typing import NDArray

from vidlex.model.classifier import Classifier, LabelTextError
from vidlex.service.engine.label_descriptions import described
from vidlex.service.engine.label_queue import LabelShare
from vidlex.service.engine.scheduler import Turn, Work, fail, settle
from vidlex.service.engine.video_queue import EncodedVideo, VideoItem
from vidlex.service.errors import EncodeFailed, LabelTextInvalid, VidlexError

log = structlog.get_logger("vidlex.engine")

LabelResult = NDArray[np.float32] | VidlexError
"""The vector of one label [D], or why there is none."""
OwnerState = Literal["works", "fails", "hangs", "ended"]

PROBE_SECONDS = 5.0
CHECK_SECONDS = 10.0
"""A pass that is not older tells that the encoder works; after that, whoever asks has one made."""
STUCK_SECONDS = 180.0
"""No batch takes so long on any device that can serve: its pass does not come back."""
LABEL_STEP_SECONDS = 1.0
"""Aim for one turn of labels: a language model on few cores needs a second for a few, a GPU for hundreds."""
_FIRST_LABELS = 4


class Owner:
    """``start`` it once; it ends when the work is closed. The rest from any thread."""

    def __init__(
        self,
        classifier: Classifier,
        work: Work,
        *,
        name: str,
        others_work: Callable[[], bool],
        on_end: Callable[[], None],
        on_batch: Callable[[int, int], None] | None,
    ) -> None:
        """``others_work()``: whether another owner can serve. ``on_end()`` is called last, on the thread."""
        self._classifier = classifier
        self._work = work
        self._others_work = others_work
        self._on_end = on_end
        self._on_batch = on_batch
        self._turn = Turn()
        self._label_step = min(_FIRST_LABELS, work.limits.max_batch_labels)
        self._works = False
        self._worked_at = 0.0
        self._out = False
        self._busy_since: float | None = None
        self._check_wanted = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    # --- life

    def start(self) -> None:
        self._thread.start()

    def join(self, timeout_seconds: float) -> None:
        self._thread.join(timeout_seconds)

    @property
    def device(self) -> str:
        return self._classifier.device

    @property
    def started(self) -> bool:
        return self._thread.ident is not None

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def state(self) -> OwnerState:
        if not self.alive:
            return "ended"
        since = self._busy_since
        if since is not None and time.monotonic() - since > STUCK_SECONDS:
            return "hangs"
        return "works" if self._works else "fails"

    def want_check(self) -> None:
        """Have a pass over one frame made if none has worked lately. Call with the lock, and notify."""
        if self._works and time.monotonic() - self._worked_at > CHECK_SECONDS:
            self._check_wanted = True

    # --- the thread

    def _run(self) -> None:
        try:
            self._probe()
            while True:
                with self._work.wake:
                    self._busy_since = None
                    if not (self._work.closed or self._check_wanted or (self._work.waits and self._may_serve())):
                        self._work.wake.wait(None if self._works else PROBE_SECONDS)
                    if self._may_serve():
                        self._work.gather()
                    if self._work.closed:
                        return
                    self._busy_since = time.monotonic()
                    turn = self._turn = self._work.take(self._label_step) if self._may_serve() else Turn()
                if turn.labels:
                    self._step_labels(turn.labels)
                elif turn.videos:
                    self._encode_batch(turn.videos)
                elif self._check_wanted:
                    self._probe(num_frames=1)
                self._turn = Turn()
                self._check_wanted = False
                if not self._works:
                    self._probe()
        except BaseException:
            log.exception("engine_died", device=self.device)
            raise
        finally:
            self._works = False
            self._work.abandon(self._turn, "The encoder has stopped")
            self._on_end()

    def _may_serve(self) -> bool:
        """Not when its device fails and another works; the last one's failures are told to those who ask."""
        return self._works or not self._others_work()

    def _encode_batch(self, batch: list[VideoItem]) -> None:
        started = time.monotonic()
        try:
            vectors = self._forward([item.frames for item in batch])
        except Exception as error:
            if len(batch) > 1:
                log.warning("batch_failed", device=self.device, num_videos=len(batch), error=repr(error))
                for item in batch:
                    self._encode_batch([item])
                return
            batch[0].context.run(log.exception, "encode_failed", shape=list(batch[0].frames.shape))
            self._works = False
            fail(batch[0].future, EncodeFailed("The encoder failed on this video", internal=repr(error)))
            return
        self._works, self._worked_at = True, time.monotonic()
        seconds = self._worked_at - started
        if self._on_batch is not None:
            self._on_batch(len(batch), sum(len(item.frames) for item in batch))
        for item, vector in zip(batch, vectors, strict=True):
            if np.isfinite(vector).all():
                encoded = EncodedVideo(vector.copy(), started - item.queued_at, seconds)
                settle(item.future, encoded)
            else:
                item.context.run(log.error, "encode_not_finite", shape=list(item.frames.shape))
                fail(item.future, EncodeFailed("The encoder gave no usable feature for this video"))

    def _step_labels(self, shares: list[LabelShare]) -> None:
        """Read the names in one batch, and settle each request that is now done."""
        names = [name for share in shares for name in share.names]
        started = time.monotonic()
        encode = shares[0].item.kind == "encode"
        results: list[Any] = self._encode_names(names) if encode else [*described(self._classifier, names)]
        seconds_each = max(1e-6, time.monotonic() - started) / len(names)
        fitting = max(1, min(int(LABEL_STEP_SECONDS / seconds_each), 4 * self._label_step))
        self._label_step = min(fitting, self._work.limits.max_batch_labels)
        self._work.finish_labels(shares, results)

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
            log.exception("probe_failed", device=self.device)
            self._works = False
        if self._out == self._works:
            self._out = not self._works
            (log.error if self._out else log.info)("device_out" if self._out else "device_back", device=self.device)
