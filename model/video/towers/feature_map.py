"""Convolutional towers, with new transformer blocks after their last feature map. All of it is beyond the paper.

EfficientNet, ConvNeXt, MobileCLIP's FastViT, Swin and other timm models with a feature map; open_clip's ResNets.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from vidlex.model.video.towers.new_block import HEAD_WIDTH, NewBlock, attention_width


class FeatureMapTower(ABC):
    """The N tokens are the positions of a square feature map, row by row; all are pooled."""

    blocks: Sequence[nn.Module] = ()
    pooled = slice(None)

    def __init__(self, width: int) -> None:
        self.width = width
        self.attention_width = attention_width(width)
        self.num_heads = max(1, self.attention_width // HEAD_WIDTH)

    @abstractmethod
    def feature_map(self, pixels: Tensor) -> Tensor:  # [n, 3, H, W] -> [n, width, h, h]
        ...

    @abstractmethod
    def head(self, feature_map: Tensor) -> Tensor:  # [n, width, h, h] -> [n, D]
        ...

    def embed(self, pixels: Tensor) -> Tensor:
        return self.feature_map(pixels).flatten(2).transpose(1, 2)

    def run_block(self, block: nn.Module, x: Tensor, *, depth: int, last: bool = False) -> Tensor:
        out: Tensor = block(x)
        return out

    def branch_block(self, depth: int) -> nn.Module:
        return NewBlock(self.width)

    def pool(self, x: Tensor) -> Tensor:
        n, num_tokens, width = x.shape
        side = math.isqrt(num_tokens)
        return self.head(x.transpose(1, 2).reshape(n, width, side, side))


class TimmFeatureMap(FeatureMapTower):
    """``trunk`` is a timm model with a feature map; ``projection`` follows its own head (open_clip's projection)."""

    def __init__(self, trunk: Any, projection: nn.Module) -> None:
        super().__init__(int(trunk.num_features))
        self.trunk, self.projection = trunk, projection
        self.channels_last = getattr(trunk, "output_fmt", "NCHW") == "NHWC"

    def feature_map(self, pixels: Tensor) -> Tensor:
        x: Tensor = self.trunk.forward_features(pixels)
        if self.channels_last and x.ndim == 4:
            x = x.permute(0, 3, 1, 2)
        if x.ndim != 4 or x.shape[1] != self.width or x.shape[2] != x.shape[3]:
            name = type(self.trunk).__name__
            raise ValueError(f"{name} gives {list(x.shape)}, not a square feature map of {self.width} channels")
        return x

    def head(self, feature_map: Tensor) -> Tensor:
        if self.channels_last:
            feature_map = feature_map.permute(0, 2, 3, 1)
        features: Tensor = self.projection(self.trunk.forward_head(feature_map))
        return features


class OpenClipResNet(FeatureMapTower):
    def __init__(self, visual: Any) -> None:
        super().__init__(int(visual.attnpool.c_proj.in_features))
        self.visual = visual

    def feature_map(self, pixels: Tensor) -> Tensor:
        visual = self.visual
        x: Tensor = visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(pixels)))))
        return x

    def head(self, feature_map: Tensor) -> Tensor:
        features: Tensor = self.visual.attnpool(feature_map)
        return features
