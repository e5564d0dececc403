"""Video encoder: a frozen CLIP image tower, with a temporal branch parallel to its last blocks.

Trunk: the tower's outputs that the branch and the frame mean are computed from. Frame mean: the mean over T of CLIP's
frame features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from vidlex.model.config import VideoEncoderConfig
from vidlex.model.video.temporal import BranchBlock


class Trunk(NamedTuple):
    """Outputs of the frozen tower, of any floating type. Training caches them instead of running the tower again."""

    frame_features: Tensor  # [B, T, D], not normalised
    tokens: Tensor  # [B, T, 1 + P, width] inputs of the branch; [B, T, 0, width] without a branch

    def to(self, device: torch.device | str) -> Trunk:
        return Trunk(self.frame_features.to(device), self.tokens.to(device))


class VideoEncoder(nn.Module):
    """``visual`` is an open_clip image tower of any class; a branch needs a ``VisionTransformer`` with a CLS token.

    ``mean`` and ``std`` are the tower's pixel statistics (values 0..1). The tower is frozen; only the branch trains
    (ablations call ``visual.requires_grad_(True)`` afterwards). Raises ValueError for a branch on another kind of
    tower, or with more blocks than the tower has.
    """

    visual: Any
    mean: Tensor
    std: Tensor

    def __init__(self, visual: Any, config: VideoEncoderConfig, *, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.config = config
        self.visual = visual.requires_grad_(False).eval()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1) * 255, persistent=False)
        self.branch: Any = nn.ModuleList()  # of BranchBlock
        self.fold_alpha = 1.0  # interpolation of the spatial weights outside training; 1 in checkpoints
        self.with_frame_mean = False  # append the frame mean to the feature; see ``LabelEncoderConfig.name_trust``
        if config.num_branch_blocks:
            self._add_branch(visual, config)

    def _add_branch(self, visual: Any, config: VideoEncoderConfig) -> None:
        if not isinstance(visual, VisionTransformer) or visual.attn_pool is not None or visual.pool_type != "tok":
            raise ValueError(
                "the temporal branch needs an open_clip VisionTransformer that pools its CLS token, "
                f"not {type(visual).__name__}: use num_branch_blocks=0 (frame mean) or another backbone"
            )
        blocks = visual.transformer.resblocks
        if config.num_branch_blocks > len(blocks):
            raise ValueError(f"{config.num_branch_blocks = } but the tower has only {len(blocks)} blocks")
        width = visual.ln_post.normalized_shape[0]
        heads = blocks[0].attn.num_heads
        for block in blocks[-config.num_branch_blocks :]:
            self.branch.append(BranchBlock(block, width, heads))
        self.branch.requires_grad_(True)
        self.tmp_embedding = nn.Parameter(torch.zeros(width))
        self.tmp_logit = nn.Parameter(torch.tensor(float(torch.logit(torch.tensor(config.tmp_weight)))))

    def train(self, mode: bool = True) -> VideoEncoder:
        super().train(mode)
        self.visual.eval()  # always, also in training
        return self

    def to_pixels(self, frames: Tensor) -> Tensor:  # [..., 3, H, W] uint8 -> float32
        return (frames.to(self.mean.device).float() - self.mean) / self.std

    def forward(self, frames: Tensor | Trunk, alpha: float | Tensor | None = None) -> Tensor:
        """[B, T, 3, H, W] uint8 or its trunk -> [B, D] float32 features, not normalised; [B, 2D] ``with_frame_mean``.

        ``alpha`` interpolates the branch's spatial weights (sampled in training, ``fold_alpha`` by default). Without a
        branch the feature is the frame mean.
        """
        frame_features, tokens = frames if isinstance(frames, Trunk) else self.compute_trunk(frames)
        frame_mean = frame_features.float().mean(dim=1)  # [B, D]
        feature = frame_mean
        if self.branch:
            x = tokens if isinstance(frames, Tensor) else tokens.float()
            feature = self._run_branch(x, frame_mean, self.fold_alpha if alpha is None else alpha)
        return concat_frame_mean(feature, frame_mean) if self.with_frame_mean else feature

    def _run_branch(self, x: Tensor, frame_mean: Tensor, alpha: float | Tensor) -> Tensor:
        x = torch.cat((x[:, :, :1] + self.tmp_embedding.to(x.dtype), x[:, :, 1:]), dim=2)  # [B, T, 1 + P, width]
        clip_blocks = self.visual.transformer.resblocks[-len(self.branch) :]
        for index, (block, clip_block) in enumerate(zip(self.branch, clip_blocks, strict=True)):
            x = block(x, clip_block, alpha, first_only=index == len(self.branch) - 1)
        tmp = self._project(x[:, :, 0])  # [B, T, D]
        weight = torch.sigmoid(self.tmp_logit)
        return weight * tmp.float().mean(dim=1) + (1 - weight) * frame_mean  # [B, D]

    def compute_trunk(self, frames: Tensor) -> Trunk:
        b, t = frames.shape[:2]  # of [B, T, 3, H, W]
        with_grad = torch.is_grad_enabled() and any(p.requires_grad for p in self.visual.parameters())
        with torch.set_grad_enabled(with_grad):
            pixels = self.to_pixels(frames).flatten(0, 1)  # [B * T, 3, H, W]
            if not self.branch:
                pooled = self.visual(pixels)  # [B * T, D]
                return Trunk(pooled.view(b, t, -1), pooled.new_zeros(b, t, 0, pooled.shape[-1]))
            frame_features, tokens = self._run_tower(pixels)  # [B * T, D], [B * T, 1 + P, width]
            return Trunk(frame_features.view(b, t, -1), tokens.view(b, t, *tokens.shape[1:]))

    def _run_tower(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        x = self.visual._embeds(pixels)  # [n, 1 + P, width]
        blocks = self.visual.transformer.resblocks
        start = len(blocks) - len(self.branch)
        tokens = x
        for depth, block in enumerate(blocks):
            if depth == start:
                tokens = x
            x = block(x)
        return self._project(x[:, 0]), tokens  # [n, D], [n, 1 + P, width]

    def _project(self, x: Tensor) -> Tensor:  # [..., width] -> [..., D], per token
        x = self.visual.ln_post(x)
        projected: Tensor = x if self.visual.proj is None else x @ self.visual.proj
        return projected

    @torch.no_grad()
    def encode_video(self, frames: Tensor) -> Tensor:  # [B, T, 3, H, W] uint8 -> [B, D] unit vectors
        return F.normalize(self(frames), dim=-1)

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.named_parameters() if not name.startswith("visual.")}

    def new_and_copied_parameters(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Random parameters, and those copied from CLIP, which get a lower learning rate."""
        copied = [p for block in self.branch for p in block.spatial.parameters()]
        copied_ids = {id(p) for p in copied}
        return [p for p in self.trainable_parameters().values() if id(p) not in copied_ids], copied

    def fold(self, alpha: float) -> None:
        clip_blocks = self.visual.transformer.resblocks[-len(self.branch) :]
        for block, clip_block in zip(self.branch, clip_blocks, strict=True):
            block.fold(clip_block, alpha)
        self.fold_alpha = 1.0


def concat_frame_mean(feature: Tensor, frame_mean: Tensor) -> Tensor:
    """[B, D] each -> [B, 2D] unit vectors with halves of equal length."""
    return torch.cat((F.normalize(feature, dim=-1), F.normalize(frame_mean, dim=-1)), dim=-1) / 2**0.5
