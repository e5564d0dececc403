"""A branch that reads motion: camera work, transitions, and objects that move.

Every frame's feature map is compared with the next frame's, in the manner of an optical flow network: the correlations
of a cell with the cells of the next map give a displacement and its certainty. Convolutions and a linear map over the
whole picture turn these fields, and the change of the appearance, into one token per pair of neighbours, for temporal
attention. Frames that are far apart are compared in the same way, as they show a slow movement.

    maps [B, T, C, H, W] -> fields of P pairs [B, P, F, h, w] -> tokens [B, P, width] -> one logit per label [B, V]

h and w are half of H and W, rounded up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from vidlex.model.files import save_tensors
from vidlex.model.video.temporal import TemporalAttention

_UNSEEN = -1.0  # standardised logit of every label for a single frame, at most


@dataclass(frozen=True)
class MotionBranchConfig:
    num_labels: int
    channels: int = 120
    """Channels of the tower's feature map."""
    grid: int = 17
    """Cells along a side of the tower's feature map."""
    width: int = 192
    """Width of the tokens."""
    heads: int = 4
    """Heads of the temporal attention."""
    num_layers: int = 2
    """Layers of the temporal attention."""
    match_width: int = 48
    """Channels that are compared between frames."""
    look_width: int = 24
    """Channels of the appearance that is kept."""
    field_width: int = 96
    """Channels of the convolutions over the fields."""
    max_shift: int = 3
    """Cells of displacement whose correlations are kept as they are."""
    max_score: float = 4.0
    """Bound of a standardised logit."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(values: dict[str, Any]) -> MotionBranchConfig:
        return MotionBranchConfig(**values)


class MotionBranch(nn.Module):
    """The feature is one standardised logit per label: 0 is the mean over generic videos, 1 a standard deviation."""

    mean: Tensor
    std: Tensor
    logit_mean: Tensor
    logit_std: Tensor
    neutral: Tensor
    local_index: Tensor
    local_inside: Tensor
    cells: Tensor
    own_cells: Tensor

    def __init__(self, config: MotionBranchConfig) -> None:
        super().__init__()
        self.config = config
        c, w, n = config.channels, config.width, config.num_labels
        self.register_buffer("mean", torch.zeros(c))
        self.register_buffer("std", torch.ones(c))
        self.register_buffer("logit_mean", torch.zeros(n))
        self.register_buffer("logit_std", torch.ones(n))
        self.register_buffer("neutral", torch.zeros(n))  # feature of a label's share of generic videos
        self.match = nn.Linear(c, config.match_width)
        self.look = nn.Conv2d(c, config.look_width, 1)
        self.sharpness = nn.Parameter(torch.tensor(math.log(15.0)))
        f = config.field_width
        num_fields = (2 * config.max_shift + 1) ** 2 + 3 + 2 * config.look_width
        self.reduce = nn.Sequential(
            nn.Conv2d(num_fields, f, 1),
            nn.GroupNorm(8, f),
            nn.GELU(),
            nn.Conv2d(f, f, 3, stride=2, padding=1),
            nn.GroupNorm(8, f),
            nn.GELU(),
        )
        side = (config.grid + 3) // 4
        self.whole = nn.Linear(side * side * f, w)
        self.parts = nn.Linear(f, w)
        self.tone = nn.Linear(2 * c, w)
        nn.init.zeros_(self.tone.weight)
        self.length = nn.Linear(2, w)
        self.layers = nn.ModuleList(_TemporalLayer(w, config.heads) for _ in range(config.num_layers))
        self.distance = nn.Linear(1, w)
        self.distant = nn.Sequential(nn.LayerNorm(w), nn.Linear(w, w), nn.GELU())
        self.distant_out = nn.Linear(2 * w, w)
        nn.init.zeros_(self.distant_out.weight)
        self.head = nn.Sequential(nn.LayerNorm(2 * w), nn.Dropout(0.1), nn.Linear(2 * w, w))
        self.out = nn.Sequential(nn.GELU(), nn.Linear(w, n))
        index, inside = _local_cells(config.grid, config.max_shift)
        self.register_buffer("local_index", index, persistent=False)
        self.register_buffer("local_inside", inside, persistent=False)
        ticks = torch.arange(config.grid) / config.grid
        cells = torch.stack(torch.meshgrid(ticks, ticks, indexing="xy"), dim=-1)  # [H, W, 2]
        self.register_buffer("cells", cells.flatten(0, 1), persistent=False)
        self.register_buffer("own_cells", cells[::2, ::2].flatten(0, 1), persistent=False)

    def forward(self, maps: Tensor) -> Tensor:
        """[B, T, C, H, W] -> [B, V]."""
        if maps.shape[1] == 1:  # what is not seen is not claimed, or every short shot would match the likeliest labels
            return self.neutral.clamp_max(_UNSEEN).expand(len(maps), -1)
        scores = (self.logits(maps) - self.logit_mean) / self.logit_std
        return scores.clamp(-self.config.max_score, self.config.max_score)

    def logits(self, maps: Tensor) -> Tensor:
        """[B, T >= 2, C, H, W] -> [B, V]."""
        b, t = maps.shape[:2]
        maps = (maps - self.mean[:, None, None]) / self.std[:, None, None]
        pairs = [(i, i + 1) for i in range(t - 1)] + distant_pairs(t)
        x = self.reduce(self.fields(maps, pairs).flatten(0, 1))  # [B * P, field width, h', w']
        tokens = (self.whole(x.flatten(1)) + self.parts(x.amax((2, 3)))).view(b, len(pairs), -1)
        near, far = tokens[:, : t - 1], tokens[:, t - 1 :]
        near = near + self.tone(_tones(maps)) + self.length(maps.new_tensor((math.log(t / 8), 8 / t - 1)))
        for layer in self.layers:
            near = layer(near)
        hidden = self.head(torch.cat((near.mean(1), near.amax(1)), dim=1))
        if far.shape[1]:
            shares = maps.new_tensor([[(j - i) / (t - 1)] for i, j in pairs[t - 1 :]])
            far = self.distant(far + self.distance(shares))
            hidden = hidden + self.distant_out(torch.cat((far.mean(1), far.amax(1)), dim=1))
        out: Tensor = self.out(hidden)
        return out

    def fields(self, maps: Tensor, pairs: Sequence[tuple[int, int]]) -> Tensor:
        """Standardised maps [B, T, C, H, W] -> [B, P, F, h, w].

        The F fields are local correlations, displacement (2), its certainty, and appearance.
        """
        b, t = maps.shape[:2]
        first, second = ([pair[i] for pair in pairs] for i in (0, 1))
        x = maps.flatten(0, 1)  # [B * T, C, H, W]
        match = F.normalize(self.match(x.flatten(2).transpose(1, 2)), dim=2)  # [B * T, H * W, match width]
        match = match.view(b, t, self.config.grid, self.config.grid, -1)
        here = match[:, first, ::2, ::2].reshape(b * len(pairs), -1, self.config.match_width)
        there = match[:, second].reshape(b * len(pairs), -1, self.config.match_width)
        correlation = here @ there.transpose(1, 2)  # [B * P, h * w, H * W]
        local = correlation.gather(2, self.local_index.expand(len(correlation), -1, -1)) * self.local_inside
        weights = (correlation * self.sharpness.exp()).softmax(2)
        flow = weights @ self.cells - self.own_cells
        certainty = (weights * correlation).sum(2, keepdim=True)
        moved = torch.cat((local, 4 * flow, certainty), dim=2).transpose(1, 2)  # [B * P, F', h * w]
        side = (self.config.grid + 1) // 2
        pooled = F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)
        look = self.look(pooled).view(b, t, -1, side, side)
        moved = moved.reshape(b, len(pairs), -1, side, side)
        return torch.cat((moved, look[:, second] - look[:, first], look[:, first] + look[:, second]), dim=2)


def distant_pairs(num_frames: int) -> list[tuple[int, int]]:
    """Frames far apart, whose difference shows a slow movement: three pairs, and the first with the last frame."""
    if num_frames < 4:
        return []
    last = num_frames - 1
    gap = max(2, round(0.4 * last))
    starts = sorted({0, (last - gap) // 2, last - gap})
    return [*((start, start + gap) for start in starts), (0, last)]


def _tones(maps: Tensor) -> Tensor:
    """[B, T, C, H, W] -> [B, T - 1, 2 C]: change of the mean over the picture, and its distance from the video's."""
    means = maps.mean((3, 4))  # [B, T, C]
    here, there = means[:, :-1], means[:, 1:]
    return torch.cat((there - here, (here + there) / 2 - means.mean(1, keepdim=True)), dim=2)


