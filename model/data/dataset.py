"""A dataset on disk, as every builder writes it: one folder that ``vidlex eval`` and training read.

manifest.jsonl   one video or stretch of one per line (``vidlex.model.data.manifest``), labels by their keys
labels.json      key -> what an encoder reads (``prompt``), the concept type (``kind``), the dataset's own id
dataset.json     sources with their sha256, options, counts, what an unlabelled pair means, the protocol
missing.txt      native ids whose video was not found, one a line
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vidlex.model.data.annotations import sha256
from vidlex.model.data.manifest import Entry, write_manifest

EXTENSIONS = frozenset((".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v", ".flv", ".3gp"))
Unlabelled = Literal["unknown", "absent"]
"""What a pair means that is neither positive nor verified negative: skip it, or (by the dataset's custom) absent."""


class DatasetError(ValueError):
    """A file beside a manifest is not what it should be. Names the file and the member."""


@dataclass(frozen=True)
class LabelText:
    """What a label's key stands for."""

    prompt: str
    kind: str | None = None
    native_id: str | None = None


@dataclass(frozen=True)
class DatasetFacts:
    """``dataset.json``."""

    name: str
    unlabelled: Unlabelled = "unknown"
    protocol: str | None = None
    """Official protocol beyond the plain metrics: "tao" or "rareact"."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """File name -> sha256."""
    options: Mapping[str, Any] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    note: str = ""


class VideoFiles:
    """The video files below a folder, found by stem or by path without extension. Names are taken as they are."""

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise FileNotFoundError(f"--videos: {root} is not a folder")
        self.by_stem: dict[str, Path] = {}
        self.by_path: dict[str, Path] = {}
        for folder, subfolders, names in os.walk(root):
            subfolders.sort()
            for name in sorted(names):
                path = Path(folder) / name
                if path.suffix.lower() in EXTENSIONS:
                    self.by_stem.setdefault(path.stem, path)
                    self.by_path.setdefault(path.relative_to(root).with_suffix("").as_posix(), path)

    def find(self, *stems: str) -> Path | None:
        """The first of these stems that is there."""
        return next((self.by_stem[stem] for stem in stems if stem in self.by_stem), None)


SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "validate": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
"""The datasets' names of splits -> ours."""


def relative(video: Path, out: Path) -> str:
    """Path of a video as a manifest in ``out`` names it."""
    return Path(os.path.relpath(video, out)).as_posix()


def write_dataset(
    out: Path,
    entries: Sequence[Entry],
    labels: Mapping[str, LabelText],
    missing: Iterable[str],
    facts: DatasetFacts,
    *,
    sources: Iterable[Path] = (),
) -> dict[str, Any]:
    """Write the four files and return the counts, for the command line. ``sources`` are hashed into the facts."""
    out.mkdir(parents=True, exist_ok=True)
    lost = list(dict.fromkeys(missing))
    write_manifest(out / "manifest.jsonl", entries)
    texts = {
        key: {"prompt": text.prompt, "kind": text.kind, "native_id": text.native_id} for key, text in labels.items()
    }
    _write_json(out / "labels.json", texts)
    (out / "missing.txt").write_text("".join(f"{name}\n" for name in lost), encoding="utf-8")
    counts = {
        "num_labels": len(labels),
        "num_entries": len(entries),
        "num_videos": len({entry.video for entry in entries}),
        "num_missing_videos": len(lost),
        **facts.counts,
    }
    document = {
        "name": facts.name,
        "unlabelled": facts.unlabelled,
        "protocol": facts.protocol,
        "sources": {path.name: sha256(path) for path in sources},
        "options": dict(facts.options),
        "counts": counts,
        "note": facts.note,
    }
    _write_json(out / "dataset.json", document)
    return {"manifest": str(out / "manifest.jsonl"), **counts}


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_labels(path: Path) -> dict[str, LabelText]:
    """``labels.json``: a list of names, names and their kinds, or names and their texts. Raises DatasetError."""
    document = _read_json(path)
    if isinstance(document, list):
        document = dict.fromkeys(document)
    if not isinstance(document, dict) or not all(isinstance(key, str) for key in document):
        raise DatasetError(f"{path} must hold a list of names, or an object of names and their kinds")
    found = {}
    for key, value in document.items():
        if value is None or isinstance(value, str):
            found[key] = LabelText(key, value)
        elif isinstance(value, dict) and isinstance(value.get("prompt"), str):
            found[key] = LabelText(value["prompt"], value.get("kind"), value.get("native_id"))
        else:
            raise DatasetError(f"{path}: {key!r} needs a kind, or an object with a prompt")
    return found


def read_facts(folder: Path) -> DatasetFacts:
    """``dataset.json`` of a folder, or facts that say nothing where there is none. Raises DatasetError."""
    path = folder / "dataset.json"
    if not path.is_file():
        return DatasetFacts(folder.name)
    document = _read_json(path)
    try:
        facts = DatasetFacts(**document)
    except TypeError as error:
        raise DatasetError(f"{path} is not a dataset's: {error}") from None
    if facts.unlabelled not in ("unknown", "absent"):
        raise DatasetError(f"{path}: unlabelled must be unknown or absent, not {facts.unlabelled!r}")
    return facts


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DatasetError(f"{path} is not JSON: {error}") from None
