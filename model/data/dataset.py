"""A dataset on disk, as every builder writes it and ``vidlex eval`` reads it.

manifest.jsonl   one entry per video or segment (``vidlex.model.data.manifest``); labels by key
labels.json      key -> ``prompt`` (the text that is encoded), ``kind`` and ``native_id`` (the dataset's own id)
dataset.json     sources with their sha256, options, counts, meaning of unlabelled pairs, official protocol
missing.txt      native ids whose video was not found, one per line
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from vidlex.model.data.annotations import file_sha256
from vidlex.model.data.manifest import Entry, write_manifest

EXTENSIONS = frozenset((".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v", ".flv", ".3gp"))
# a pair that is neither positive nor a verified negative: not judged, or absent by convention
Unlabelled = Literal["unknown", "absent"]
PROTOCOLS = ("tao", "rareact")

SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "validate": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}  # -> ``Entry.split``


class DatasetError(ValueError):
    """``labels.json`` or ``dataset.json`` is invalid. The message names the file and the member."""


@dataclass(frozen=True)
class LabelInfo:
    prompt: str
    kind: str | None = None
    native_id: str | None = None


@dataclass(frozen=True)
class DatasetInfo:
    """``dataset.json``. ``protocol`` is one of ``PROTOCOLS``; ``sources`` maps file names to sha256."""

    name: str
    unlabelled: Unlabelled = "unknown"
    protocol: str | None = None
    sources: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    note: str = ""


class VideoFiles:
    """The video files below a folder, by stem and by path without extension, both case-sensitive."""

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
        return next((self.by_stem[stem] for stem in stems if stem in self.by_stem), None)


def relative_path(video: Path, out: Path) -> str:  # ``Entry.video`` for a manifest in ``out``
    return Path(os.path.relpath(video, out)).as_posix()


def write_dataset(
    out: Path,
    entries: Sequence[Entry],
    labels: Mapping[str, LabelInfo],
    missing: Iterable[str],
    info: DatasetInfo,
    *,
    sources: Iterable[Path] = (),
) -> dict[str, Any]:
    """Write the four files and return the counts."""
    out.mkdir(parents=True, exist_ok=True)
    missing_ids = list(dict.fromkeys(missing))
    write_manifest(out / "manifest.jsonl", entries)
    documents = {
        key: {"prompt": label.prompt, "kind": label.kind, "native_id": label.native_id} for key, label in labels.items()
    }
    _write_json(out / "labels.json", documents)
    (out / "missing.txt").write_text("".join(f"{name}\n" for name in missing_ids), encoding="utf-8")
    counts = {
        "num_labels": len(labels),
        "num_entries": len(entries),
        "num_videos": len({entry.video for entry in entries}),
        "num_missing_videos": len(missing_ids),
        **info.counts,
    }
    document = {
        "name": info.name,
        "unlabelled": info.unlabelled,
        "protocol": info.protocol,
        "sources": {path.name: file_sha256(path) for path in sources},
        "options": dict(info.options),
        "counts": counts,
        "note": info.note,
    }
    _write_json(out / "dataset.json", document)
    return {"manifest": str(out / "manifest.jsonl"), **counts}


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_labels(path: Path) -> dict[str, LabelInfo]:
    """A list of names, or an object of names to kinds or ``LabelInfo``. Raises DatasetError."""
    document = _read_json(path)
    if isinstance(document, list) and all(isinstance(key, str) for key in document):
        document = dict.fromkeys(document)
    if not isinstance(document, dict):
        raise DatasetError(f"{path} must hold a list of names, or an object of names and their kinds")
    labels = {}
    for key, value in document.items():
        if value is None or isinstance(value, str):
            labels[key] = LabelInfo(key, value)
        elif isinstance(value, dict) and isinstance(value.get("prompt"), str):
            labels[key] = LabelInfo(value["prompt"], value.get("kind"), value.get("native_id"))
        else:
            raise DatasetError(f"{path}: {key!r} needs a kind, or an object with a prompt")
        if not labels[key].prompt.strip():
            raise DatasetError(f"{path}: the text of {key!r} is empty")
        if not all(isinstance(member, str | None) for member in (labels[key].kind, labels[key].native_id)):
            raise DatasetError(f"{path}: kind and native_id of {key!r} must be text")
    return labels


def read_dataset_info(folder: Path) -> DatasetInfo:
    """The defaults if ``folder`` has no ``dataset.json``. Raises DatasetError."""
    path = folder / "dataset.json"
    if not path.is_file():
        return DatasetInfo(folder.name)
    document = _read_json(path)
    if not isinstance(document, dict):
        raise DatasetError(f"{path} does not describe a dataset: it must hold an object")
    members = [member.name for member in fields(DatasetInfo)]
    for key in document:
        if key not in members:
            raise DatasetError(
                f"{path} does not describe a dataset: unknown member {key!r}; there are {', '.join(members)}"
            )
    info = DatasetInfo(**{"name": folder.name, **document})
    if info.unlabelled not in ("unknown", "absent"):
        raise DatasetError(f"{path}: unlabelled must be unknown or absent, not {info.unlabelled!r}")
    if info.protocol not in (None, *PROTOCOLS):
        raise DatasetError(f"{path}: protocol must be one of {', '.join(PROTOCOLS)}, not {info.protocol!r}")
    return info


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DatasetError(f"{path} is not JSON: {error}") from None
