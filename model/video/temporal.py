"""Blocks of the temporal branch, parallel to the last blocks of a frozen CLIP image tower (paper section 3.2).

Each branch block attends over time and then within each frame:

    x [B, T, 1 + P, D]  --temporal attention over T, per token-->  --copied CLIP block over 1 + P, per frame-->

The first of the 1 + P tokens is the temporal token TMP, one per frame, initialised with the frame's CLS token at the
depth where the branch starts. With its initial weights the branch returns CLIP's CLS features: the output projection of
the temporal attention is zero, and the spatial attention and MLP are copies of the parallel CLIP block's.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

NUM_TIME_POSITIONS = 32


class TemporalAttention(nn.Module):
    """Residual multi-head self-attention over T for every token position; the identity at initialisation."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.time_embedding = nn.Parameter(_sinusoids(NUM_TIME_POSITIONS, width))
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        nn.init.normal_(self.qkv.weight, std=width**-0.5)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        b, t, n, d = x.shape  # [B, T, 1 + P, D]
        y = self.norm(x) + interpolate_time_embedding(self.time_embedding, t)[:, None, :].to(x.dtype)
        qkv = self.qkv(y).view(b, t, n, 3, self.heads, d // self.heads)
        q, k, v = qkv.permute(3, 0, 2, 4, 1, 5)  # each [B, 1 + P, heads, T, D / heads]
        y = F.scaled_dot_product_attention(q, k, v)
        y = y.permute(0, 3, 1, 2, 4).reshape(b, t, n, d)  # [B, T, 1 + P, D]
        out: Tensor = x + self.out(y)
        return out


class SpatialBlock(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block: Any = copy.deepcopy(block)

    def forward(self, x: Tensor, first_only: bool) -> Tensor:  # [n, 1 + P or 1, D]
        if not first_only:
            all_tokens: Tensor = self.block(x)
            return all_tokens
        block = self.block
        y = block.ln_1(x)
        first = x[:, :1] + block.ls_1(block.attn(y[:, :1], y, y, need_weights=False)[0])
        out: Tensor = first + block.ls_2(block.mlp(block.ln_2(first)))
        return out


class BranchBlock(nn.Module):
    def __init__(self, block: nn.Module, width: int, heads: int) -> None:
        super().__init__()
        self.temporal = TemporalAttention(width, heads)
        self.spatial = SpatialBlock(block)

    def forward(self, x: Tensor, clip_block: nn.Module, alpha: float | Tensor, first_only: bool) -> Tensor:
        """[B, T, 1 + P, D] -> [B, T, 1 + P or 1, D].

        The spatial weights are ``alpha * theta_ft + (1 - alpha) * theta_frozen`` (the paper's regularisation), with
        ``theta_frozen`` from ``clip_block``. The gradient of ``theta_ft`` is scaled by ``alpha``.
        """
        x = self.temporal(x)
        b, t, n, d = x.shape
        flat = x.reshape(b * t, n, d)  # [B * T, 1 + P, D]
        if isinstance(alpha, float) and alpha == 1.0:
            flat = self.spatial(flat, first_only)
        else:
            flat = functional_call(self.spatial, interpolate(self.spatial, clip_block, alpha), (flat, first_only))
        out: Tensor = flat.view(b, t, flat.shape[1], d)
        return out

    @torch.no_grad()
    def fold(self, clip_block: nn.Module, alpha: float) -> None:
        interpolated = interpolate(self.spatial, clip_block, alpha)
        for name, parameter in self.spatial.named_parameters():
            parameter.copy_(interpolated[name])


def interpolate(spatial: SpatialBlock, clip_block: nn.Module, alpha: float | Tensor) -> dict[str, Tensor]:
    clip_weights = dict(clip_block.named_parameters())
    return {
        name: alpha * own + (1 - alpha) * clip_weights[name.removeprefix("block.")].detach()
        for name, own in spatial.named_parameters()
    }


def interpolate_time_embedding(table: Tensor, num_frames: int) -> Tensor:
    """[n, D] -> [T, D]: the embedding at the centres of T equal segments of the video.

    Entry ``i`` is the value at the centre of the ``i``-th of n equal segments, with linear interpolation between them.
    """
    position = (torch.arange(num_frames, device=table.device) + 0.5) / num_frames * len(table) - 0.5
    position = position.clamp(0, len(table) - 1)
    low = position.floor().long()
    high = (low + 1).clamp_max(len(table) - 1)
    fraction = (position - low)[:, None].to(table.dtype)
    return table[low] * (1 - fraction) + table[high] * fraction


def _sinusoids(positions: int, width: int) -> Tensor:
    """[positions, width] sines and cosines of the time in 0..1, a quarter to eight turns, root mean square 0.7.

    With a value much smaller than layer-normalised tokens (root mean square 1), temporal order is learned very slowly.
    """
    u = (torch.arange(positions) + 0.5) / positions
    turns = torch.logspace(math.log10(0.25), math.log10(8.0), width // 2)
    phase = 2 * math.pi * u[:, None] * turns
    return torch.cat((phase.sin(), phase.cos()), dim=1)[:, :width]
