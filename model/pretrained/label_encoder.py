from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidlex.model.classifier import LabelDescription, LabelTextError
from vidlex.model.pretrained.interface import VideoTextModel

MAX_TEXTS = 512  # per pass
_LENGTH_STEP = 16  # texts of a model without a fixed text length are padded to a multiple, so that few lengths occur


class PretrainedLabelEncoder(nn.Module):
    """Class names in prompt templates, through the text encoder of a transformers model."""

    def __init__(self, model: VideoTextModel, tokenizer: Any, templates: Sequence[str]) -> None:
        super().__init__()
        self.model, self.templates = model, tuple(templates)
        self._tokenizer = tokenizer
        self.tokenizer_digest = _digest(tokenizer)  # before its first use, which may set padding and truncation
        self.context_length = min(model.max_text_tokens, int(tokenizer.model_max_length))
        self._reserved = _reserved_ids(tokenizer)

    def texts(self, name: str) -> list[str]:
        return [template.replace("{}", name) for template in self.templates]

    def check_label(self, name: str) -> None:
        """Raises LabelTextError. Tokenises only."""
        words = self._tokenizer(name, add_special_tokens=False, verbose=False)["input_ids"]
        if not words:
            raise LabelTextError("the label is empty after the tokenizer's text cleaning")
        if self._reserved.intersection(words):
            raise LabelTextError("the label contains a token that is reserved by the model's tokenizer")
        num_tokens = max(map(len, self._tokenizer(self.texts(name), verbose=False)["input_ids"]))
        if num_tokens > self.context_length:
            raise LabelTextError(
                f"the label is too long: with its prompt it has {num_tokens} tokens, at most {self.context_length} fit"
            )

    @torch.no_grad()
    def encode_labels(self, names: Sequence[str]) -> Tensor:  # [V, D] float32, of length at most 1
        for name in names:
            self.check_label(name)
        texts = [text for name in names for text in self.texts(name)]
        parts = [self._encode(texts[start : start + MAX_TEXTS]).cpu() for start in range(0, len(texts), MAX_TEXTS)]
        if not parts:
            return torch.zeros(0, self._encode(["a"]).shape[1])
        features = torch.cat(parts).view(len(names), len(self.templates), -1)  # [V, templates, D]
        if not self.model.has_unit_features:
            return features.mean(dim=1)
        return F.normalize(F.normalize(features, dim=-1).mean(dim=1), dim=-1)

    def _encode(self, texts: list[str]) -> Tensor:  # of V texts that fit: [V, D] float32
        rows = self._tokenizer(texts, verbose=False)
        length = self.context_length
        if not self.model.pads_texts:
            longest = max(map(len, rows["input_ids"]))
            length = min(length, -(-longest // _LENGTH_STEP) * _LENGTH_STEP)
        padded = self._tokenizer.pad(rows, padding="max_length", max_length=length, return_tensors="pt")
        device = next(self.model.parameters()).device
        inputs = {name: padded[name].to(device) for name in ("input_ids", "attention_mask") if name in padded}
        return self.model.encode_tokens(inputs).float()

    def describe_labels(self, names: Sequence[str]) -> list[LabelDescription]:
        for name in names:
            self.check_label(name)
        return [LabelDescription(tuple(self.texts(name))) for name in names]


def _reserved_ids(tokenizer: Any) -> set[int]:  # without the id of unknown characters, unless it has another role
    special = set(tokenizer.all_special_ids)
    special |= {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    roles = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.cls_token_id}
    return special - ({tokenizer.unk_token_id} - roles)


def _digest(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(content.encode()).hexdigest()[:16]
