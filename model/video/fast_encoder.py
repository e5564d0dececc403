"""Inference-only implementation of ``VideoEncoder``, equal up to rounding.

Pixel normalisation is folded into the patch embedding, the last blocks of tower and branch compute only the first
token, weights are prepacked with fused activations, layer scales are folded into the weights, and QuickGELU is a scaled
SiLU. Matrix products optionally run in half precision; residuals and norms stay in float32.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from open_clip.transformer import QuickGELU, ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn

from vidlex.model.packed_linear import PackedLinear
from vidlex.model.video.encoder import VideoEncoder
from vidlex.model.video.pauses import pause
from vidlex.model.video.temporal import TemporalAttention, interpolate_time_embedding

_QUICK_GELU_FACTOR = 1.702  # QuickGELU(x) = x * sigmoid(1.702 x) = SiLU(1.702 x) / 1.702
_MAX_FRAMES_PER_PASS_CPU = 32  # larger passes are not faster and take more memory


def can_be_fast(encoder: VideoEncoder) -> bool:
    visual = encoder.visual
    if not isinstance(visual, VisionTransformer) or visual.attn_pool is not None or visual.pool_type != "tok":
        return False
    if not isinstance(visual.patch_dropout, nn.Identity) or visual.conv1.kernel_size != visual.conv1.stride:
        return False
    return all(_is_plain_block(block) for block in visual.transformer.resblocks)


def _is_plain_block(block: Any) -> bool:
    if type(block) is not ResidualAttentionBlock or hasattr(block, "ln_1_kv"):
        return False
    activation: Any = block.mlp.gelu
    is_gelu = isinstance(activation, QuickGELU) or (
        isinstance(activation, nn.GELU) and activation.approximate == "none"
    )
    return is_gelu and block.attn.in_proj_weight is not None and block.attn.in_proj_bias is not None


class _Norm:
    def __init__(self, norm: nn.LayerNorm) -> None:
        self.norm = norm

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.norm.normalized_shape, self.norm.weight, self.norm.bias, self.norm.eps)


class _Block:
    def __init__(self, block: Any, dtype: torch.dtype) -> None:
        attention, mlp = block.attn, block.mlp
        self.heads: int = attention.num_heads
        self.norm_1, self.norm_2 = _Norm(block.ln_1), _Norm(block.ln_2)
        width = attention.embed_dim
        weight, bias = attention.in_proj_weight, attention.in_proj_bias
        self.qkv = PackedLinear(weight, bias, dtype=dtype)
        self.qkv_weights: tuple[Tensor, Tensor] = (weight, bias)
        self.query: PackedLinear | None = None
        self.key_value: PackedLinear | None = None
        self.width, self.dtype = width, dtype
        self.out = PackedLinear(*_fold_layer_scale(attention.out_proj, block.ls_1), dtype=dtype)
        is_quick = isinstance(mlp.gelu, QuickGELU)
        up, up_bias = mlp.c_fc.weight, mlp.c_fc.bias
        down, down_bias = _fold_layer_scale(mlp.c_proj, block.ls_2)
        if is_quick:
            up, up_bias, down = up * _QUICK_GELU_FACTOR, up_bias * _QUICK_GELU_FACTOR, down / _QUICK_GELU_FACTOR
        self.up = PackedLinear(up, up_bias, dtype=dtype, activation="swish" if is_quick else "gelu")
        self.down = PackedLinear(down, down_bias, dtype=dtype)

    def prepare_first_token(self) -> None:
        weight, bias = self.qkv_weights
        w = self.width
        self.query = PackedLinear(weight[:w], bias[:w], dtype=self.dtype)
        self.key_value = PackedLinear(weight[w:], bias[w:], dtype=self.dtype)

    def __call__(self, x: Tensor) -> Tensor:
        n, tokens, d = x.shape  # [n, 1 + P, width] float32, changed in place
        qkv = self.qkv(self.norm_1(x)).view(n, tokens, 3, self.heads, d // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [n, heads, 1 + P, width / heads]
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, tokens, d)  # [n, 1 + P, width]
        x += self.out(y)
        x += self.down(self.up(self.norm_2(x)))
        return x

    def first_token(self, x: Tensor) -> Tensor:
        assert self.query is not None and self.key_value is not None
        n, tokens, d = x.shape  # [n, 1 + P, width] float32
        y = self.norm_1(x)
        q = self.query(y[:, :1]).view(n, 1, self.heads, d // self.heads).transpose(1, 2)
        k, v = self.key_value(y).view(n, tokens, 2, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, 1, d)  # [n, 1, width]
        first = x[:, :1] + self.out(y)
        first += self.down(self.up(self.norm_2(first)))
        return first


class _Temporal:
    def __init__(self, attention: TemporalAttention, dtype: torch.dtype) -> None:
        self.heads = attention.heads
        self.norm = _Norm(attention.norm)
        self.table = attention.time_embedding
        self.qkv = PackedLinear(attention.qkv.weight, attention.qkv.bias, dtype=dtype)
        self.out = PackedLinear(attention.out.weight, attention.out.bias, dtype=dtype)

    def __call__(self, x: Tensor) -> Tensor:
        b, t, n, d = x.shape  # [B, T, 1 + P, width] float32, changed in place
        y = self.norm(x)
        y += interpolate_time_embedding(self.table, t)[:, None, :]
        qkv = self.qkv(y).view(b, t, n, 3, self.heads, d // self.heads)
        q, k, v = qkv.permute(3, 0, 2, 4, 1, 5)  # each [B, 1 + P, heads, T, width / heads]
        y = F.scaled_dot_product_attention(q, k, v).permute(0, 3, 1, 2, 4).reshape(b, t, n, d)  # [B, T, 1 + P, width]
        x += self.out(y)
        return x


class FastVideoEncoder:
    """Copies the weights of a ``VideoEncoder``; ``dtype`` is that of the matrix products."""

    @torch.no_grad()
    def __init__(self, encoder: VideoEncoder, dtype: torch.dtype = torch.float32) -> None:
        if not can_be_fast(encoder):
            raise ValueError(f"{type(encoder.visual).__name__} is not a standard open_clip VisionTransformer")
        if encoder.fold_alpha != 1.0:
            raise ValueError("fold the branch's weights first")
        visual = encoder.visual
        self.dtype = dtype
        self.head = encoder.head
        self.device = encoder.mean.device
        self.patch: int = visual.conv1.kernel_size[0]
        self.embed = _patch_embedding(encoder)
        self.positions = visual.positional_embedding[1:].detach().float()
        self.cls = (visual.class_embedding + visual.positional_embedding[0]).detach().float()
        self.norm_pre = _Norm(visual.ln_pre) if isinstance(visual.ln_pre, nn.LayerNorm) else None
        self.norm_post = _Norm(visual.ln_post)
        self.projection = None if visual.proj is None else visual.proj.detach().float()
        blocks = [_Block(block, dtype) for block in visual.transformer.resblocks]
        start = len(blocks) - max(1, len(encoder.branch))
        self.first_blocks, self.last_blocks = blocks[:start], blocks[start:]  # the branch is parallel to the last ones
        self.last_blocks[-1].prepare_first_token()
        self.branch = [(_Temporal(b.temporal, dtype), _Block(b.spatial.block, dtype)) for b in encoder.branch]
        if self.branch:
            self.branch[-1][1].prepare_first_token()
            self.tmp_embedding = encoder.tmp_embedding.detach().float()
            self.tmp_weight = torch.sigmoid(encoder.tmp_logit).detach()
        self.max_frames_per_pass = _MAX_FRAMES_PER_PASS_CPU if self.device.type == "cpu" else 1 << 30

    @torch.inference_mode()
    def encode_video(self, frames: Tensor) -> Tensor:
        b, t = frames.shape[:2]  # of [B, T, H, W, 3] uint8
        pictures = frames.to(self.device).flatten(0, 1)  # [B * T, H, W, 3]
        features, tokens = [], []
        for chunk in torch.split(pictures, self.max_frames_per_pass):
            x = self._embed(chunk)  # [n, 1 + P, width]
            for block in self.first_blocks:
                self._pause()
                x = block(x)
            if self.branch:
                tokens.append(x.clone())
            for block in self.last_blocks[:-1]:
                self._pause()
                x = block(x)
            self._pause()
            features.append(self._project(self.last_blocks[-1].first_token(x)[:, 0]))  # [n, D]
        frame_mean = torch.cat(features).view(b, t, -1).mean(dim=1)  # [B, D]
        if not self.branch:
            return self._normalize(frame_mean, frame_mean)
        x = torch.cat(tokens)  # [B * T, 1 + P, width]
        x[:, 0] += self.tmp_embedding
        for temporal, block in self.branch[:-1]:
            self._pause()
            x = temporal(x.view(b, t, *x.shape[1:])).flatten(0, 1)
            for chunk in torch.split(x, self.max_frames_per_pass):
                self._pause()
                block(chunk)  # in place
        temporal, block = self.branch[-1]
        x = temporal(x.view(b, t, *x.shape[1:])).flatten(0, 1)
        first_tokens = torch.cat([block.first_token(chunk)[:, 0] for chunk in torch.split(x, self.max_frames_per_pass)])
        tmp = self._project(first_tokens).view(b, t, -1).mean(dim=1)  # [B, D]
        return self._normalize(self.tmp_weight * tmp + (1 - self.tmp_weight) * frame_mean, frame_mean)

    def _pause(self) -> None:
        if self.device.type == "cpu":  # a CUDA graph would record what is done in between
            pause()

    def _normalize(self, feature: Tensor, frame_mean: Tensor) -> Tensor:  # unit vectors [B, D] or [B, 2D]
        return F.normalize(feature, dim=-1) if self.head is None else self.head(feature, frame_mean)

    def _embed(self, pictures: Tensor) -> Tensor:  # [n, H, W, 3] uint8 -> [n, 1 + P, width] float32
        n, height, width, _ = pictures.shape
        p = self.patch
        rows, columns = height // p, width // p
        patches = pictures.view(n, rows, p, columns, p, 3).transpose(2, 3).reshape(n, rows * columns, p * p * 3)
        x = torch.empty(n, 1 + rows * columns, len(self.cls), device=self.device)  # [n, 1 + P, width]
        x[:, 0] = self.cls
        torch.add(self.embed(patches.float()), self.positions, out=x[:, 1:])
        return x if self.norm_pre is None else self.norm_pre(x)

    def _project(self, x: Tensor) -> Tensor:  # [..., width] -> [..., D]
        x = self.norm_post(x)
        return x if self.projection is None else x @ self.projection


def _patch_embedding(encoder: VideoEncoder) -> PackedLinear:
    """The patch convolution as a product over raw pixels in the order [row, column, channel]:
    ``w * (x - mean) / std = (w / std) * x - sum(w * mean / std)``. Always float32: the product is cheap and the bias
    large."""
    conv = encoder.visual.conv1
    weight = conv.weight.double() / encoder.std.double()  # [width, 3, p, p] / [3, 1, 1]
    bias = -(weight * encoder.mean.double()).sum(dim=(1, 2, 3))
    if conv.bias is not None:
        bias = bias + conv.bias.double()
    return PackedLinear(weight.permute(0, 2, 3, 1).flatten(1).float(), bias.float())


def _fold_layer_scale(linear: nn.Linear, scale: nn.Module) -> tuple[Tensor, Tensor]:
    weight, bias = linear.weight, linear.bias
    gamma = getattr(scale, "gamma", None)
    return (weight, bias) if gamma is None else (weight * gamma[:, None], bias * gamma)
