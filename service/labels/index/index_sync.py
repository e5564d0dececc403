"""Keeps the index of this process equal to the store, whoever writes to it.

A full load, then a thread that follows the change stream. When it has fallen behind the trimmed stream, or the store's
past was exchanged, it loads everything anew while searches go on with what they have. When the store does not answer,
the index stays as it is, ``healthy`` turns False, and the thread tries again for ever.
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
from vidlex.service.labels.store.changes import Change, Head
from vidlex.service.labels.store.label_reader import LabelReader, StoredLabel
from vidlex.service.labels.store.records import Label

BLOCK_MS = 500
"""One wait for news. Bounds the time close() takes."""
_MIN_PAUSE_SECONDS = 0.05
_MAX_PAUSE_SECONDS = 2.0
_FETCH_LABELS = 1000

_log = logging.getLogger(__name__)

OnMissing = Callable[[Sequence[Label]], None]


class IndexSync:
    """``load()``, then ``start()``; ``close()`` at the end. Public methods may be called from any thread."""

    def __init__(self, store: LabelReader, index: LabelIndex, *, on_missing: OnMissing | None = None) -> None:
        """``on_missing(labels)`` is told of labels that arrive without a vector of this index's encoder, such as from
        a replica with another model. It is called on the following thread: it should only hand them on to whoever
        encodes them and calls LabelStore.put_vectors, which brings them back here as a change."""
        self._store = store
        self._index = index
        self._on_missing = on_missing
        self._head: Head | None = None
        self._missing: set[str] = set()
        self._healthy = False
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def healthy(self) -> bool:
        """The index is loaded, and the last exchange with the store succeeded."""
        return self._healthy

    @property
    def revision(self) -> int:
        """All steps up to this one are in the index. 0 before the load."""
        head = self._head
        return 0 if head is None else head.revision

    @property
    def num_missing(self) -> int:
        """Labels that cannot be found because this encoder has no vector of them yet."""
        return len(self._missing)

    @property
    def missing(self) -> set[str]:
        """Their ids."""
        return self._missing.copy()

    def load(self) -> None:
        """Fill the index from the store. Raises StoreUnavailable; the index is then as before."""
        started = time.monotonic()
        # The head first: steps made during the load are then met again in the stream, where they do no harm.
        head = self._store.head()
        fingerprint = self._index.fingerprint
        missing: list[Label] = []

        def batches() -> Iterator[tuple[list[Label], NDArray[np.float32]]]:
            for rows in self._store.scan(fingerprint):
                missing.extend(row.label for row in rows if row.vector is None)
                yield self._with_vectors(rows)

        self._index.replace(batches(), fingerprint=fingerprint, revision=head.revision)
        self._missing = {label.id for label in missing}
        self._advance(head)
        seconds = time.monotonic() - started
        _log.info("loaded %d labels (%d without vector) in %.2f s", len(self._index), len(missing), seconds)
        if missing and self._on_missing is not None:
            self._on_missing(missing)

    def start(self) -> None:
        """Follow the store. Loads first if ``load`` was not called (then in the background)."""
        if self._thread is not None:
            raise RuntimeError("already started")
        self._thread = threading.Thread(target=self._run, name="label-index-sync", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop following; returns within about a second. Safe to call twice."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
        with self._changed:
            self._healthy = False
            self._changed.notify_all()

    def caught_up(self, min_revision: int, timeout_seconds: float) -> bool:
        """Wait until all steps up to ``min_revision`` are in the index; False when the time is over.

        After ``label = store.add(...)``, ``caught_up(label.revision, ...)`` makes the next search see the label.
        """
        with self._changed:
            return self._changed.wait_for(
                lambda: self.revision >= min_revision or self._stopping.is_set(), timeout_seconds
            ) and (self.revision >= min_revision)

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        pause_seconds = _MIN_PAUSE_SECONDS
        while not self._stopping.is_set():
            try:
                self._follow_once()
                pause_seconds = _MIN_PAUSE_SECONDS
                continue
            except StoreUnavailable as error:
                if self._healthy:
                    _log.warning("the store does not answer; the index stays at revision %d: %s", self.revision, error)
            except Exception:
                # Whatever it was, the index may be half way: start from a full load, and never end this thread.
                _log.exception("following the store failed; loading everything anew")
                self._head = None
            self._healthy = False
            self._stopping.wait(pause_seconds)
            pause_seconds = min(pause_seconds * 2, _MAX_PAUSE_SECONDS)

    def _follow_once(self) -> None:
        if self._head is None:
            self.load()
            return
        head = self._head
        changes = self._store.changes(head.revision, BLOCK_MS)
        if not changes:
            # No news, or another past: after a restore the store may even stand below us and stay silent for long.
            now = self._store.head()
            if now.revision < head.revision or (now.revision == head.revision and now != head):
                self._reload(f"the store stands at revision {now.revision} of another past")
            else:
                self._healthy = True
            return
        for change in changes:
            if not change.follows(head):
                self._reload(f"revision {change.revision} does not follow {head.revision}")
                return
            head = change.head
        self._apply(changes)
        self._advance(head)

    def _reload(self, reason: str) -> None:
        _log.warning("loading all labels anew: %s", reason)
        self._head = None
        self.load()

    def _apply(self, changes: Sequence[Change]) -> None:
        """Bring the touched labels to their present state, which may be newer than the changes: that is harmless."""
        fingerprint = self._index.fingerprint
        relevant = [c for c in changes if c.kind != "vectors" or c.fingerprint == fingerprint]
        touched = list(dict.fromkeys(label_id for change in relevant for label_id in change.label_ids))
        for start in range(0, max(len(touched), 1), _FETCH_LABELS):
            part = touched[start : start + _FETCH_LABELS]
            rows = self._store.fetch(part, fingerprint)
            missing = [row.label for row in rows if row.vector is None]
            labels, vectors = self._with_vectors(rows)
            present = {label.id for label in labels}
            is_last = start + _FETCH_LABELS >= len(touched)
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

    def _with_vectors(self, rows: Sequence[StoredLabel]) -> tuple[list[Label], NDArray[np.float32]]:
        """The labels that have a vector, and the vectors [n, D]."""
        found = [(row.label, row.vector) for row in rows if row.vector is not None]
        vectors = np.stack([v for _, v in found]) if found else np.empty((0, self._index.dim), np.float32)
        return [label for label, _ in found], vectors

    def _advance(self, head: Head) -> None:
        with self._changed:
            self._head = head
            self._healthy = True
            self._changed.notify_all()
