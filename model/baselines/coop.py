"""CoOp (Zhou et al., IJCV 2022): learned context vectors before the class name, with both towers frozen.

One context serves all classes: a class-specific context does not exist for unseen labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidlex.model.baselines.base import ClipLabelEncoder
from vidlex.model.text.clip_text import ClipText

CONTEXT_STD = 0.02


def initial_context(clip_text: ClipText, num_context: int, words: str, generator: torch.Generator) -> Tensor:
    # [M, width]
    if words:
        return clip_text.embed_words(words).detach().clone()
    return torch.randn(num_context, clip_text.width, generator=generator) * CONTEXT_STD


class CoOpLabelEncoder(ClipLabelEncoder):
    def __init__(self, clip_text: ClipText, *, num_context: int = 16, words: str = "", seed: int = 0) -> None:
        super().__init__(clip_text)
        self.context = nn.Parameter(
            initial_context(clip_text, num_context, words, torch.Generator().manual_seed(seed)).to(clip_text.device)
        )

    def check_label(self, name: str) -> None:
        self.clip_text.check(f"{name}.", len(self.context))

    def texts(self, name: str) -> list[str]:
        return [f"[context] {name}."]

    def forward(self, names: Sequence[str]) -> Tensor:
        return encode_prompted(self.clip_text, names, self.context)


def encode_prompted(clip_text: ClipText, names: Sequence[str], context: Tensor) -> Tensor:
    """[V, D] unit features of ``[context, name, "."]`` for a ``context`` [M, width]."""
    if not len(names):
        return torch.zeros(0, clip_text.dim, device=clip_text.device)
    soft = context.expand(len(names), 1, *context.shape)  # [V, 1, M, width]
    features = clip_text.encode_with_soft([f"{name}." for name in names], soft)[:, 0]
    return F.normalize(features, dim=-1)
