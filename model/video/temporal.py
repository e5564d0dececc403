"""The temporal branch: blocks that run beside the last blocks of a frozen CLIP image tower (paper section 3.2).

Each branch block looks along time first and then within each frame:

    x [B, T, 1 + P, D]  --temporal attention over T, per token-->  --CLIP's own block over 1 + P, per frame-->

The first of the 1 + P tokens is the temporal token TMP, one copy per frame that starts as the frame's CLS token
at the depth where the branch begins. The temporal attention is new, with its output projection zero at the start;
the spatial attention and MLP are copied from the CLIP block beside it. So an untrained branch gives exactly
CLIP's own CLS features, and training departs from there.
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
"""Entries of the time embedding over the whole span; other frame counts read between them."""


class TemporalAttention(nn.Module):
    """Multi-head self-attention over T for every token position, residual, zero at the start."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.time_embedding = nn.Parameter(_waves(NUM_TIME_POSITIONS, width))
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        nn.init.normal_(self.qkv.weight, std=width**-0.5)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, N, D] -> same shape."""
        b, t, n, d = x.shape
        y = self.norm(x) + time_rows(self.time_embedding, t)[:, None, :].to(x.dtype)  # [B, T, N, D]
        qkv = self.qkv(y).view(b, t, n, 3, self.heads, d // self.heads)
        q, k, v = qkv.permute(3, 0, 2, 4, 1, 5)  # each [B, N, heads, T, D / heads]
        y = F.scaled_dot_product_attention(q, k, v)
        y = y.permute(0, 3, 1, 2, 4).reshape(b, t, n, d)
        out: Tensor = x + self.out(y)
        return out


class SpatialBlock(nn.Module):
    """One block of CLIP's image tower, copied; able to compute the first token's output alone."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block: Any = copy.deepcopy(block)

    def forward(self, x: Tensor, first_only: bool) -> Tensor:
        """[n, N, D] -> [n, N, D], or [n, 1, D] with ``first_only``: the same numbers without the other tokens' work."""
        if not first_only:
            whole: Tensor = self.block(x)
            return whole
        block = self.block
        y = block.ln_1(x)
        first = x[:, :1] + block.ls_1(block.attn(y[:, :1], y, y, need_weights=False)[0])
        out: Tensor = first + block.ls_2(block.mlp(block.ln_2(first)))
        return out


class BranchBlock(nn.Module):
    """Temporal attention, then a copy of one CLIP block whose weights can be pulled towards CLIP's."""

    def __init__(self, block: nn.Module, width: int, heads: int) -> None:
        super().__init__()
        self.temporal = TemporalAttention(width, heads)
        self.spatial = SpatialBlock(block)

    def forward(self, x: Tensor, frozen: nn.Module, alpha: float | Tensor, first_only: bool) -> Tensor:
        """[B, T, N, D] -> [B, T, N or 1, D].

        The spatial weights used are ``alpha * theta_ft + (1 - alpha) * theta_frozen`` (the paper's regularisation);
        ``frozen`` is CLIP's own block. The gradient that reaches ``theta_ft`` is scaled by ``alpha``.
        """
        x = self.temporal(x)
        b, t, n, d = x.shape
        flat = x.reshape(b * t, n, d)
        if isinstance(alpha, float) and alpha == 1.0:
            flat = self.spatial(flat, first_only)
        else:
            flat = functional_call(self.spatial, interpolate(self.spatial, frozen, alpha), (flat, first_only))
        out: Tensor = flat.view(b, t, flat.shape[1], d)
        return out

    @torch.no_grad()
    def fold(self, frozen: nn.Module, alpha: float) -> None:
        """Write the interpolated weights into the block, so that serving needs no frozen copy."""
        mixed = interpolate(self.spatial, frozen, alpha)
        for name, parameter in self.spatial.named_parameters():
            parameter.copy_(mixed[name])


def interpolate(spatial: SpatialBlock, frozen: nn.Module, alpha: float | Tensor) -> dict[str, Tensor]:
    """Weights of ``spatial`` mixed with those of the CLIP block ``frozen``, by parameter name."""
    theirs = dict(frozen.named_parameters())
    return {
        name: alpha * own + (1 - alpha) * theirs[name.removeprefix("block.")].detach()
        for name, own in spatial.named_parameters()
    }


def time_rows(table: Tensor, num_frames: int) -> Tensor:
    """[num_frames, D]: the time embedding read at the centres of ``num_frames`` equal segments.

    The table's entries stand at the centres of its own equal segments; between them the value is linear.
    """
    position = (torch.arange(num_frames, device=table.device) + 0.5) / num_frames * len(table) - 0.5
    position = position.clamp(0, len(table) - 1)
    low = position.floor().long()
    high = (low + 1).clamp_max(len(table) - 1)
    part = (position - low)[:, None].to(table.dtype)
    return table[low] * (1 - part) + table[high] * part


def _waves(positions: int, width: int) -> Tensor:
    """[positions, width] sines and cosines of the time in 0..1, a quarter to eight turns, root mean square 0.7.

    Not negligible against layer-normalised tokens (root mean square 1), or order is learned very slowly.
    """
    u = (torch.arange(positions) + 0.5) / positions
    turns = torch.logspace(math.log10(0.25), math.log10(8.0), width // 2)
    phase = 2 * math.pi * u[:, None] * turns
    return torch.cat((phase.sin(), phase.cos()), dim=1)[:, :width]
