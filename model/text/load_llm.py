from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from vidlex.model.text.encoder_decoder import MODEL_TYPES, FrozenEncoderDecoder
from vidlex.model.text.llm import FrozenLLM
from vidlex.model.weights.cache import WeightsError


def load_llm(folder: Path, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> FrozenLLM:
    """Any causal language model that ``FrozenLLM`` supports, or a T5; ``folder`` has the hub's layout.

    Raises WeightsError for another kind of model. bfloat16 is for GPUs; it is slower on a CPU.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # it would end up in the service's log
    config: Any = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    if config.is_encoder_decoder and config.model_type not in MODEL_TYPES:
        supported = f"causal language models and {' and '.join(MODEL_TYPES)}"
        raise WeightsError(f"{folder} is an encoder-decoder model ({config.model_type}); supported are {supported}")
    if not config.is_encoder_decoder and type(config) not in AutoModelForCausalLM._model_mapping:
        raise WeightsError(f"{folder} is not a causal language model ({config.model_type})")
    kind: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model = kind.from_pretrained(
        folder, dtype=dtype, use_safetensors=True, trust_remote_code=False, local_files_only=True
    )
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    wrapper = FrozenEncoderDecoder if config.is_encoder_decoder else FrozenLLM
    return wrapper(model.to(device), tokenizer, folder)
