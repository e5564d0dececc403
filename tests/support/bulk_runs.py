"""A deterministic engine for tests of bulk runs, and small folders of "videos" for it."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vidlex.service.bulk.engine import BusyShares, EngineIdentity, LocalFile
from vidlex.service.bulk.options import TagOptions
from vidlex.service.bulk.output import TagOutput
from vidlex.service.bulk.results import (
    Receipt,
    Stretch,
    TagFailure,
    TaggedLabel,
    TaggedSegment,
    TagResult,
    VideoFacts,
)
from vidlex.service.bulk.rows import Row
from vidlex.service.bulk.run import Tagged, run_numbered
from vidlex.service.bulk.sources import Sources

BROKEN = b"broken"


class FakeEngine:
    """Scores follow from the content. ``before`` is called with each file, and may block or raise."""

    def __init__(
        self,
        *,
        vocabulary: str = "v1",
        concurrency: int = 3,
        before: Callable[[LocalFile], None] = lambda file: None,
        num_labels: int = 2,
        dim: int = 4,
    ) -> None:
        self.identity = EngineIdentity("fake", "fake-1", vocabulary, 7, num_labels)
        self.concurrency = concurrency
        self.num_labels, self.dim, self.before = num_labels, dim, before
        self.tagged: list[str] = []
        self._lock = threading.Lock()

    def tag(self, file: LocalFile, options: TagOptions, cancelled: threading.Event) -> TagResult:
        self.before(file)
        content = file.path.read_bytes()
        assert hashlib.sha256(content).hexdigest() == file.sha256
        with self._lock:
            self.tagged.append(file.uri)
        if content.startswith(BROKEN):
            return TagResult(file.uri, failure=TagFailure("undecodable_video", "The video cannot be decoded"))
        number = int(file.sha256[:8], 16) / 2**32
        labels = [
            TaggedLabel(None, f"label {i}", number / (i + 1), 0.25, number / (i + 1) >= 0.25, [Stretch(0, 9, 5, 0.5)])
            for i in range(self.num_labels)
        ]
        vector = [number] * self.dim if options.features else None
        has_segments = options.segments or options.features
        return TagResult(
            file.uri,
            video=VideoFacts(2000, 0, 160, 96, 10.0, "h264"),
            labels=labels,
            segments=[TaggedSegment(0, 2000, labels if options.segments else [], vector)] if has_segments else (),
            receipt=Receipt("fake 1", "cpu", "fake", "fake-1", None, self.identity.vocabulary, 7, "uniform", 8, 0),
            warnings=[("few_frames", "The video has few frames")],
            timings_ms={"decode": 1.5, "encode": 0.5},
        )

    def busy(self) -> BusyShares:
        return BusyShares(0.0, 1, 0.0, 1)

    def close(self) -> None:
        pass


def write_files(folder: Path, num_files: int, *, prefix: str = "") -> Path:
    """Every tenth is broken, and every seventh has the content of the one before it."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(num_files):
        content = f"{prefix}{number - 1 if number % 7 == 6 else number}".encode()
        (folder / f"{number:05}.mp4").write_bytes(BROKEN + content if number % 10 == 9 else content)
    return folder


def tag_into(out: str | Path, sources: Sequence[str | Path], engine: Any, **changes: Any) -> list[Tagged]:
    """As `vidlex tag` does it: what was tagged as completed, if ``keep``. ``changes`` are of the run and the output."""
    options, keep = changes.pop("options", TagOptions()), changes.pop("keep", True)
    retry_failed, stop_after = changes.pop("retry_failed", False), changes.pop("stop_after", None)
    found: list[Tagged] = []
    output = TagOutput(str(out), **changes)
    try:
        output.start(engine.identity, options, retry_failed=retry_failed)
        for tagged in run_numbered(Sources(list(map(str, sources))), engine, options, known=output):
            output.add(tagged)
            if keep:
                found.append(tagged)
            if len(found) == stop_after:
                return found
        output.finish()
    finally:
        output.close()
    return found


def comparable(rows: Sequence[Row]) -> list[Row]:
    """Without what differs between two runs on the same files."""
    return [{key: value for key, value in row.items() if key != "timings_ms"} for row in rows]
