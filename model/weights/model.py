"""Everything that a model needs and that Vidlex does not contain."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from vidlex.model.specs import (
    ALIASES,
    checkpoint_folder,
    is_checkpoint_spec,
    is_open_clip_spec,
    is_transformers_spec,
    list_zoo,
    resolve_alias,
    transformers_folder,
)
from vidlex.model.weights.cache import Progress, WeightsError
from vidlex.model.weights.hub import fetch_repository
from vidlex.model.weights.llm import fetch_llm
from vidlex.model.weights.tower import fetch_tower

# of repositories in open_clip's layout; other files there are the same weights in other formats
OPEN_CLIP_FILES = ("open_clip_*.safetensors", "open_clip_config.json")
TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "config.json", "*.model", "vocab*", "merges.txt")

_log = logging.getLogger(__name__)


def fetch_model(spec: str, progress: Progress | None = None, *, show_bar: bool = False) -> list[Path]:
    """The local folders of what ``spec`` loads: language model, image tower, or a repository of the hub.

    Empty for ``dummy`` and for local folders that need nothing else. What is cached is not fetched again, also where
    the hub cannot be reached. Raises ModelNotFound or WeightsError.
    """
    report = progress or _log.info
    try:
        if is_open_clip_spec(spec):
            return _open_clip(resolve_alias(spec), report, show_bar)
        if is_transformers_spec(spec):
            return _transformers(resolve_alias(spec).partition(":")[2], report, show_bar)
    except WeightsError as error:
        raise WeightsError(_remedy(spec, error)) from error
    return _checkpoint(checkpoint_folder(spec), report) if is_checkpoint_spec(spec) else []


def is_cached(spec: str) -> bool | None:
    """Whether an open_clip model's weights are on this machine; None if that is unknown."""
    from huggingface_hub import try_to_load_from_cache

    repository, file = _repository(resolve_alias(spec).partition(":")[2]) if is_open_clip_spec(spec) else ("", "")
    if not repository:
        return None
    files = [file] if file else ["open_clip_model.safetensors", "open_clip_pytorch_model.safetensors"]
    return any(isinstance(try_to_load_from_cache(repository, name), str) for name in files)


def _open_clip(spec: str, report: Progress, show_bar: bool) -> list[Path]:
    kind, _, name = spec.partition(":")
    repository, file = _repository(name)
    wanted: dict[str, tuple[str, ...]] = {}
    if repository:
        wanted[repository] = (file,) if file else OPEN_CLIP_FILES
        tokenizer = repository if name.startswith("hf-hub:") else _text_config(name).get("hf_tokenizer_name")
        if tokenizer:
            wanted[tokenizer] = (*wanted.get(tokenizer, ()), *TOKENIZER_FILES)
    folders = []
    for each, patterns in wanted.items():
        report(f"fetching {each} from the model hub")
        folders.append(fetch_repository(each, patterns=patterns, show_bar=show_bar))
    if kind == "open_clip+llm":
        folders.append(fetch_llm(progress=report))
    return folders


def _repository(name: str) -> tuple[str, str]:
    """Repository and file of the weights; the file is empty if open_clip chooses it, both are if there is none."""
    if name.startswith("hf-hub:"):
        return name.removeprefix("hf-hub:"), ""
    if name.startswith("local-dir:"):
        return "", ""
    import open_clip

    architecture, _, tag = name.partition("/")
    repository, _, file = str((open_clip.get_pretrained_cfg(architecture, tag) or {}).get("hf_hub", "")).rpartition("/")
    return repository, file


def _text_config(name: str) -> dict[str, Any]:
    import open_clip

    config = open_clip.get_model_config(name.partition("/")[0]) or {}
    return dict(config.get("text_cfg", {}))


def _transformers(name: str, report: Progress, show_bar: bool) -> list[Path]:
    if transformers_folder(name) is not None:
        return []
    repository, _, revision = name.partition("@")
    report(f"fetching {repository} from the model hub")
    return [fetch_repository(repository, revision=revision or None, show_bar=show_bar)]


def _checkpoint(folder: Path, report: Progress) -> list[Path]:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    method = config.get("method", "ours")
    if method == "kernel":
        return [fetch_llm(config["kernel"]["llm"], report), fetch_tower(config["clip"]["source"], report)]
    if config.get("label", {}).get("llm") and method in ("ours", "fixed_llm"):
        return [fetch_llm(config["label"]["llm"], report)]
    return []


def _remedy(spec: str, error: WeightsError) -> str:
    if spec not in ALIASES:
        return str(error)
    return (
        f"{error} {spec!r} is {ALIASES[spec]}: copy its repository from a machine that reaches the hub and give "
        f"open_clip:local-dir:/path/to/folder, or use a model that needs no hub ({', '.join(list_zoo())})."
    )
