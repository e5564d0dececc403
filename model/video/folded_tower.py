"""Inference-only implementation of ``StillMotionEncoder``, equal up to rounding.

Every batch normalisation is folded into the convolution before it, pictures stay in the order [row, column, channel],
and on a CPU a convolution, its bias, its activation and a block's residual are one operation of oneDNN, on weights in
oneDNN's own layout (the operators of torch.compile's CPU backend).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidlex.model.packed_linear import cpu_supports_bfloat16
from vidlex.model.video.encoder import VideoEncoder
from vidlex.model.video.pauses import pause
from vidlex.model.video.still_motion import MOTION_STAGE, Maps, StillMotionEncoder


def can_fold(encoder: VideoEncoder) -> bool:
    """Whether all blocks of the tower are those of EfficientNet-Lite: convolutions with ReLU6 or without activation."""
    if not isinstance(encoder, StillMotionEncoder):
        return False
    tower = encoder.visual
    try:
        pairs = [(tower.conv_stem, tower.bn1), (tower.conv_head, tower.bn2)]
        pairs += [pair for stage in tower.blocks for block in stage for pair in _pairs(block)]
    except (AttributeError, ValueError):
        return False
    return all(_is_plain(conv, norm) for conv, norm in pairs)


class FoldedEncoder:
    """Copies the tower's weights; ``dtype`` is that of the convolutions."""

    @torch.no_grad()
    def __init__(self, encoder: StillMotionEncoder, dtype: torch.dtype = torch.float32) -> None:
        if not can_fold(encoder):
            raise ValueError("the tower is not an EfficientNet-Lite")
        self.encoder, self.dtype, self.device = encoder, dtype, encoder.mean.device
        tower = encoder.visual
        self.stem = _Convolution(tower.conv_stem, tower.bn1, dtype)
        self.blocks = [
            (stage, [_Convolution(conv, norm, dtype) for conv, norm in _pairs(block)], bool(block.has_skip))
            for stage, blocks in enumerate(tower.blocks)
            for block in blocks
        ]
        self.head = _Convolution(tower.conv_head, tower.bn2, dtype)

    @torch.inference_mode()
    def encode_video(self, frames: Tensor) -> Tensor:
        b, t = frames.shape[:2]  # of [B, T, H, W, 3] uint8
        pictures = frames.to(self.device).flatten(0, 1).permute(0, 3, 1, 2)
        parts = []
        for part in torch.split(pictures, self.encoder.max_frames_per_pass):
            parts.append(self.run_tower(part))
            if self.device.type == "cpu":
                pause()
        return self.encoder.combine(parts, b, t)

    def run_tower(self, pictures: Tensor) -> Maps:  # [n, 3, H, W] uint8
        x = self.stem(self.encoder.to_pixels(pictures).to(self.dtype))
        motion = x.new_zeros(len(x), 0)
        for stage, convolutions, has_skip in self.blocks:
            y = x
            for convolution in convolutions[:-1]:
                y = convolution(y)
            x = convolutions[-1](y, x if has_skip else None)
            if stage == MOTION_STAGE and self.encoder.motion is not None:
                motion = x
        return Maps(self.head(x).float().mean((2, 3)), motion)


