"""Tiny models with random weights: an LLM folder in the hub's layout, and CLIPs of several kinds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.tokenizer import HFTokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from vidlex.model.text.clip_text import ClipText
from vidlex.model.text.llm import FrozenLLM
from vidlex.model.text.load_llm import load_llm

LLM_WIDTH = 32
MAX_POSITIONS = 288


def write_byte_tokenizer(folder: Path, *, end_with_eos: bool = False) -> int:
    """One token per byte, ``<eos>`` and ``<ctl>``. Returns the vocabulary size.

    ``end_with_eos`` ends each text with ``<eos>`` and uses it for padding, like SigLIP's tokenizer.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<unk>", "<eos>", "<ctl>", *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    if end_with_eos:
        backend.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        eos_token="<eos>",
        pad_token="<eos>",
        additional_special_tokens=["<ctl>"],
    )
    tokenizer.save_pretrained(folder)
    return len(vocabulary)


def write_llm(folder: Path, seed: int = 0) -> Path:
    """A two-layer Llama with grouped queries."""
    vocab_size = write_byte_tokenizer(folder)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=LLM_WIDTH,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        initializer_range=0.3,  # large, so that different inputs decode to different tokens
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def tiny_llm(folder: Path) -> FrozenLLM:
    return load_llm(write_llm(folder))


VISION = {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
EMBED_DIM = 12

CLIP_KINDS = ("clip", "mobileclip_causal", "mobileclip_bidirectional", "siglip")


def tiny_clip(kind: str = "clip", folder: Path | None = None, seed: int = 0) -> tuple[Any, Any]:
    """A model of that kind as open_clip builds it, and its tokenizer. SigLIP needs a ``folder``."""
    tokenizer: Any = open_clip.SimpleTokenizer(context_length=77)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "clip":
            model = open_clip.CLIP(EMBED_DIM, VISION, TEXT)
        elif kind == "siglip":
            assert folder is not None
            vocab_size = write_byte_tokenizer(folder, end_with_eos=True)
            tokenizer = HFTokenizer(str(folder), context_length=40, clean="canonicalize")
            text = TEXT | {"context_length": 40, "vocab_size": vocab_size, "no_causal_mask": True, "proj_bias": True}
            text |= {"pool_type": "last", "norm_kwargs": {"eps": 1e-6}}
            model = open_clip.CustomTextCLIP(EMBED_DIM, VISION, text, init_logit_bias=-10.0)
        else:
            model = open_clip.CustomTextCLIP(
                EMBED_DIM, VISION, TEXT | {"no_causal_mask": kind.endswith("bidirectional")}
            )
        # large enough for tests to detect a wrong position or token
        text_tower: Any = model if kind == "clip" else model.text
        torch.nn.init.normal_(text_tower.positional_embedding, std=0.5)
        torch.nn.init.normal_(text_tower.token_embedding.weight, std=0.5)
        if kind == "siglip":
            torch.nn.init.normal_(text_tower.text_projection.bias)
    return model.eval(), tokenizer


def tiny_clip_text(kind: str = "clip", folder: Path | None = None) -> ClipText:
    return ClipText(*tiny_clip(kind, folder))
