"""The procedural world: endless labelled pictures and videos, the same bits for the same seed.

A video shows one scene and one or two sprites, each with an action or at rest. Its labels are the nouns, their
hypernyms, the scene and the actions. Splits differ by seed alone: held-out videos show known things in new
backgrounds (a bank of its own), places and motions.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from model.data.emoji.assets import SpriteSheet, load_sheet
from model.data.emoji.motion import STILL, Pose, sample_pose
from model.data.emoji.render import crop_backgrounds, render
from model.data.emoji.scenes import scene_bank
from model.data.emoji.vocabulary import ACTIONS, SCENES, all_labels

PICTURE_SIZES = (0.28, 0.62)
VIDEO_SIZES = (0.34, 0.58)


@dataclass(frozen=True, eq=False)
class Sample:
    """A batch of labelled videos (or pictures: T = 1)."""

    frames: Tensor
    """[B, T, 3, H, W] uint8 RGB."""
    targets: Tensor
    """[B, V] bool over ``World.labels``."""
    times: Tensor
    """[T] in 0..1 of the video."""
    nouns: Tensor
    """[B, S] index of each sprite's noun, -1 where there is none."""


class World:
    """``split`` is "train", "val" or "test": it chooses the backgrounds and keeps the seeds apart."""

    def __init__(
        self, cache: Path, *, canvas: int = 96, split: str = "train", sheet: SpriteSheet | None = None
    ) -> None:
        salt = {"train": 1, "val": 2, "test": 3}[split]
        self.canvas = canvas
        self.salt = salt
        self.sheet = sheet if sheet is not None else load_sheet(cache)
        self.bank = scene_bank(96 if split == "train" else 24, seed=salt)
        self.labels = all_labels(self.sheet.nouns)
        self.noun_labels = self._noun_label_matrix()

    def _noun_label_matrix(self) -> Tensor:
        """[nouns, V] bool: the noun itself and its hypernyms."""
        place = {name: index for index, name in enumerate(self.labels)}
        matrix = torch.zeros(len(self.sheet.nouns), len(self.labels), dtype=torch.bool)
        for row, noun in enumerate(self.sheet.nouns):
            for name in (noun.name, *noun.hypernyms):
                matrix[row, place[name]] = True
        return matrix

    def kinds(self) -> dict[str, str]:
        """Label -> "noun", "hypernym", "scene" or "action"."""
        nouns = {noun.name for noun in self.sheet.nouns}
        hypernyms = {h for noun in self.sheet.nouns for h in noun.hypernyms}
        kinds = dict.fromkeys(self.labels, "noun")
        kinds.update(dict.fromkeys(hypernyms - nouns, "hypernym"))
        kinds.update(dict.fromkeys(SCENES, "scene"))
        kinds.update(dict.fromkeys(ACTIONS, "action"))
        return kinds

    def generator(self, seed: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed * 8 + self.salt)

    def pictures(self, num: int, generator: torch.Generator, *, max_sprites: int = 2) -> Sample:
        """Still pictures [num, 1, 3, H, W]: what web images are to CLIP. Their targets hold no action."""
        still = torch.full((num, max_sprites), STILL)
        return self._sample(still, torch.tensor([0.5]), PICTURE_SIZES, generator)

    def videos(
        self,
        num: int,
        num_frames: int,
        generator: torch.Generator,
        *,
        max_sprites: int = 2,
        one_sprite: float = 0.5,
        at_rest: float = 0.12,
    ) -> Sample:
        """Videos of ``num_frames`` uniform frames. ``one_sprite``: part of videos with a single sprite."""
        action = torch.randint(0, len(ACTIONS), (num, max_sprites), generator=generator)
        rests = torch.rand(num, max_sprites, generator=generator) < at_rest
        action = torch.where(rests, STILL, action)
        times = (torch.arange(num_frames) + 0.5) / num_frames
        return self._sample(action, times, VIDEO_SIZES, generator, one_sprite)

    def _sample(
        self,
        action: Tensor,
        times: Tensor,
        sizes: tuple[float, float],
        generator: torch.Generator,
        one_sprite: float = 0.5,
    ) -> Sample:
        num, max_sprites = action.shape
        sheet = self.sheet
        single = torch.rand(num, generator=generator) < one_sprite
        present = torch.ones(num, max_sprites, dtype=torch.bool)
        present[single, 1:] = False
        noun = torch.randint(0, len(sheet.nouns), (num, max_sprites), generator=generator)
        sprite = self._one_sprite_of(noun, generator)
        style = torch.randint(0, len(sheet.styles), (num, 1), generator=generator).expand(num, max_sprites)
        scene = torch.randint(0, len(SCENES), (num,), generator=generator)

        pose = sample_pose(action.reshape(-1), times, sizes, generator)  # [num * S, T]
        pose = _spread(pose, num, max_sprites, present, generator)
        background = crop_backgrounds(self.bank, scene, self.canvas, generator)
        frames = render(background, sheet.sprites[style, sprite], pose)

        targets = torch.zeros(num, len(self.labels), dtype=torch.bool)
        for s in range(max_sprites):
            targets |= self.noun_labels[noun[:, s]] & present[:, s, None]
        first_scene = len(self.labels) - len(ACTIONS) - len(SCENES)
        targets[torch.arange(num), first_scene + scene] = True
        moving = present & (action != STILL)
        rows, columns = moving.nonzero(as_tuple=True)
        targets[rows, len(self.labels) - len(ACTIONS) + action[rows, columns]] = True
        return Sample(frames, targets, times, torch.where(present, noun, -1))

    def _one_sprite_of(self, noun: Tensor, generator: torch.Generator) -> Tensor:
        """A random sprite among those of each noun, same shape as ``noun``."""
        owner = self.sheet.sprite_noun  # sorted by noun
        first = torch.searchsorted(owner, noun)
        count = torch.searchsorted(owner, noun, right=True) - first
        return first + (torch.rand(noun.shape, generator=generator) * count).long()


def _spread(pose: Pose, num: int, max_sprites: int, present: Tensor, generator: torch.Generator) -> Pose:
    """[num * S, T] -> [num, S, T]: two sprites go to opposite halves, absent ones become invisible."""
    x, y, size, angle, alpha = (
        v.reshape(num, max_sprites, -1) for v in (pose.x, pose.y, pose.size, pose.angle, pose.alpha)
    )
    if max_sprites == 2:
        both = present.all(dim=1)[:, None, None]
        side = (torch.randint(0, 2, (num, 1), generator=generator) * 2 - 1) * 0.45
        offset = torch.stack((side, -side), dim=1)  # [num, 2, 1]
        horizontal = (torch.rand(num, 1, 1, generator=generator) < 0.6) & both
        x = torch.where(horizontal, x * 0.5 + offset, x)
        y = torch.where(both & ~horizontal, y * 0.5 + offset, y)
        size = torch.where(both, size * 0.85, size)
    return Pose(x, y, size, angle, alpha * present[..., None])
