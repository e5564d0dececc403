"""Calls ``sweep`` from time to time."""

from __future__ import annotations

import random
import threading

import structlog

from vidlex.service.errors import VidlexError
from vidlex.service.videos.store import KeptVideoStore

_log = structlog.get_logger("vidlex.videos")

SWEEP_SECONDS = 60.0


class VideoSweeper:
    def __init__(self, store: KeptVideoStore, *, interval_seconds: float = SWEEP_SECONDS) -> None:
        self._store = store
        self._interval_seconds = interval_seconds
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="vidlex-videos", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        # replicas that start together do not sweep together
        while not self._stopping.wait(self._interval_seconds * random.uniform(0.8, 1.2)):
            try:
                swept = self._store.sweep(at_most_every_seconds=0.75 * self._interval_seconds)
                if swept.expired or swept.dropped_parts or swept.removed_files:
                    _log.info("kept_videos_swept", expired=swept.expired, moved=swept.moved, files=swept.removed_files)
            except VidlexError as error:
                _log.warning("kept_videos_not_swept", detail=str(error), internal=error.internal)
            except Exception:  # the next sweep may succeed
                _log.exception("kept_videos_not_swept")
