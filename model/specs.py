"""Model specs (VIDLEX_MODEL): a zoo name, a checkpoint folder, an open_clip name or dummy. Loads no weights."""

from __future__ import annotations

import difflib
import json
import re
from pathlib import Path

_DUMMY = re.compile(r"dummy(:[1-9][0-9]?)?")
_LFS_POINTER = b"version https://git-lfs"


class ModelNotFound(ValueError):
    """The message lists valid specs."""


def zoo_dir() -> Path:
    return Path(__file__).resolve().parent / "zoo"


def list_zoo() -> list[str]:
    zoo = zoo_dir()
    if not zoo.is_dir():
        return []
    return sorted(p.name for p in zoo.iterdir() if (p / "config.json").is_file())


def is_checkpoint_spec(spec: str) -> bool:
    """False for dummy and open_clip models."""
    return not (_DUMMY.fullmatch(spec) or spec.startswith(("open_clip:", "open_clip+")))


def checkpoint_folder(spec: str) -> Path:
    """The folder of a zoo name or path. Raises ModelNotFound if it has no config.json."""
    zoo = list_zoo()
    folder = zoo_dir() / spec if spec in zoo else Path(spec).expanduser()
    if (folder / "config.json").is_file():
        return folder
    if folder.is_dir():
        raise ModelNotFound(f"{folder} is not a Vidlex checkpoint: it has no config.json")
    close = difflib.get_close_matches(spec, [*zoo, "dummy"], n=1)
    hint = f"did you mean {close[0]!r}? Otherwise " if close else ""
    raise ModelNotFound(
        f"no model {spec!r}: {hint}give a zoo name ({', '.join(zoo) or 'none shipped'}), a checkpoint folder, "
        "open_clip:NAME/PRETRAINED, open_clip:local-dir:/path, or dummy"
    )


def check_spec(spec: str) -> None:
    """Raises ModelNotFound if it is certain, from the names and beginnings of files, that loading fails."""
    if not is_checkpoint_spec(spec):
        return
    folder = checkpoint_folder(spec)
    problem = _config_problem(folder / "config.json") or _weights_problem(folder / "model.safetensors")
    if problem:
        raise ModelNotFound(f"{folder} is not a Vidlex checkpoint: {problem}")


def _config_problem(path: Path) -> str:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return f"config.json cannot be read ({getattr(error, 'strerror', None) or error})"
    return "" if isinstance(config, dict) and "format" in config else "its config.json belongs to another program"


def _weights_problem(path: Path) -> str:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(len(_LFS_POINTER))
    except FileNotFoundError:
        return f"it has no {path.name}"
    except OSError as error:
        return f"{path.name} cannot be read ({error.strerror})"
    if head == _LFS_POINTER:
        return f"{path.name} is a Git LFS pointer; download the file"
    # A safetensors file starts with the size of its header.
    is_complete = len(head) > 8 and int.from_bytes(head[:8], "little") <= size - 8
    return "" if is_complete else f"{path.name} is damaged ({size} bytes); download it again"
