"""Carries the LLM's states into the space of CLIP's token embeddings."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PromptingTransformer(nn.Module):
    """A small pre-norm transformer over the L tokens of one soft attribute: [n, L, d] -> [n, L, W].

    Its output has the size of CLIP's own token embeddings (``token_norm``, their mean length) from the first step:
    soft tokens of another size would drown the words and positions beside them, or be drowned.
    """

    def __init__(
        self, in_width: int, out_width: int, num_tokens: int, *, width: int, layers: int, heads: int, token_norm: float
    ) -> None:
        super().__init__()
        self.norm_in = nn.LayerNorm(in_width)
        self.proj_in = nn.Linear(in_width, width)
        self.position = nn.Parameter(torch.randn(num_tokens, width) * 0.02)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(layers)
        )
        self.norm_out = nn.LayerNorm(width)
        self.proj_out = nn.Linear(width, out_width)
        self.scale = nn.LayerNorm(out_width)
        """Its weight is the learned gain: at the start every output token has the length ``token_norm``."""
        nn.init.constant_(self.scale.weight, token_norm / out_width**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """[n, L, d] -> [n, L, W]."""
        x = self.proj_in(self.norm_in(x)) + self.position
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.scale(self.proj_out(self.norm_out(x)))
        return out
