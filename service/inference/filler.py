"""Gives stored labels the vectors of one model that they lack, in the background, until each has one."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence

import structlog

from service.errors import VidlexError
from service.inference.labeler import Labeler
from service.labels.records import Label

log = structlog.get_logger("vidlex.labels")

_PART_LABELS = 256
_MIN_PAUSE_SECONDS = 0.2
_MAX_PAUSE_SECONDS = 5.0
_REPORT_SECONDS = 5.0


class Filler:
    """One thread for one model. ``add`` from any thread; nothing is encoded before ``start``."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[tuple[Labeler, Sequence[Label]]] = queue.SimpleQueue()
        self._refused: set[tuple[str, str, str]] = set()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="vidlex-fill", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Returns when the labels at work are stored. What is left is found again at the next load."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(timeout=10.0)

    def add(self, labeler: Labeler, labels: Sequence[Label]) -> None:
        """Labels of the labeler's namespace that lack its model's vector. Returns at once."""
        self._queue.put((labeler, labels))

    def refused(self, namespace: str) -> set[str]:
        """Ids of the labels whose text the model cannot encode: they lack a vector for good, unless renamed."""
        return {label_id for owner, label_id, _ in self._refused.copy() if owner == namespace}

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                labeler, labels = self._queue.get(timeout=0.2)
            except queue.Empty:
                continue
            self._fill(labeler, [x for x in labels if (labeler.namespace, x.id, x.name) not in self._refused])

    def _fill(self, labeler: Labeler, labels: Sequence[Label]) -> None:
        started = reported = time.monotonic()
        for start in range(0, len(labels), _PART_LABELS):
            part = labels[start : start + _PART_LABELS]
            refused = set(self._encode(labeler, part))
            self._refused.update((labeler.namespace, label.id, label.name) for label in part if label.id in refused)
            num_done, now = start + len(part), time.monotonic()
            if now - reported > _REPORT_SECONDS or (num_done == len(labels) and reported > started):
                reported = now
                seconds = round(now - started, 1)
                log.info(
                    "labels_encoded",
                    namespace=labeler.namespace,
                    done=num_done,
                    total=len(labels),
                    seconds=seconds,
                )

    def _encode(self, labeler: Labeler, part: Sequence[Label]) -> Sequence[str]:
        """Until it is done or the service stops: whatever is in the way (store, queue, encoder) may pass."""
        pause_seconds = _MIN_PAUSE_SECONDS
        while not self._stopping.is_set():
            try:
                return labeler.encode_stored(part)
            except VidlexError as error:
                log.warning("labels_wait_for_encoding", labels=len(part), code=error.code, internal=error.internal)
            except Exception:
                log.exception("labels_left_unencoded", labels=len(part))
                return ()
            self._stopping.wait(pause_seconds)
            pause_seconds = min(_MAX_PAUSE_SECONDS, pause_seconds * 2)
        return ()
