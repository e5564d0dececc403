"""The spatial block for a convolutional tower, which has no transformer blocks to copy (beyond the paper)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEAD_WIDTH = 64
_MAX_ATTENTION_WIDTH = 256  # feature maps have 1000 to 3000 channels; attention of that width would outweigh the tower


def attention_width(width: int) -> int:
    """A multiple of ``HEAD_WIDTH`` where the tower is wide enough."""
    inner = min(width, _MAX_ATTENTION_WIDTH)
    return inner - inner % HEAD_WIDTH if inner > HEAD_WIDTH else inner


class NewBlock(nn.Module):
    """A pre-norm transformer block over the positions of one frame; the identity at initialisation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = attention_width(width)
        self.heads = max(1, inner // HEAD_WIDTH)
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * inner), nn.Linear(inner, width)
        self.up, self.down = nn.Linear(width, 2 * inner), nn.Linear(2 * inner, width)
        nn.init.normal_(self.qkv.weight, std=width**-0.5)
        nn.init.zeros_(self.qkv.bias)
        for last in (self.out, self.down):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, x: Tensor) -> Tensor:  # [n, N, width]
        n, num_tokens, width = x.shape
        y = self.norm_1(x)
        y = y + grid_positions(num_tokens, width, x.device).to(y.dtype)
        q, k, v = self.qkv(y).view(n, num_tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # [n, N, inner]
        x = x + self.out(y)
        out: Tensor = x + self.down(F.gelu(self.up(self.norm_2(x))))
        return out


def grid_positions(num_tokens: int, width: int, device: torch.device) -> Tensor:
    """[N, width] sines and cosines of row and column in a square grid, a quarter turn to N ** 0.5 / 4 turns."""
    side = math.isqrt(num_tokens)
    u = (torch.arange(side, device=device) + 0.5) / side
    turns = torch.logspace(math.log10(0.25), math.log10(max(0.5, side / 4)), math.ceil(width / 4), device=device)
    phase = 2 * math.pi * u[:, None] * turns  # [side, width / 4]
    waves = torch.cat((phase.sin(), phase.cos()), dim=1)
    rows = waves[:, None].expand(side, side, -1)
    return torch.cat((rows, rows.transpose(0, 1)), dim=2).flatten(0, 1)[:, :width]