class _TemporalLayer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = TemporalAttention(width, heads, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(0.1), nn.Linear(2 * width, width)
        )

    def forward(self, tokens: Tensor) -> Tensor:  # [B, T, width]
        x: Tensor = self.attention(tokens[:, :, None])[:, :, 0]
        out: Tensor = x + self.mlp(x)
        return out


def _local_cells(grid: int, radius: int) -> tuple[Tensor, Tensor]:
    """Cells at most ``radius`` from every second cell: [1, h * w, K] indices (0 outside the map), and 0 or 1."""
    rows, columns = torch.meshgrid(torch.arange(0, grid, 2), torch.arange(0, grid, 2), indexing="ij")
    steps = torch.arange(-radius, radius + 1)
    down, right = (s.flatten() for s in torch.meshgrid(steps, steps, indexing="ij"))
    y, x = rows.flatten()[:, None] + down, columns.flatten()[:, None] + right
    inside = (y >= 0) & (y < grid) & (x >= 0) & (x < grid)
    index = torch.where(inside, y * grid + x, 0)
    return index[None], inside.float()[None]


def save_motion_branch(branch: MotionBranch, weights: Path, dtype: torch.dtype = torch.float16) -> None:
    save_tensors({name: value.to(dtype).contiguous() for name, value in branch.state_dict().items()}, weights)


def load_motion_branch(config: MotionBranchConfig, weights: Path) -> MotionBranch:
    branch = MotionBranch(config)
    branch.load_state_dict({name: value.float() for name, value in load_file(weights).items()})
    return branch.eval()
