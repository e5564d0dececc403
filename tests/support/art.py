"""A small sprite sheet of coloured squares, without downloaded art."""

from __future__ import annotations

import torch

from vidlex.model.emoji.assets import SPRITE_SIZE, SpriteSheet
from vidlex.model.emoji.nouns import Noun


def tiny_sheet() -> SpriteSheet:
    """Three nouns, the second with two sprites, in two styles."""
    nouns = (
        Noun("ball", ("toy",), ("a.png",)),
        Noun("block", ("toy", "shape"), ("b.png", "c.png")),
        Noun("cone", ("shape",), ("d.png",)),
    )
    sprites = torch.zeros(2, 4, 4, SPRITE_SIZE, SPRITE_SIZE, dtype=torch.uint8)
    for style in range(2):
        for sprite in range(4):
            sprites[style, sprite, sprite % 3, 8:-8, 8:-8] = 255 - 60 * style
            sprites[style, sprite, 3, 8:-8, 8:-8] = 255
    return SpriteSheet(nouns, ("one", "two"), sprites, torch.tensor([0, 1, 1, 2]))
