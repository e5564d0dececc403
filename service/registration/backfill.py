"""Background encoding of stored labels that lack a vector of one model."""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Sequence

import structlog

from vidlex.service.errors import VidlexError
from vidlex.service.labels.store.indexed_label import IndexedLabel
from vidlex.service.registration.labeler import Labeler

_log = structlog.get_logger("vidlex.registration")

_BATCH_LABELS = 256
_MIN_PAUSE_SECONDS = 0.2
_MAX_PAUSE_SECONDS = 5.0
_REPORT_SECONDS = 5.0
_MAX_ATTEMPTS = 4

_LabelKey = tuple[str, str, str]  # (namespace, id, name): a renamed label is a new task


class Backfill:
    """One thread for one model. Thread-safe; nothing is encoded before ``start``.

    ``stop`` returns at once; ``close`` waits for the batch in progress, which is still stored.
    """

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[tuple[Labeler, Sequence[IndexedLabel]]] = queue.SimpleQueue()
        self._refused: set[_LabelKey] = set()  # the model cannot encode the text: until a rename
        self._failed: set[_LabelKey] = set()  # the encoder failed repeatedly: until a restart
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="vidlex-backfill", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()

    def close(self) -> None:
        # Labels still queued are found again when the index is next loaded.
        self.stop()
        if self._thread.ident is not None:
            self._thread.join(timeout=10.0)

    def add(self, labeler: Labeler, labels: Sequence[IndexedLabel]) -> None:
        self._queue.put((labeler, labels))

    def refused_ids(self, namespace: str) -> set[str]:
        return _ids(self._refused, namespace)

    def failed_ids(self, namespace: str) -> set[str]:
        return _ids(self._failed, namespace)

    @property
    def num_refused(self) -> int:
        return len({(namespace, label_id) for namespace, label_id, _ in self._refused.copy()})

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                labeler, labels = self._queue.get(timeout=0.2)
            except queue.Empty:
                continue
            self._encode_all(labeler, [x for x in labels if (labeler.namespace, x.id, x.name) not in self._refused])

    def _encode_all(self, labeler: Labeler, labels: Sequence[IndexedLabel]) -> None:
        started = reported = time.monotonic()
        # In random order, so that replicas that encode the same labels skip each other's batches.
        starts = list(range(0, len(labels), _BATCH_LABELS))
        random.shuffle(starts)
        num_done = 0
        for start in starts:
            batch = labels[start : start + _BATCH_LABELS]
            unencoded = labeler.without_vector(batch)
            if unencoded:
                self._encode_batch(labeler, unencoded)
            num_done, now = num_done + len(batch), time.monotonic()
            if now - reported > _REPORT_SECONDS or (num_done == len(labels) and reported > started):
                reported = now
                _log.info(
                    "labels_encoded",
                    namespace=labeler.namespace,
                    done=num_done,
                    total=len(labels),
                    seconds=round(now - started, 1),
                )

    def _encode_batch(self, labeler: Labeler, labels: Sequence[IndexedLabel]) -> None:
        # Failures of store and encoder may be transient.
        pause_seconds = _MIN_PAUSE_SECONDS
        num_attempts = 0
        while labels and not self._stopping.is_set():
            try:
                rejected = labeler.encode_stored(labels)
            except VidlexError as error:
                _log.warning("label_encoding_delayed", labels=len(labels), code=error.code, internal=error.internal)
            except Exception:
                _log.exception("label_encoding_failed", labels=len(labels))
                return
            else:
                self._refused.update(_keys(labeler, rejected.refused))
                labels = rejected.failed
                num_attempts += 1
                if labels and num_attempts == _MAX_ATTEMPTS:
                    _log.error("label_encoding_failed", labels=len(labels), attempts=num_attempts)
                    self._failed.update(_keys(labeler, labels))
                    return
            if labels:
                self._stopping.wait(pause_seconds)
                pause_seconds = min(_MAX_PAUSE_SECONDS, pause_seconds * 2)


def _keys(labeler: Labeler, labels: Sequence[IndexedLabel]) -> set[_LabelKey]:
    return {(labeler.namespace, label.id, label.name) for label in labels}


def _ids(keys: set[_LabelKey], namespace: str) -> set[str]:
    return {label_id for owner, label_id, _ in keys.copy() if owner == namespace}
