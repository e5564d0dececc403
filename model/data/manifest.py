"""The manifest of a dataset: JSON Lines, one entry per video or segment of a video.

A label in ``positives`` is present and one in ``negatives`` was verified to be absent. Any other label is unknown, or
absent if the entry is ``closed`` (its labels are complete).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

MAX_LINE_BYTES = 1 << 20
_NO_TEXT = re.compile("[\0\ud800-\udfff]")  # in no path, and in no UTF-8


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


_KEYS = tuple(field.name for field in fields(Entry))


def write_manifest(path: Path, entries: Iterable[Entry]) -> None:
    lines = (json.dumps(asdict(entry), ensure_ascii=False) for entry in entries)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def read_manifest(path: Path) -> Iterator[Entry]:
    """Entries in file order; empty lines are skipped. Raises ManifestError."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if len(raw) > MAX_LINE_BYTES:
                raise ManifestError(f"{path}:{number}: the line is longer than {MAX_LINE_BYTES} bytes")
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError as error:
                raise ManifestError(f"{path}:{number}: the line is not UTF-8") from error
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
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{location}: not a manifest entry (not JSON: {error})") from error
    for problem in _problems(data):
        raise ManifestError(f"{location}: {problem}")
    return Entry(**{**data, "positives": tuple(data["positives"]), "negatives": tuple(data.get("negatives", ()))})


def _problems(data: Any) -> Iterator[str]:
    """Only the first one: those after it may fail."""
    if not isinstance(data, dict):
        yield "not a manifest entry (not a JSON object)"
    for key in data.keys() - set(_KEYS):
        yield f"not a manifest entry (unknown key {key!r}; the keys are {', '.join(_KEYS)})"
    for key in {"video", "positives"} - data.keys():
        yield f"not a manifest entry (no {key!r})"
    positives, negatives = data["positives"], data.get("negatives", [])
    if not isinstance(positives, list) or not isinstance(negatives, list):
        yield "positives and negatives must be lists of labels"
    if not all(_is_text(value) for value in (data["video"], *positives, *negatives)):
        yield "video and labels must be text that is valid and not empty"
    if set(positives) & set(negatives):
        yield "a label is both positive and negative"
    if not isinstance(data.get("closed", False), bool):
        yield "closed must be true or false"
    for key in ("split", "native_id"):
        if not isinstance(data.get(key), str | None):
            yield f"{key} must be text"
    start, end = data.get("start_ms"), data.get("end_ms")
    if not all(value is None or type(value) is int for value in (start, end)):
        yield "start_ms and end_ms must be whole numbers"
    if (start or 0) < 0 or (end is not None and end <= (start or 0)):
        yield "start_ms must not be negative, and end_ms must be larger than it"


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and not _NO_TEXT.search(value)
