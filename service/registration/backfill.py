"""Gives stored labels the vectors of one model that they lack, in the background, until each has one."""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Sequence

import structlog

from vidlex.service.errors import VidlexError
from vidlex.service.labels.store.records import Label
from vidlex.service.registration.labeler import Labeler

log = structlog.get_logger("vidlex.labels")

_PART_LABELS = 256
_MIN_PAUSE_SECONDS = 0.2
_MAX_PAUSE_SECONDS = 5.0
_REPORT_SECONDS = 5.0
_MAX_TRIES = 4


class Filler:
    """One thread for one model. ``add`` from any thread; nothing is encoded before ``start``."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[tuple[Labeler, Sequence[Label]]] = queue.SimpleQueue()
        self._refused: set[_Key] = set()
        self._given_up: set[_Key] = set()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="vidlex-fill", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Begin nothing more. Returns at once."""
        self._stopping.set()

    def close(self) -> None:
        """Returns when the labels at work are stored. What is left is found again at the next load."""
        self.stop()
        if self._thread.ident is not None:
            self._thread.join(timeout=10.0)

    def add(self, labeler: Labeler, labels: Sequence[Label]) -> None:
        """Labels of the labeler's namespace that lack its model's vector. Returns at once."""
        self._queue.put((labeler, labels))

    def refused(self, namespace: str) -> set[str]:
        """Ids of the labels whose text the model cannot encode: they lack a vector for good, unless renamed."""
        return _ids(self._refused, namespace)

    def given_up(self, namespace: str) -> set[str]:
        """Ids of the labels on which the encoder failed again and again: they are tried anew after a restart."""
        return _ids(self._given_up, namespace)

    @property
    def num_refused(self) -> int:
        """Over all namespaces that this process has opened."""
        return len({(owner, label_id) for owner, label_id, _ in self._refused.copy()})

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                labeler, labels = self._queue.get(timeout=0.2)
            except queue.Empty:
                continue
            self._fill(labeler, [x for x in labels if (labeler.namespace, x.id, x.name) not in self._refused])

    def _fill(self, labeler: Labeler, labels: Sequence[Label]) -> None:
        started = reported = time.monotonic()
        # In random order: replicas that do the same work at the same time soon skip what the others have done.
        starts = list(range(0, len(labels), _PART_LABELS))
        random.shuffle(starts)
        num_done = 0
        for start in starts:
            part = labels[start : start + _PART_LABELS]
            wanted = labeler.still_missing(part)
            if wanted:
                self._encode(labeler, wanted)
            num_done, now = num_done + len(part), time.monotonic()
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

    def _encode(self, labeler: Labeler, labels: Sequence[Label]) -> None:
        """Until it is done or the service stops: whatever is in the way (store, queue, encoder) may pass."""
        pause_seconds = _MIN_PAUSE_SECONDS
        num_tries = 0
        while labels and not self._stopping.is_set():
            try:
                rest = labeler.encode_stored(labels)
            except VidlexError as error:
                log.warning("labels_wait_for_encoding", labels=len(labels), code=error.code, internal=error.internal)
            except Exception:
                log.exception("labels_left_unencoded", labels=len(labels))
                return
            else:
                self._refused.update(_keys(labeler, rest.refused))
                labels = rest.failed
                num_tries += 1
                if labels and num_tries == _MAX_TRIES:
                    log.error("labels_left_unencoded", labels=len(labels), tries=num_tries)
                    self._given_up.update(_keys(labeler, labels))
                    return
            if labels:
                self._stopping.wait(pause_seconds)
                pause_seconds = min(_MAX_PAUSE_SECONDS, pause_seconds * 2)


_Key = tuple[str, str, str]
"""Namespace, id and name: a renamed label is another task."""


def _keys(labeler: Labeler, labels: Sequence[Label]) -> set[_Key]:
    return {(labeler.namespace, label.id, label.name) for label in labels}


def _ids(keys: set[_Key], namespace: str) -> set[str]:
    return {label_id for owner, label_id, _ in keys.copy() if owner == namespace}
