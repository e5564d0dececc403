"""Engines of bulk runs in this process, with the dummy model."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vidlex.model.dummy import DummyClassifier
from vidlex.service.bulk.engine import LocalFile
from vidlex.service.bulk.local.encoder import LocalEncoder
from vidlex.service.bulk.local.engine import LocalEngine
from vidlex.service.bulk.local.snapshot import Snapshot, snapshot_of_labels
from vidlex.service.bulk.local.vocabulary import labels_of_names
from vidlex.service.bulk.options import TagOptions
from vidlex.service.bulk.results import TagResult
from vidlex.service.decode.pool import PoolLimits
from vidlex.service.registration.label_cache import LabelCache

NAMES = ("red", "green", "blue", "Yellow")


def file_of(path: Path) -> LocalFile:
    data = path.read_bytes()
    return LocalFile(path, str(path), hashlib.sha256(data).hexdigest(), len(data))


def tag(engine: LocalEngine, path: Path, **options: Any) -> TagResult:
    return engine.tag(file_of(path), TagOptions(**options), threading.Event())


def dummy_snapshot(*names: str, encoder: LocalEncoder | None = None) -> Snapshot:
    own = encoder or LocalEncoder([DummyClassifier()])
    try:
        return snapshot_of_labels("dummy", own, labels_of_names(names or NAMES), LabelCache(Path("/unused"), 0))
    finally:
        if encoder is None:
            own.close()


@contextmanager
def engine_of(
    encoder: Any, *, snapshot: Snapshot | None = None, limits: PoolLimits = PoolLimits()
) -> Iterator[LocalEngine]:
    engine = LocalEngine(snapshot or dummy_snapshot(), encoder, decode_workers=1, limits=limits)
    try:
        yield engine
    finally:
        engine.close()
