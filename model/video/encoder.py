"""Video encoder: a frozen image tower, with a temporal branch parallel to its last blocks.

Trunk: the tower's outputs that the branch and the frame mean are computed from. Frame mean: the mean over T of the
tower's frame features. In the paper the tower is CLIP's; ``vidlex.model.video.towers`` has an adapter for each family.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidlex.model.config import VideoEncoderConfig
from vidlex.model.extensions.features import VideoHead
from vidlex.model.video.temporal import BranchBlock, RunBlock, TemporalAttention
from vidlex.model.video.towers.create import create_tower
from vidlex.model.video.towers.tower import Tower


class Trunk(NamedTuple):
    """Outputs of the frozen tower, of any floating type. Training caches them instead of running the tower again."""

    frame_features: Tensor  # [B, T, D], not normalised
    tokens: Tensor  # [B, T, N, width] inputs of the branch; [B, T, 0, D] without a branch

    def to(self, device: torch.device | str) -> Trunk:
        return Trunk(self.frame_features.to(device), self.tokens.to(device))


class VideoEncoder(nn.Module):
    """``visual`` is the image tower of an open_clip model, or a timm model; a branch needs one with a ``Tower``.

    ``mean`` and ``std`` are the tower's pixel statistics (values 0..1). The tower is frozen; only the branch trains
    (ablations call ``visual.requires_grad_(True)`` afterwards). Raises ValueError for a branch on an unknown kind of
    tower, or with more blocks than the tower has.
    """

    visual: Any
    mean: Tensor
    std: Tensor
    tower: Tower  # with a branch only

    def __init__(self, visual: Any, config: VideoEncoderConfig, *, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.config = config
        self.visual = visual.requires_grad_(False).eval()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1) * 255, persistent=False)
        self.branch: Any = nn.ModuleList()  # of BranchBlock
        self.first_depth = 0  # of the branch, among the tower's blocks
        self.fold_alpha = 1.0  # interpolation of the spatial weights outside training; 1 in checkpoints
        self.head: VideoHead | None = None  # of an extension
        if config.num_branch_blocks:
            self._add_branch(config)

    def _add_branch(self, config: VideoEncoderConfig) -> None:
        try:
            tower = create_tower(self.visual)
        except ValueError as error:
            raise ValueError(f"{error}; use num_branch_blocks=0 (frame mean) or another backbone") from None
        self.tower, depth = tower, len(tower.blocks)
        if 0 < depth < config.num_branch_blocks:
            raise ValueError(f"{config.num_branch_blocks = } but the tower has only {depth} blocks")
        self.first_depth = max(0, depth - config.num_branch_blocks)
        for index in range(config.num_branch_blocks):
            temporal = TemporalAttention(tower.width, tower.num_heads, tower.attention_width)
            self.branch.append(BranchBlock(temporal, tower.branch_block(self.first_depth + index)))
        self.branch.requires_grad_(True)
        self.tmp_embedding = nn.Parameter(torch.zeros(tower.width))
        self.tmp_logit = nn.Parameter(torch.tensor(float(torch.logit(torch.tensor(config.tmp_weight)))))

    def train(self, mode: bool = True) -> VideoEncoder:
        super().train(mode)
        self.visual.eval()  # always, also in training
        return self

    def to_pixels(self, frames: Tensor) -> Tensor:  # [..., 3, H, W] uint8 -> float32
        return (frames.to(self.mean.device).float() - self.mean) / self.std

    def forward(self, frames: Tensor | Trunk, alpha: float | Tensor | None = None) -> Tensor:
        """[B, T, 3, H, W] uint8 or its trunk -> [B, D] float32 features, not normalised.

        ``alpha`` interpolates the branch's spatial weights (sampled in training, ``fold_alpha`` by default). Without a
        branch the feature is the frame mean.
        """
        frame_features, tokens = frames if isinstance(frames, Trunk) else self.compute_trunk(frames)
        frame_mean = frame_features.float().mean(dim=1)  # [B, D]
        feature = frame_mean
        if self.branch:
            x = tokens if isinstance(frames, Tensor) else tokens.float()
            feature = self._run_branch(x, frame_mean, self.fold_alpha if alpha is None else alpha)
        return feature if self.head is None else self.head(feature, frame_mean)

    def _run_branch(self, x: Tensor, frame_mean: Tensor, alpha: float | Tensor) -> Tensor:
        b, t, n, _ = x.shape
        start, stop, _ = self.tower.pooled.indices(n)  # 0 and 1 with a CLS token, which becomes TMP
        tmp = x[:, :, start:stop] + self.tmp_embedding.to(x.dtype)
        x = torch.cat((x[:, :, :start], tmp, x[:, :, stop:]), dim=2)  # [B, T, N, width]
        for block, run, frozen in self._branch_blocks():
            x = block(x, run, frozen, alpha)
        tmp = self.tower.pool(x.flatten(0, 1)).view(b, t, -1)  # [B, T, D]
        weight = torch.sigmoid(self.tmp_logit)
        return weight * tmp.float().mean(dim=1) + (1 - weight) * frame_mean  # [B, D]

    def _branch_blocks(self) -> Iterator[tuple[BranchBlock, RunBlock, nn.Module | None]]:
        """Each block, how the tower runs its spatial part, and the tower's own block parallel to it."""
        for depth, block in enumerate(self.branch, self.first_depth):
            run = partial(self.tower.run_block, depth=depth, last=block is self.branch[-1])
            yield block, run, self.tower.blocks[depth] if self.tower.blocks else None

    def compute_trunk(self, frames: Tensor) -> Trunk:
        b, t = frames.shape[:2]  # of [B, T, 3, H, W]
        with_grad = torch.is_grad_enabled() and any(p.requires_grad for p in self.visual.parameters())
        with torch.set_grad_enabled(with_grad):
            pixels = self.to_pixels(frames).flatten(0, 1)  # [B * T, 3, H, W]
            if not self.branch:
                pooled = self.visual(pixels)  # [B * T, D]
                return Trunk(pooled.view(b, t, -1), pooled.new_zeros(b, t, 0, pooled.shape[-1]))
            frame_features, tokens = self._run_tower(pixels)  # [B * T, D], [B * T, N, width]
            return Trunk(frame_features.view(b, t, -1), tokens.view(b, t, *tokens.shape[1:]))

    def _run_tower(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        tokens = x = self.tower.embed(pixels)  # [n, N, width]
        for depth, block in enumerate(self.tower.blocks):
            if depth == self.first_depth:
                tokens = x
            x = self.tower.run_block(block, x, depth=depth)
        return self.tower.pool(x), tokens  # [n, D], [n, N, width]

    @torch.no_grad()
    def encode_video(self, frames: Tensor) -> Tensor:  # [B, T, 3, H, W] uint8 -> [B, D] unit vectors
        return F.normalize(self(frames), dim=-1)

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.named_parameters() if not name.startswith("visual.")}

    def new_and_copied_parameters(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Random parameters, and those copied from the tower, which get a lower learning rate."""
        copied = [
            p for block, _, frozen in self._branch_blocks() if frozen is not None for p in block.spatial.parameters()
        ]
        copied_ids = {id(p) for p in copied}
        return [p for p in self.trainable_parameters().values() if id(p) not in copied_ids], copied

    def fold(self, alpha: float) -> None:
        for block, _, frozen in self._branch_blocks():
            if frozen is not None:
                block.fold(frozen, alpha)
        self.fold_alpha = 1.0
