"""One form for every dataset: JSON Lines, one video (or a stretch of one) per line.

A label in ``positives`` is true, one in ``negatives`` was verified to be absent; any other is unknown, unless the
manifest's vocabulary is complete (``closed``: every label not positive is absent, as in the procedural world).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MAX_LINE_BYTES = 1 << 20


class ManifestError(ValueError):
    """Names the file, the line and what is wrong there."""


@dataclass(frozen=True)
class Entry:
    """One labelled video."""

    video: str
    """Path of the file, relative to the manifest."""
    positives: tuple[str, ...]
    negatives: tuple[str, ...] = ()
    closed: bool = False
    split: str = "test"
    start_ms: int | None = None
    end_ms: int | None = None
    native_id: str | None = None


def write_manifest(path: Path, entries: Iterable[Entry]) -> None:
    lines = (json.dumps(asdict(entry), ensure_ascii=False) for entry in entries)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def read_manifest(path: Path) -> Iterator[Entry]:
    """Entries in file order. Raises ManifestError with file and line number; empty lines are skipped."""
    with path.open("rb") as handle:
        for number, raw in enumerate(handle, start=1):
            if len(raw) > MAX_LINE_BYTES:
                raise ManifestError(f"{path}:{number}: the line is longer than {MAX_LINE_BYTES} bytes")
            text = raw.decode("utf-8-sig" if number == 1 else "utf-8", errors="strict").strip()
            if text:
                yield _entry(text, f"{path}:{number}")


def _entry(text: str, where: str) -> Entry:
    try:
        data: dict[str, Any] = json.loads(text)
        entry = Entry(**{**data, "positives": tuple(data["positives"]), "negatives": tuple(data.get("negatives", ()))})
    except (ValueError, TypeError, KeyError) as error:
        raise ManifestError(f"{where}: not a manifest entry ({error!r})") from error
    if not isinstance(entry.video, str) or not all(isinstance(x, str) for x in entry.positives + entry.negatives):
        raise ManifestError(f"{where}: video and labels must be text")
    if set(entry.positives) & set(entry.negatives):
        raise ManifestError(f"{where}: a label is both positive and negative")
    return entry
