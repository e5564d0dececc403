"""timm's vision transformers, alone or in open_clip's ``TimmModel``.

``VisionTransformer``: SigLIP, SigLIP 2, MobileCLIP-B, DINOv2, ViTamin and many more. ``Eva``: EVA-02, PE-Core, DINOv3
and others with rotary position embeddings.
"""

from __future__ import annotations

import copy
import math
from typing import Any

from timm.layers.drop import DropPath
from torch import Tensor, nn


class TimmVit:
    """``trunk`` is a timm ``VisionTransformer``; ``head`` follows its own head (open_clip's projection).

    Beyond the paper, except with CLS pooling. Raises ValueError for a trunk that does not pool to one vector.
    """

    def __init__(self, trunk: Any, head: nn.Module) -> None:
        self.trunk, self.head = trunk, head
        self.blocks = trunk.blocks
        self.width = self.attention_width = int(trunk.embed_dim)
        attention = getattr(self.blocks[0], "attn", None)
        self.num_heads = int(getattr(attention, "num_heads", self.width // 64))
        if trunk.global_pool == "":
            raise ValueError("the image tower does not pool its tokens")
        self.pooled = slice(0, 1) if trunk.global_pool == "token" else slice(self._first_pooled(), None)

    def _first_pooled(self) -> int:
        return 0 if self.trunk.pool_include_prefix else int(self.trunk.num_prefix_tokens)

    def embed(self, pixels: Tensor) -> Tensor:
        trunk = self.trunk
        x: Tensor = trunk.norm_pre(trunk.patch_drop(trunk._pos_embed(trunk.patch_embed(pixels))))
        return x

    def run_block(self, block: nn.Module, x: Tensor, *, depth: int, last: bool = False) -> Tensor:
        out: Tensor = block(x)
        return out

    def branch_block(self, depth: int) -> nn.Module:
        block: nn.Module = copy.deepcopy(self.blocks[depth])
        for part in block.modules():  # with dropout, a training step would depend on how it is divided
            if isinstance(part, nn.Dropout):
                part.p = 0.0
            elif isinstance(part, DropPath):
                part.drop_prob = 0.0
        return block

    def pool(self, x: Tensor) -> Tensor:
        features: Tensor = self.head(self.trunk.forward_head(self.trunk.norm(x)))
        return features


class TimmEva(TimmVit):
    """``trunk`` is a timm ``Eva``. The rotary embedding of the tower's positions goes to the branch's blocks too."""

    def _first_pooled(self) -> int:
        return 0 if self.trunk.attn_pool is not None else int(self.trunk.num_prefix_tokens)

    def embed(self, pixels: Tensor) -> Tensor:
        x, _ = self.trunk._pos_embed(self.trunk.patch_embed(pixels))
        out: Tensor = self.trunk.norm_pre(x)
        return out

    def run_block(self, block: nn.Module, x: Tensor, *, depth: int, last: bool = False) -> Tensor:
        out: Tensor = block(x, rope=self._rotary_embedding(x.shape[1], depth))
        return out

    def _rotary_embedding(self, num_tokens: int, depth: int) -> Tensor | None:
        trunk = self.trunk
        if trunk.rope is None:
            return None
        grid = trunk.patch_embed.grid_size
        if trunk.dynamic_img_size:  # frames are square
            grid = (math.isqrt(num_tokens - trunk.num_prefix_tokens),) * 2
        embedding: Tensor = trunk.rope.get_embed(shape=grid)
        return embedding[depth] if trunk.rope_mixed else embedding  # mixed: frequencies of each block
