"""Blocks of the temporal branch, parallel to the last blocks of a frozen image tower (paper section 3.2).

Each branch block attends over time and then within each frame:

    x [B, T, N, D]  --temporal attention over T, per token-->  --copied block of the tower over N, per frame-->

For CLIP N is 1 + P, and the first token is the temporal token TMP, one per frame, initialised with the frame's CLS
token at the depth where the branch starts. With its initial weights the branch returns the tower's own features: the
output projection of the temporal attention is zero, and the spatial attention and MLP are copies of the parallel
block's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

NUM_TIME_POSITIONS = 32

RunBlock = Callable[[nn.Module, Tensor], Tensor]  # a spatial block and [n, N, D] -> [n, N, D], or the pooled tokens


class TemporalAttention(nn.Module):
    """Residual multi-head self-attention over T for every token position; the identity at initialisation."""

    def __init__(self, width: int, heads: int, attention_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.time_embedding = nn.Parameter(_sinusoids(NUM_TIME_POSITIONS, width))
        self.qkv = nn.Linear(width, 3 * attention_width)
        self.out = nn.Linear(attention_width, width)
        nn.init.normal_(self.qkv.weight, std=width**-0.5)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        b, t, n, _ = x.shape  # [B, T, N, D]
        y = self.norm(x) + interpolate_time_embedding(self.time_embedding, t)[:, None, :].to(x.dtype)
        qkv = self.qkv(y).view(b, t, n, 3, self.heads, -1)
        q, k, v = qkv.permute(3, 0, 2, 4, 1, 5)  # each [B, N, heads, T, attention width / heads]
        y = F.scaled_dot_product_attention(q, k, v)
        y = y.permute(0, 3, 1, 2, 4).reshape(b, t, n, -1)  # [B, T, N, attention width]
        out: Tensor = x + self.out(y)
        return out


class SpatialBlock(nn.Module):
    """A copy of one of the tower's blocks, or a new block for a tower that has none."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block: Any = block

    def forward(self, x: Tensor, run: RunBlock) -> Tensor:
        return run(self.block, x)


class BranchBlock(nn.Module):
    def __init__(self, temporal: TemporalAttention, spatial: nn.Module) -> None:
        super().__init__()
        self.temporal = temporal
        self.spatial = SpatialBlock(spatial)

    def forward(self, x: Tensor, run: RunBlock, frozen: nn.Module | None, alpha: float | Tensor) -> Tensor:
        """[B, T, N, D] -> [B, T, N or fewer, D].

        The spatial weights are ``alpha * theta_ft + (1 - alpha) * theta_frozen`` (the paper's regularisation), with
        ``theta_frozen`` from the tower's block ``frozen``. The gradient of ``theta_ft`` is scaled by ``alpha``. A new
        block (``frozen`` None) has no such regularisation.
        """
        x = self.temporal(x)
        b, t, n, d = x.shape
        flat = x.reshape(b * t, n, d)  # [B * T, N, D]
        if frozen is None or (isinstance(alpha, float) and alpha == 1.0):
            flat = self.spatial(flat, run)
        else:
            flat = functional_call(self.spatial, interpolate(self.spatial, frozen, alpha), (flat, run))
        out: Tensor = flat.view(b, t, flat.shape[1], d)
        return out

    @torch.no_grad()
    def fold(self, frozen: nn.Module, alpha: float) -> None:
        interpolated = interpolate(self.spatial, frozen, alpha)
        for name, parameter in self.spatial.named_parameters():
            parameter.copy_(interpolated[name])


def interpolate(spatial: SpatialBlock, frozen: nn.Module, alpha: float | Tensor) -> dict[str, Tensor]:
    frozen_weights = dict(frozen.named_parameters())
    return {
        name: alpha * own + (1 - alpha) * frozen_weights[name.removeprefix("block.")].detach()
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
