"""Video files from untrusted clients, with the set of allowed answers to each."""

from __future__ import annotations

from pathlib import Path

from fuzz.answers import OK, HostileFile
from fuzz.broken_files import broken_files, forged_files
from fuzz.format_files import valid_formats
from fuzz.format_twins import format_twins
from fuzz.reference_files import reference_files
from fuzz.unsupported_files import not_videos, wrong_codecs
from fuzz.valid_files import REFERENCE, valid_files


def build(folder: Path, target_url: str, target_path: Path) -> list[HostileFile]:
    """All files; ``folder`` is scratch space. Attacks refer to ``target_url`` and ``target_path``."""
    found = []
    for name, data in valid_files(folder):
        found.append(HostileFile(name, data, frozenset([OK])))
    base = (folder / REFERENCE).read_bytes()
    formats = valid_formats(folder)
    for name, data in formats.items():
        found.append(HostileFile(name, data, frozenset([OK])))
    for name, data, *allowed in (
        *not_videos(target_url, target_path),
        *wrong_codecs(folder),
        *forged_files(folder),
        *broken_files(base),
        *reference_files(folder, base, target_url, target_path),
        *format_twins(formats),
    ):
        found.append(HostileFile(name, data, frozenset(allowed)))
    return found