class _Convolution:
    """Convolution, folded normalisation and activation, and the sum with a block's input if it is given."""

    def __init__(self, conv: nn.Conv2d, norm: Any, dtype: torch.dtype) -> None:
        scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        weight = conv.weight.double() * scale[:, None, None, None]
        bias = norm.bias.double() - norm.running_mean.double() * scale
        if conv.bias is not None:
            bias = bias + conv.bias.double() * scale
        self.is_bounded = isinstance(norm.act, nn.ReLU6)
        self.stride, self.groups, self.channels = conv.stride[0], conv.groups, conv.in_channels
        self.kernel_size = conv.kernel_size[0]
        self.padding = None if type(conv) is not nn.Conv2d else int(conv.padding[0])  # None: TensorFlow's "same"
        self.weight, self.bias = weight.to(dtype), bias.to(dtype)
        self._packed: dict[tuple[int, int], tuple[Tensor, int]] = {}  # by the size of the input
        self.is_fused = self.weight.device.type == "cpu" and _has_fused_operators(dtype)

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        size = (x.shape[2], x.shape[3])
        if size not in self._packed:
            self._packed[size] = self._pack(size)
        weight, padding = self._packed[size]
        if not self.is_fused:
            y = F.conv2d(x, weight, self.bias, self.stride, padding, 1, self.groups)
            y = y.clamp_(0, 6) if self.is_bounded else y
            return y if residual is None else y.add_(residual)
        ops = torch.ops.mkldnn
        geometry = ([padding] * 2, [self.stride] * 2, [1, 1], self.groups)
        if residual is not None and not self.is_bounded:
            summed: Tensor = ops._convolution_pointwise.binary(
                x, residual, weight, self.bias, *geometry, "add", None, None, [], None
            )
            return summed
        activation = ("hardtanh", [0, 6]) if self.is_bounded else ("none", [])
        out: Tensor = ops._convolution_pointwise(x, weight, self.bias, *geometry, *activation, "")
        return out if residual is None else out.add_(residual)

    def _pack(self, size: tuple[int, int]) -> tuple[Tensor, int]:
        """Weight and padding for inputs of ``size``. "same" pads one more row at the end than at the beginning for some
        sizes: a row of zeros at the beginning of the kernel makes the padding equal without a copy of the input."""
        before, after = self._paddings(size)
        weight = F.pad(self.weight, (after - before, 0, after - before, 0))
        weight = weight.contiguous(memory_format=torch.channels_last)
        if self.is_fused:
            weight = torch.ops.mkldnn._reorder_convolution_weight(
                weight, [after] * 2, [self.stride] * 2, [1, 1], self.groups, [1, self.channels, *size]
            )
        return weight, after

    def _paddings(self, size: tuple[int, int]) -> tuple[int, int]:  # at the beginning and at the end of both axes
        if self.padding is not None:
            return self.padding, self.padding
        totals = {max(0, (-(-side // self.stride) - 1) * self.stride + self.kernel_size - side) for side in size}
        if len(totals) > 1:
            raise NotImplementedError("rows and columns are padded differently")
        total = totals.pop()
        return total // 2, total - total // 2


def _pairs(block: Any) -> Iterator[tuple[Any, Any]]:
    """Convolutions of a block and their normalisations, in order. Raises ValueError for another kind of block."""
    kind = type(block).__name__
    if kind not in ("InvertedResidual", "DepthwiseSeparableConv") or not _is_identity(block.se, block.aa):
        raise ValueError(f"unknown block {kind}")
    if kind == "InvertedResidual":
        yield from ((block.conv_pw, block.bn1), (block.conv_dw, block.bn2), (block.conv_pwl, block.bn3))
    else:
        yield from ((block.conv_dw, block.bn1), (block.conv_pw, block.bn2))


def _is_plain(conv: Any, norm: Any) -> bool:
    is_known = type(conv).__name__ in ("Conv2d", "Conv2dSame") and len(set(conv.kernel_size)) == 1
    is_square = is_known and len(set(conv.stride)) == 1 and set(conv.dilation) == {1}
    has_padding = type(conv).__name__ == "Conv2dSame" or (is_square and len(set(conv.padding)) == 1)
    is_folded = type(norm).__name__ == "BatchNormAct2d" and _is_identity(norm.drop)
    return is_square and has_padding and is_folded and isinstance(norm.act, nn.ReLU6 | nn.Identity)


def _is_identity(*modules: Any) -> bool:
    return all(isinstance(module, nn.Identity) for module in modules)


def _has_fused_operators(dtype: torch.dtype) -> bool:
    ops = torch.ops.mkldnn
    has_ops = hasattr(ops, "_reorder_convolution_weight") and hasattr(ops, "_convolution_pointwise")
    is_supported = dtype == torch.float32 or (dtype == torch.bfloat16 and cpu_supports_bfloat16())
    return has_ops and is_supported and bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
