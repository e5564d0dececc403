"""The cache folder, and results in it that several processes want but one makes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from filelock import FileLock

LOCK_TIMEOUT_SECONDS = 1800

Progress = Callable[[str], None]


class WeightsError(RuntimeError):
    """The message names the remedy."""


def cache_dir() -> Path:
    configured = os.environ.get("VIDLEX_CACHE_DIR")
    if configured:
        return Path(configured).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache") / "vidlex"


def make_once(folder: Path, make: Callable[[Path, Path], None], *, source: Mapping[str, str]) -> Path:
    """``folder``, which ``make(scratch, target)`` fills unless it is complete.

    ``scratch`` is removed afterwards, ``target`` becomes ``folder`` with a source.json of ``source`` and the files'
    sizes. Of several processes that start together one makes it; the others wait.
    """
    if is_complete(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{folder.name}.lock", timeout=LOCK_TIMEOUT_SECONDS):
        if is_complete(folder):
            return folder
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder.parent) as work:
            scratch, target = Path(work) / "scratch", Path(work) / "target"
            scratch.mkdir()
            target.mkdir()
            make(scratch, target)
            sizes = {path.name: path.stat().st_size for path in sorted(target.iterdir())}
            (target / "source.json").write_text(json.dumps({**source, "files": sizes}, indent=2) + "\n")
            _open_to_readers(target)
            if folder.exists():  # incomplete, see above
                shutil.rmtree(folder)
            target.rename(folder)
    return folder


def _open_to_readers(folder: Path) -> None:
    """Another user may serve from this folder: its files are public, whatever the umask of this process is."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(path.stat().st_mode | (0o555 if path.is_dir() else 0o444))


def is_complete(folder: Path) -> bool:
    # the folder is renamed into place once it is complete; the sizes detect later damage
    try:
        sizes: dict[str, int] = json.loads((folder / "source.json").read_text())["files"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError):
        return False


def check_sha256(path: Path, expected: str) -> None:
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != expected:
        raise WeightsError(f"{path} is not the expected file: its sha256 is {actual}, not {expected}. Fetch it again.")


def check_model_folder(folder: Path) -> Path:
    """``folder``, if it has a configuration and safetensors. Raises WeightsError."""
    if not (folder / "config.json").is_file():
        raise WeightsError(f"{folder} has no config.json: it is not a model folder in the hub's layout")
    if not any(folder.glob("*.safetensors")):
        raise WeightsError(f"{folder} has no .safetensors file, and pickled weights are not loaded: convert them first")
    return folder
