"""Keeps the index of this process equal to the store.

After a full load a thread follows the change stream. If it is behind the trimmed stream, or the store has another
history, it reloads everything while searches use the old content. While the store is unavailable, the index does not
change, ``is_healthy`` is False, and the thread retries without limit.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from vidlex.service.errors import StoreUnavailable
from vidlex.service.labels.index.label_index import LabelIndex
from vidlex.service.labels.index.slot_affine import LabelCalibration
from vidlex.service.labels.store.calibrations import Calibration
from vidlex.service.labels.store.changes import Change, ChangeCorrupt, Head
from vidlex.service.labels.store.indexed_label import IndexedLabel
from vidlex.service.labels.store.label_reader import LabelReader, StoredLabel

BLOCK_MS = 500  # of one wait for changes; bounds the duration of close()
_MIN_PAUSE_SECONDS = 0.05
_MAX_PAUSE_SECONDS = 2.0
_FETCH_LABELS = 1000

_log = logging.getLogger(__name__)

OnMissing = Callable[[Sequence[IndexedLabel]], None]
ReadCalibration = Callable[[Calibration | None], LabelCalibration | None]


class IndexSync:
    """Call ``load()`` (optional), ``start()`` and finally ``close()``. Thread-safe.

    ``on_missing(labels)`` receives labels without a vector of this index's encoder. It runs on the following thread and
    must not block; vectors stored later by LabelStore.put_vectors arrive as a change. ``read_calibration`` turns the
    stored calibration of this index's encoder, or None, into that of the index.
    """

    def __init__(
        self,
        store: LabelReader,
        index: LabelIndex,
        *,
        on_missing: OnMissing | None = None,
        read_calibration: ReadCalibration = lambda _: None,
    ) -> None:
        self._store = store
        self._index = index
        self._on_missing = on_missing
        self._read_calibration = read_calibration
        self._head: Head | None = None
        self._missing: set[str] = set()
        self._is_healthy = False
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def is_healthy(self) -> bool:
        return self._is_healthy

    @property
    def revision(self) -> int:
        head = self._head
        return 0 if head is None else head.revision

    @property
    def num_missing(self) -> int:
        return len(self._missing)

    @property
    def num_quarantined(self) -> int:
        return self._store.num_quarantined

    @property
    def missing_ids(self) -> set[str]:
        return self._missing.copy()

    def load(self) -> None:
        """Raises StoreUnavailable and then leaves the index unchanged."""
        started = time.monotonic()
        self._store.check_server()  # a store that lost its data looks like one without labels
        # The head is read first: steps made during the load are applied again from the stream, which is harmless.
        head = self._store.head()
        fingerprint = self._index.fingerprint
        missing: list[IndexedLabel] = []

        def batches() -> Iterator[tuple[list[IndexedLabel], NDArray[np.float32]]]:
            for rows in self._store.scan(fingerprint):
                missing.extend(row.label for row in rows if row.vector is None)
                yield self._with_vectors(rows)

        self._index.replace(
            batches(), fingerprint=fingerprint, revision=head.revision, calibration=self._stored_calibration()
        )
        self._missing = {label.id for label in missing}
        self._advance(head)
        seconds = time.monotonic() - started
        _log.info("loaded %d labels (%d without a vector) in %.2f s", len(self._index), len(missing), seconds)
        if missing and self._on_missing is not None:
            self._on_missing(missing)

    def start(self) -> None:
        if self._thread is not None:
            raise RuntimeError("already started")
        self._thread = threading.Thread(target=self._run, name="label-index-sync", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
        with self._changed:
            self._is_healthy = False
            self._changed.notify_all()

    def wait_for_revision(self, min_revision: int, timeout_seconds: float) -> bool:
        """False after the timeout or ``close``."""
        with self._changed:
            return self._changed.wait_for(
                lambda: self.revision >= min_revision or self._stopping.is_set(), timeout_seconds
            ) and (self.revision >= min_revision)

    # -- thread --------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        pause_seconds = _MIN_PAUSE_SECONDS
        while not self._stopping.is_set():
            try:
                self._follow_once()
                pause_seconds = _MIN_PAUSE_SECONDS
                continue
            except StoreUnavailable as error:
                if self._is_healthy:
                    _log.warning("the store is unavailable; the index stays at revision %d: %s", self.revision, error)
            except ChangeCorrupt as error:
                _log.error("reloading all labels: %s", error)
                self._head = None
            except Exception:
                # The index may have applied only a part of the changes, so reload it. This thread must not end.
                _log.exception("following the store failed; reloading all labels")
                self._head = None
            self._is_healthy = False
            self._stopping.wait(pause_seconds)
            pause_seconds = min(pause_seconds * 2, _MAX_PAUSE_SECONDS)

    def _follow_once(self) -> None:
        if self._head is None:
            self.load()
            return
        head = self._head
        changes = self._store.changes(head.revision, BLOCK_MS)
        if not changes:
            # Without changes the history may still differ: a restored store may have an older head.
            current = self._store.head()
            if current.revision < head.revision or (current.revision == head.revision and current != head):
                self._reload(f"the store is at revision {current.revision} of another history")
            else:
                self._is_healthy = True
            return
        for change in changes:
            if not change.follows(head):
                self._reload(f"revision {change.revision} does not follow {head.revision}")
                return
            head = change.head
        self._apply(changes)
        self._advance(head)

    def _reload(self, reason: str) -> None:
        _log.warning("reloading all labels: %s", reason)
        self._head = None
        self.load()

    def _apply(self, changes: Sequence[Change]) -> None:
        fingerprint = self._index.fingerprint
        relevant = [c for c in changes if c.fingerprint in (None, fingerprint)]
        if any(change.kind == "calibration" for change in relevant):
            self._index.calibrate(self._stored_calibration())
        changed_ids = list(dict.fromkeys(label_id for change in relevant for label_id in change.label_ids))
        for start in range(0, max(len(changed_ids), 1), _FETCH_LABELS):
            part = changed_ids[start : start + _FETCH_LABELS]
            rows = self._store.fetch(part, fingerprint)  # the current state, which may be newer than the changes
            missing = [row.label for row in rows if row.vector is None]
            labels, vectors = self._with_vectors(rows)
            present = {label.id for label in labels}
            is_last = start + _FETCH_LABELS >= len(changed_ids)
            self._index.apply(
                labels,
                vectors,
                [label_id for label_id in part if label_id not in present],
                fingerprint=fingerprint,
                revision=changes[-1].revision if is_last else None,
            )
            self._missing.difference_update(part)
            self._missing.update(label.id for label in missing)
            if missing and self._on_missing is not None:
                self._on_missing(missing)

    def _stored_calibration(self) -> LabelCalibration | None:
        return self._read_calibration(self._store.calibration(self._index.fingerprint))

    def _with_vectors(self, rows: Sequence[StoredLabel]) -> tuple[list[IndexedLabel], NDArray[np.float32]]:
        found = [(row.label, row.vector) for row in rows if row.vector is not None]
        vectors = np.stack([v for _, v in found]) if found else np.empty((0, self._index.dim), np.float32)
        return [label for label, _ in found], vectors

    def _advance(self, head: Head) -> None:
        with self._changed:
            self._head = head
            self._is_healthy = True
            self._changed.notify_all()
