"""OUT: where it is, its format, and what lies next to it."""

from __future__ import annotations

import os
import posixpath
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from vidlex.service.bulk import storage
from vidlex.service.bulk.formats import SUFFIXES, Format
from vidlex.service.bulk.lists import path_of
from vidlex.service.bulk.remote import SCHEMES, is_remote, scheme_of


class OutputError(ValueError):
    """OUT cannot be used. The message says why, and what to do."""


@dataclass(frozen=True)
class Target:
    location: str  # an absolute path, or an address; without a slash at its end
    kind: Format

    @property
    def is_remote(self) -> bool:
        return is_remote(self.location)

    @property
    def name(self) -> str:
        return self.location.rpartition("/")[2]

    @property
    def parent(self) -> str:
        return self.location.rpartition("/")[0]

    @property
    def parts(self) -> str:
        """Folder of the parts of a run that is not finished."""
        return f"{self.parent}/.{self.name}.parts"

    @property
    def segments(self) -> str:
        """Of the table of segments: "tags.parquet" -> "tags.segments.parquet"."""
        name = Path(self.name)
        return f"{self.parent}/{name.stem}.segments{name.suffix}"

    def exists(self) -> bool:
        """Raises OutputError if something else is there."""
        if self.kind != "folder":
            return storage.exists(self.location)
        if not self.is_remote and Path(self.location).is_file():
            raise OutputError(f"{self.location} is a file, not a folder")
        names = [name for name in storage.storage_of(self.location).names() if not name.startswith((".", "_"))]
        others = [name for name in names if not name.startswith("part-")]
        if others:
            raise OutputError(f"{self.location} is a folder of other files, such as {others[0]}")
        return bool(names)


def target_of(text: str) -> Target:
    """Raises OutputError."""
    scheme = scheme_of(text)
    if scheme == "file":
        text = path_of(text)
    elif scheme in ("http", "https") or (scheme is not None and scheme not in SCHEMES):
        raise OutputError(f"{text}: {scheme}:// cannot be written")
    kind = _kind_of(text)
    if not is_remote(text):
        if kind == "lance" and find_spec("lance") is None:
            raise OutputError(f"{text} needs pylance: pip install pylance")
        return Target(os.path.normpath(Path(text).absolute()), kind)
    if kind == "lance":
        raise OutputError(f"{text}: Lance is written to this machine only")
    location = text.rstrip("/")
    if "/" not in location.partition("://")[2]:
        raise OutputError(f"{text}: name a file or a folder in the bucket")
    return Target(location, kind)


def _kind_of(text: str) -> Format:
    if text.endswith("/"):
        return "folder"
    suffix = posixpath.splitext(text)[1].lower()
    if not is_remote(text) and Path(text).is_dir() and suffix != ".lance":
        return "folder"
    if suffix not in SUFFIXES:
        known = ", ".join(suffix for suffix in SUFFIXES if suffix)
        raise OutputError(f"{text}: OUT ends in {known}, or in / for a folder")
    return SUFFIXES[suffix]
