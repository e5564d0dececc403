"""Video encoder: a frozen CLIP image tower, with a temporal branch beside its last blocks."""

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
    """What the frozen tower makes of videos, in any floating type: all that the branch reads, so that training can
    keep it and never run the tower again."""

    frame_features: Tensor
    """[B, T, D]: CLIP's own features of each frame, not normalised."""
    tokens: Tensor
    """[B, T, 1 + P, width]: where the branch begins; without a branch [B, T, 0, width]."""

    def to(self, device: torch.device | str) -> Trunk:
        return Trunk(self.frame_features.to(device), self.tokens.to(device))


class VideoEncoder(nn.Module):
    """``visual`` is open_clip's image tower (any class); a branch needs its ``VisionTransformer`` with a CLS token.

    ``mean`` and ``std`` are the tower's pixel statistics (values 0..1). The tower is frozen; only the branch trains
    (for an ablation, set ``visual.requires_grad_(True)`` afterwards).
    Raises ValueError when a branch is asked for on another kind of tower, or with more blocks than it has.
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
        self.fold_alpha = 1.0
        """Weight of the trained spatial weights outside training; folded in before a checkpoint is saved."""
        self.with_frame_mean = False
        """Whether a feature is two, the branch's and CLIP's frame mean (``beside``), as labels with trust in CLIP
        (``LabelEncoderConfig.name_trust``) want it."""
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
        """The frozen tower stays in evaluation mode whatever is asked."""
        super().train(mode)
        self.visual.eval()
        return self

    def to_pixels(self, frames: Tensor) -> Tensor:
        """[..., 3, H, W] uint8 to normalised float32 on the encoder's device."""
        return (frames.to(self.mean.device).float() - self.mean) / self.std

    def forward(self, frames: Tensor | Trunk, alpha: float | Tensor | None = None) -> Tensor:
        """Video features before normalisation: [B, T, 3, H, W] uint8, or their ``trunk``, -> [B, D] float32, or
        [B, 2D] ``with_frame_mean``.

        ``alpha`` is the interpolation of the branch's spatial weights (training draws it); by default the
        encoder's own ``fold_alpha``. Without a branch this is the mean of CLIP's frame features.
        """
        frame_features, tokens = frames if isinstance(frames, Trunk) else self.trunk(frames)
        frame_mean = frame_features.float().mean(dim=1)  # [B, D]
        feature = frame_mean
        if self.branch:
            x = tokens if isinstance(frames, Tensor) else tokens.float()
            feature = self._with_time(x, frame_mean, self.fold_alpha if alpha is None else alpha)
        return beside(feature, frame_mean) if self.with_frame_mean else feature

    def _with_time(self, x: Tensor, frame_mean: Tensor, alpha: float | Tensor) -> Tensor:
        """The branch on the trunk's tokens [B, T, 1 + P, width], weighed with the frame mean [B, D] -> [B, D]."""
        x = torch.cat((x[:, :, :1] + self.tmp_embedding.to(x.dtype), x[:, :, 1:]), dim=2)
        frozen = self.visual.transformer.resblocks[-len(self.branch) :]
        for index, (block, theirs) in enumerate(zip(self.branch, frozen, strict=True)):
            x = block(x, theirs, alpha, first_only=index == len(self.branch) - 1)
        tmp = self._project(x[:, :, 0])  # [B, T, D]
        weight = torch.sigmoid(self.tmp_logit)
        return weight * tmp.float().mean(dim=1) + (1 - weight) * frame_mean

    def trunk(self, frames: Tensor) -> Trunk:
        """[B, T, 3, H, W] uint8 -> what the tower makes of it; with gradient only where its weights ask for one."""
        learns = torch.is_grad_enabled() and any(p.requires_grad for p in self.visual.parameters())
        with torch.set_grad_enabled(learns):
            return self._trunk_of_videos(frames)

    def _trunk_of_videos(self, frames: Tensor) -> Trunk:
        b, t = frames.shape[:2]
        pixels = self.to_pixels(frames).flatten(0, 1)  # [B * T, 3, H, W]
        if not self.branch:
            pooled = self.visual(pixels)
            return Trunk(pooled.view(b, t, -1), pooled.new_zeros(b, t, 0, pooled.shape[-1]))
        frame_features, tokens = self._trunk(pixels)  # [B * T, D], [B * T, 1 + P, width]
        return Trunk(frame_features.view(b, t, -1), tokens.view(b, t, *tokens.shape[1:]))

    def _trunk(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Frozen CLIP: frame features [n, D], and all tokens [n, 1 + P, width] where the branch begins."""
        x = self.visual._embeds(pixels)
        blocks = self.visual.transformer.resblocks
        start = len(blocks) - len(self.branch)
        tokens = x
        for depth, block in enumerate(blocks):
            if depth == start:
                tokens = x
            x = block(x)
        return self._project(x[:, 0]), tokens

    def _project(self, x: Tensor) -> Tensor:
        """CLIP's own end: [..., width] -> [..., D]. LayerNorm is per token, so pooling first changes nothing."""
        x = self.visual.ln_post(x)
        projected: Tensor = x if self.visual.proj is None else x @ self.visual.proj
        return projected

    @torch.no_grad()
    def encode_video(self, frames: Tensor) -> Tensor:
        """[B, T, 3, H, W] uint8 -> [B, D] float32 unit vectors."""
        return F.normalize(self(frames), dim=-1)

    def trainable(self) -> dict[str, nn.Parameter]:
        """Parameters of the branch by name; empty without one."""
        return {name: p for name, p in self.named_parameters() if not name.startswith("visual.")}

    def new_and_copied(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """The branch's random parameters, and those that were copied from CLIP (they want a smaller step)."""
        copied = [p for block in self.branch for p in block.spatial.parameters()]
        known = {id(p) for p in copied}
        return [p for p in self.trainable().values() if id(p) not in known], copied

    def fold(self, alpha: float) -> None:
        """Fold the interpolation at ``alpha`` into the branch for good; afterwards ``fold_alpha`` is 1."""
        for block, theirs in zip(self.branch, self.visual.transformer.resblocks[-len(self.branch) :], strict=True):
            block.fold(theirs, alpha)
        self.fold_alpha = 1.0


def beside(feature: Tensor, frame_mean: Tensor) -> Tensor:
    """[B, D] video features and CLIP's frame means -> [B, 2D] of length 1, both halves equally long."""
    return torch.cat((F.normalize(feature, dim=-1), F.normalize(frame_mean, dim=-1)), dim=-1) / 2**0.5
