"""The manifest of a dataset: JSON Lines, one entry per video or segment of a video.

A label in ``positives`` is present and one in ``negatives`` was verified to be absent. Any other label is unknown, or
absent if the entry is ``closed`` (its labels are complete).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MAX_LINE_BYTES = 1 << 20


class ManifestError(ValueError):
    """The message names file, line and problem."""


@dataclass(frozen=True)
class Entry:
    video: str  # relative to the manifest
    positives: tuple[str, ...]
    negatives: tuple[str, ...] = ()
    closed: bool = False
    split: str | None = None  # of the dataset: train, val or test; None: the entry belongs to every split
    start_ms: int | None = None
    end_ms: int | None = None
    native_id: str | None = None


def write_manifest(path: Path, entries: Iterable[Entry]) -> None:
    lines = (json.dumps(asdict(entry), ensure_ascii=False) for entry in entries)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def read_manifest(path: Path) -> Iterator[Entry]:
    """Entries in file order; empty lines are skipped. Raises ManifestError."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if len(raw) > MAX_LINE_BYTES:
                raise ManifestError(f"{path}:{number}: the line is longer than {MAX_LINE_BYTES} bytes")
            text = raw.decode("utf-8-sig" if number == 1 else "utf-8", errors="strict").strip()
            if text:
                yield _parse_entry(text, f"{path}:{number}")


def select_split(entries: Iterable[Entry], split: str, path: Path) -> list[Entry]:
    """Those of ``split`` and those without a split. Raises ManifestError if there are none."""
    found, others = [], Counter[str]()
    for entry in entries:
        if entry.split is None or entry.split == split:
            found.append(entry)
        else:
            others[entry.split] += 1
    if not found:
        splits = ", ".join(f"{name} ({num})" for name, num in sorted(others.items())) or "no entries"
        raise ManifestError(f"{path} has no entries of the split {split!r}; it has {splits}")
    return found


def _parse_entry(text: str, location: str) -> Entry:
    try:
        data: dict[str, Any] = json.loads(text)
        entry = Entry(**{**data, "positives": tuple(data["positives"]), "negatives": tuple(data.get("negatives", ()))})
    except (ValueError, TypeError, KeyError) as error:
        raise ManifestError(f"{location}: not a manifest entry ({error!r})") from error
    if not isinstance(entry.split, str | None) or not all(
        isinstance(value, int | None) for value in (entry.start_ms, entry.end_ms)
    ):
        raise ManifestError(f"{location}: split must be text, start_ms and end_ms whole numbers")
    if not isinstance(entry.video, str) or not all(isinstance(x, str) for x in entry.positives + entry.negatives):
        raise ManifestError(f"{location}: video and labels must be text")
    if set(entry.positives) & set(entry.negatives):
        raise ManifestError(f"{location}: a label is both positive and negative")
    return entry
