"""The video encoder as it serves: the numbers of ``VideoEncoder`` up to rounding, in less time. Inference only.

What it saves against running the modules as they stand:

- normalisation is folded into the patch embedding, which then is one matrix product over the uint8 pixels (channels
  last, as they are decoded);
- blocks that trunk and branch share run once, and the last block of each computes the first token alone: nothing
  reads the others;
- weights are laid out once for the processor (oneDNN on a CPU), with the activation inside the same kernel; layer
  scales are folded into the weights, and QuickGELU runs as the SiLU that it is, up to a factor;
- matrix products in half precision where asked, between residuals and norms that stay in float32.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from open_clip.transformer import QuickGELU, ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn

from vidlex.model.packed_linear import PackedLinear
from vidlex.model.video.encoder import VideoEncoder, beside
from vidlex.model.video.temporal import TemporalAttention, time_rows

_QUICK = 1.702
"""QuickGELU(x) = x * sigmoid(1.702 x) = SiLU(1.702 x) / 1.702."""
_CPU_FRAMES = 32
"""Frames that go through a block together on a CPU: more are not faster and take more memory."""


def can_be_fast(encoder: VideoEncoder) -> bool:
    """Whether the tower is the usual open_clip ViT (CLS pooling, plain blocks), on which this file knows its way."""
    visual = encoder.visual
    if not isinstance(visual, VisionTransformer) or visual.attn_pool is not None or visual.pool_type != "tok":
        return False
    if not isinstance(visual.patch_dropout, nn.Identity) or visual.conv1.kernel_size != visual.conv1.stride:
        return False
    return all(_is_plain(block) for block in visual.transformer.resblocks)


def _is_plain(block: Any) -> bool:
    if type(block) is not ResidualAttentionBlock or hasattr(block, "ln_1_kv"):
        return False
    activation: Any = block.mlp.gelu
    gelu = isinstance(activation, QuickGELU) or (isinstance(activation, nn.GELU) and activation.approximate == "none")
    return gelu and block.attn.in_proj_weight is not None and block.attn.in_proj_bias is not None


class _Norm:
    def __init__(self, norm: nn.LayerNorm) -> None:
        self.norm = norm

    def __call__(self, x: Tensor) -> Tensor:
        """[..., D] float32 -> same."""
        return F.layer_norm(x, self.norm.normalized_shape, self.norm.weight, self.norm.bias, self.norm.eps)


class _Block:
    """One pre-norm block of CLIP's image tower."""

    def __init__(self, block: Any, dtype: torch.dtype) -> None:
        attention, mlp = block.attn, block.mlp
        self.heads: int = attention.num_heads
        self.norm_1, self.norm_2 = _Norm(block.ln_1), _Norm(block.ln_2)
        width = attention.embed_dim
        weight, bias = attention.in_proj_weight, attention.in_proj_bias
        self.qkv = PackedLinear(weight, bias, dtype=dtype)
        self.split: tuple[Tensor, Tensor] = (weight, bias)
        self.query: PackedLinear | None = None
        self.key_value: PackedLinear | None = None
        self.width, self.dtype = width, dtype
        self.out = PackedLinear(*_scaled(attention.out_proj, block.ls_1), dtype=dtype)
        quick = isinstance(mlp.gelu, QuickGELU)
        up, up_bias = mlp.c_fc.weight, mlp.c_fc.bias
        down, down_bias = _scaled(mlp.c_proj, block.ls_2)
        if quick:
            up, up_bias, down = up * _QUICK, up_bias * _QUICK, down / _QUICK
        self.up = PackedLinear(up, up_bias, dtype=dtype, activation="swish" if quick else "gelu")
        self.down = PackedLinear(down, down_bias, dtype=dtype)

    def first_only(self) -> _Block:
        """The same block for ``first``: made once for the last one."""
        weight, bias = self.split
        w = self.width
        self.query = PackedLinear(weight[:w], bias[:w], dtype=self.dtype)
        self.key_value = PackedLinear(weight[w:], bias[w:], dtype=self.dtype)
        return self

    def __call__(self, x: Tensor) -> Tensor:
        """[n, N, D] float32 -> same; changes ``x`` in place."""
        n, tokens, d = x.shape
        qkv = self.qkv(self.norm_1(x)).view(n, tokens, 3, self.heads, d // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [n, heads, N, D / heads]
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, tokens, d)
        x += self.out(y)
        x += self.down(self.up(self.norm_2(x)))
        return x

    def first(self, x: Tensor) -> Tensor:
        """[n, N, D] float32 -> [n, 1, D]: the first token's output."""
        assert self.query is not None and self.key_value is not None
        n, tokens, d = x.shape
        y = self.norm_1(x)
        q = self.query(y[:, :1]).view(n, 1, self.heads, d // self.heads).transpose(1, 2)
        k, v = self.key_value(y).view(n, tokens, 2, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, 1, d)
        first = x[:, :1] + self.out(y)
        first += self.down(self.up(self.norm_2(first)))
        return first


class _Temporal:
    """``TemporalAttention``."""

    def __init__(self, attention: TemporalAttention, dtype: torch.dtype) -> None:
        self.heads = attention.heads
        self.norm = _Norm(attention.norm)
        self.table = attention.time_embedding
        self.qkv = PackedLinear(attention.qkv.weight, attention.qkv.bias, dtype=dtype)
        self.out = PackedLinear(attention.out.weight, attention.out.bias, dtype=dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """[B, T, N, D] float32 -> same; changes ``x`` in place."""
        b, t, n, d = x.shape
        y = self.norm(x)
        y += time_rows(self.table, t)[:, None, :]
        qkv = self.qkv(y).view(b, t, n, 3, self.heads, d // self.heads)
        q, k, v = qkv.permute(3, 0, 2, 4, 1, 5)  # each [B, N, heads, T, D / heads]
        y = F.scaled_dot_product_attention(q, k, v).permute(0, 3, 1, 2, 4).reshape(b, t, n, d)
        x += self.out(y)
        return x


class FastVideoEncoder:
    """Made from a ``VideoEncoder`` that ``can_be_fast``, on that one's device; its weights are read once, now.

    ``dtype`` is that of the matrix products: float32, bfloat16 or float16.
    """

    @torch.no_grad()
    def __init__(self, encoder: VideoEncoder, dtype: torch.dtype = torch.float32) -> None:
        if not can_be_fast(encoder):
            raise ValueError(f"{type(encoder.visual).__name__} is not the usual open_clip VisionTransformer")
        if encoder.fold_alpha != 1.0:
            raise ValueError("fold the branch's weights first")
        visual = encoder.visual
        self.dtype = dtype
        self.with_frame_mean = encoder.with_frame_mean
        self.device = encoder.mean.device
        self.patch: int = visual.conv1.kernel_size[0]
        self.embed = _patch_embedding(encoder)
        self.positions = visual.positional_embedding[1:].detach().float()
        self.cls = (visual.class_embedding + visual.positional_embedding[0]).detach().float()
        self.norm_pre = _Norm(visual.ln_pre) if isinstance(visual.ln_pre, nn.LayerNorm) else None
        self.norm_post = _Norm(visual.ln_post)
        self.projection = None if visual.proj is None else visual.proj.detach().float()
        blocks = [_Block(block, dtype) for block in visual.transformer.resblocks]
        start = len(blocks) - len(encoder.branch)
        self.shared, self.trunk = blocks[:start], blocks[start:]
        if not self.trunk:
            self.shared, self.trunk = blocks[:-1], blocks[-1:]
        self.trunk[-1].first_only()
        self.branch = [(_Temporal(b.temporal, dtype), _Block(b.spatial.block, dtype)) for b in encoder.branch]
        if self.branch:
            self.branch[-1][1].first_only()
            self.tmp_embedding = encoder.tmp_embedding.detach().float()
            self.tmp_weight = torch.sigmoid(encoder.tmp_logit).detach()
        self.max_frames = _CPU_FRAMES if self.device.type == "cpu" else 1 << 30

    @torch.inference_mode()
    def encode_video(self, frames: Tensor) -> Tensor:
        """[B, T, H, W, 3] uint8 -> [B, D] float32 unit vectors ([B, 2D] where the encoder is ``with_frame_mean``)."""
        b, t = frames.shape[:2]
        pictures = frames.to(self.device).flatten(0, 1)
        features, tokens = [], []
        for some in torch.split(pictures, self.max_frames):
            x = self._embed(some)
            for block in self.shared:
                x = block(x)
            if self.branch:
                tokens.append(x.clone())
            for block in self.trunk[:-1]:
                x = block(x)
            features.append(self._project(self.trunk[-1].first(x)[:, 0]))
        frame_mean = torch.cat(features).view(b, t, -1).mean(dim=1)
        if not self.branch:
            return self._finished(frame_mean, frame_mean)
        x = torch.cat(tokens)
        x[:, 0] += self.tmp_embedding
        for temporal, block in self.branch[:-1]:
            x = temporal(x.view(b, t, *x.shape[1:])).flatten(0, 1)
            for some in torch.split(x, self.max_frames):
                block(some)
        temporal, block = self.branch[-1]
        x = temporal(x.view(b, t, *x.shape[1:])).flatten(0, 1)
        last = torch.cat([block.first(some)[:, 0] for some in torch.split(x, self.max_frames)])
        tmp = self._project(last).view(b, t, -1).mean(dim=1)
        return self._finished(self.tmp_weight * tmp + (1 - self.tmp_weight) * frame_mean, frame_mean)

    def _finished(self, feature: Tensor, frame_mean: Tensor) -> Tensor:
        return beside(feature, frame_mean) if self.with_frame_mean else F.normalize(feature, dim=-1)

    def _embed(self, pictures: Tensor) -> Tensor:
        """[n, H, W, 3] uint8 -> [n, 1 + P, width] float32."""
        n, height, width, _ = pictures.shape
        p = self.patch
        rows, columns = height // p, width // p
        patches = pictures.view(n, rows, p, columns, p, 3).transpose(2, 3).reshape(n, rows * columns, p * p * 3)
        x = torch.empty(n, 1 + rows * columns, len(self.cls), device=self.device)
        x[:, 0] = self.cls
        torch.add(self.embed(patches.float()), self.positions, out=x[:, 1:])
        return x if self.norm_pre is None else self.norm_pre(x)

    def _project(self, x: Tensor) -> Tensor:
        """CLIP's own end: [..., width] -> [..., D]."""
        x = self.norm_post(x)
        return x if self.projection is None else x @ self.projection


def _patch_embedding(encoder: VideoEncoder) -> PackedLinear:
    """The patch convolution as a product over raw pixels in the order [row, column, channel]:
    ``w * (x - mean) / std = (w / std) * x - sum(w * mean / std)``. In float32: it is small, and the bias large."""
    conv = encoder.visual.conv1
    weight = conv.weight.double() / encoder.std.double()  # [width, 3, p, p] / [3, 1, 1]
    bias = -(weight * encoder.mean.double()).sum(dim=(1, 2, 3))
    if conv.bias is not None:
        bias = bias + conv.bias.double()
    return PackedLinear(weight.permute(0, 2, 3, 1).flatten(1).float(), bias.float())


def _scaled(linear: nn.Linear, scale: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias with the layer scale that follows folded in."""
    weight, bias = linear.weight, linear.bias
    gamma = getattr(scale, "gamma", None)
    return (weight, bias) if gamma is None else (weight * gamma[:, None], bias * gamma)
