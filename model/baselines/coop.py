"""CoOp (Zhou et al., IJCV 2022): learned context vectors before the class name, both towers frozen."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidlex.model.baselines.base import ClipLabelEncoder
from vidlex.model.text.clip_text import ClipText

CONTEXT_STD = 0.02


def start_context(clip_text: ClipText, num_context: int, words: str, generator: torch.Generator) -> Tensor:
    """[n, W]: the embeddings of ``words`` (one per token), or ``num_context`` random vectors without words."""
    if words:
        return clip_text.embed_words(words).detach().clone()
    return torch.randn(num_context, clip_text.width, generator=generator) * CONTEXT_STD


class CoOpLabelEncoder(ClipLabelEncoder):
    """``[SOS, context, name, ".", EOT]``, one context for all classes: class-specific ones know no unseen label."""

    def __init__(self, clip_text: ClipText, *, num_context: int = 16, words: str = "", seed: int = 0) -> None:
        super().__init__(clip_text)
        self.context = nn.Parameter(
            start_context(clip_text, num_context, words, torch.Generator().manual_seed(seed)).to(clip_text.device)
        )

    def check_label(self, name: str) -> None:
        self.clip_text.check(f"{name}.", len(self.context))

    def texts(self, name: str) -> list[str]:
        return [f"[context] {name}."]

    def forward(self, names: Sequence[str]) -> Tensor:
        """[V, D] unit label features, with gradient to the context."""
        return encode_prompted(self.clip_text, names, self.context)


def encode_prompted(clip_text: ClipText, names: Sequence[str], context: Tensor) -> Tensor:
    """[V, D] unit features of ``[context, name, "."]``, ``context`` [n, W]."""
    if not len(names):
        return torch.zeros(0, clip_text.dim, device=clip_text.device)
    soft = context.expand(len(names), 1, *context.shape)
    features = clip_text.encode_with_soft([f"{name}." for name in names], soft)[:, 0]
    return F.normalize(features, dim=-1)
