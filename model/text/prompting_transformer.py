from __future__ import annotations

import torch
from torch import Tensor, nn


class PromptingTransformer(nn.Module):
    """Maps the LLM's states to CLIP's token embeddings: a small pre-norm transformer over the L tokens of one soft
    attribute.

    At initialisation, output tokens have length ``token_norm``, the mean length of CLIP's token embeddings: shorter or
    longer soft tokens would be dominated by words and positions, or dominate them.
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
        nn.init.constant_(self.scale.weight, token_norm / out_width**0.5)

    def forward(self, x: Tensor) -> Tensor:  # [V * N * K, L, in_width -> out_width]
        x = self.proj_in(self.norm_in(x)) + self.position
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.scale(self.proj_out(self.norm_out(x)))
        return out
