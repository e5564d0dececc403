"""Model specs (VIDLEX_MODEL): a zoo name, a checkpoint folder, an open_clip or transformers name, clip, or dummy.

Loads no weights."""

from __future__ import annotations

import difflib
import json
import re
from pathlib import Path

DEFAULT_MODEL = "photo-small"  # of VIDLEX_MODEL

# Recommended models of the model hub. model/README.md has the reasons.
ALIASES = {"clip": "open_clip:ViT-B-32-SigLIP2-256/webli"}

_DUMMY = re.compile(r"dummy(:[1-9][0-9]?)?")
_LFS_POINTER = b"version https://git-lfs"
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")  # of the model hub, with a revision

# ``model_type`` of config.json; ``vidlex.model.pretrained.loading`` has the class of each
TRANSFORMERS_TYPES = ("clip", "pe_audio_video", "pe_video", "siglip", "siglip2", "videoprism", "xclip")


class ModelNotFound(ValueError):
    """The message lists valid specs."""


def zoo_dir() -> Path:
    return Path(__file__).resolve().parent / "zoo"


def list_zoo() -> list[str]:
    zoo = zoo_dir()
    if not zoo.is_dir():
        return []
    return sorted(p.name for p in zoo.iterdir() if (p / "config.json").is_file())


def resolve_alias(spec: str) -> str:
    return ALIASES.get(spec, spec)


def is_checkpoint_spec(spec: str) -> bool:
    """False for dummy, open_clip and transformers models."""
    return not (_DUMMY.fullmatch(spec) or is_open_clip_spec(spec) or is_transformers_spec(spec))


def is_open_clip_spec(spec: str) -> bool:
    return resolve_alias(spec).startswith(("open_clip:", "open_clip+"))


def is_transformers_spec(spec: str) -> bool:
    return resolve_alias(spec).startswith(("transformers:", "transformers+"))


def checkpoint_folder(spec: str) -> Path:
    """The folder of a zoo name or path. Raises ModelNotFound if it has no config.json."""
    zoo = list_zoo()
    folder = zoo_dir() / spec if spec in zoo else Path(spec).expanduser()
    if (folder / "config.json").is_file():
        return folder
    if folder.is_dir():
        raise ModelNotFound(f"{folder} is not a Vidlex checkpoint: it has no config.json")
    close = difflib.get_close_matches(spec, [*zoo, *ALIASES, "dummy"], n=1)
    hint = f"did you mean {close[0]!r}? Otherwise " if close else ""
    raise ModelNotFound(
        f"no model {spec!r}: {hint}give a zoo name ({', '.join(zoo) or 'none shipped'}), a checkpoint folder, "
        f"{', '.join(ALIASES)} (downloaded), open_clip:NAME/PRETRAINED, open_clip:local-dir:/path, "
        "transformers:ORG/NAME, transformers:/path, or dummy"
    )


def check_spec(spec: str) -> None:
    """Raises ModelNotFound if it is certain, from the names and beginnings of files, that loading fails."""
    if is_transformers_spec(spec):
        transformers_folder(resolve_alias(spec).partition(":")[2])
    if not is_checkpoint_spec(spec):
        return
    folder = checkpoint_folder(spec)
    problem = _config_problem(folder / "config.json") or _weights_problem(folder / "model.safetensors")
    if problem:
        raise ModelNotFound(f"{folder} is not a Vidlex checkpoint: {problem}")


def transformers_folder(name: str) -> Path | None:
    """None for ``ORG/NAME`` on the model hub. Raises ModelNotFound for a folder that cannot be loaded."""
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        check_transformers_folder(folder)
        return folder
    if _REPOSITORY.fullmatch(name):
        return None
    raise ModelNotFound(f"{name!r} is neither a folder nor ORG/NAME or ORG/NAME@REVISION on the model hub")


def check_transformers_folder(folder: Path, *, with_weights: bool = True) -> None:
    """Raises ModelNotFound if its configuration or weights, in the hub's layout, are not supported."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelNotFound(f"{folder} has no config.json: it is not a model folder in the hub's layout") from None
    except (OSError, ValueError) as error:
        raise ModelNotFound(f"{folder}/config.json cannot be read ({error})") from None
    model_type = config.get("model_type") if isinstance(config, dict) else None
    if model_type not in TRANSFORMERS_TYPES:
        supported = ", ".join(TRANSFORMERS_TYPES)
        raise ModelNotFound(f"{folder} is a model of the type {model_type!r}, which is not one of: {supported}")
    if not with_weights:
        return
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelNotFound(
            f"{folder} has no .safetensors file, and pickled weights (.bin) are not loaded: convert them first"
        )
    if problem := next(filter(None, map(_weights_problem, files)), None):
        raise ModelNotFound(f"{folder}: {problem}")


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
