"""open_clip's own ``VisionTransformer``: CLIP, its average-pooled variants, and CoCa with attention pooling."""

from __future__ import annotations

import copy
from typing import Any

from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn

_CLS = slice(0, 1)


class OpenClipVit:
    """With CLS pooling this is the paper's tower; average and attention pooling are beyond it.

    Raises ValueError for a tower that does not pool to one vector.
    """

    def __init__(self, visual: Any) -> None:
        if getattr(visual, "attn_pool_contrastive", None) is not None:
            raise ValueError("open_clip's two attention pools (parallel, cascade) give no single vector per frame")
        if visual.pool_type == "none":
            raise ValueError("the image tower does not pool its tokens")
        self.visual = visual
        self.blocks = visual.transformer.resblocks
        self.width = self.attention_width = int(visual.transformer.width)
        self.num_heads = int(self.blocks[0].attn.num_heads)
        if visual.attn_pool is not None:
            self.pooled = slice(None)
        else:
            self.pooled = _CLS if visual.pool_type == "tok" else slice(1, None)

    def embed(self, pixels: Tensor) -> Tensor:
        tokens: Tensor = self.visual._embeds(pixels)
        return tokens

    def run_block(self, block: Any, x: Tensor, *, depth: int, last: bool = False) -> Tensor:
        if not last or self.pooled != _CLS or type(block) is not ResidualAttentionBlock:
            all_tokens: Tensor = block(x)
            return all_tokens
        y = block.ln_1(x)
        first = x[:, :1] + block.ls_1(block.attn(y[:, :1], y, y, need_weights=False)[0])
        out: Tensor = first + block.ls_2(block.mlp(block.ln_2(first)))
        return out

    def branch_block(self, depth: int) -> nn.Module:
        block: nn.Module = copy.deepcopy(self.blocks[depth])
        return block

    def pool(self, x: Tensor) -> Tensor:
        if self.pooled == _CLS:
            x = x[:, :1]
        pooled: Tensor = self.visual._pool(x)[0]
        return pooled if self.visual.proj is None else pooled @ self.visual.proj
