"""The procedural world: endless labelled pictures and videos, the same bits for the same seed.

A video shows one scene and one or two sprites, each with an action or at rest. Its labels are the nouns, their
hypernyms and keywords, the scene, the actions, and pairs of noun and action. Splits differ by seed alone: held-out
videos show known things in new backgrounds (a bank of its own), places and motions.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from vidlex.model.emoji.assets import SpriteSheet, load_sheet
from vidlex.model.emoji.motion import STILL, Pose, sample_pose
from vidlex.model.emoji.protocol import UNSEEN_STYLES, Part, Protocol
from vidlex.model.emoji.render import crop_backgrounds, render
from vidlex.model.emoji.scenes import scene_bank
from vidlex.model.emoji.vocabulary import ACTIONS, SCENES

PICTURE_SIZES = (0.28, 0.62)
VIDEO_SIZES = (0.34, 0.58)
PAIR_PART = 0.12
"""Part of the sprites that show a pair of their column; as many its noun alone, as many its action alone."""


@dataclass(frozen=True, eq=False)
class Sample:
    """A batch of labelled videos (or pictures: T = 1)."""

    frames: Tensor
    """[B, T, 3, H, W] uint8 RGB, on the world's device."""
    targets: Tensor
    """[B, V] bool over ``World.labels``; this and all that follows on the CPU."""
    times: Tensor
    """[T] in 0..1 of the video."""
    nouns: Tensor
    """[B, S] index of each sprite's noun, -1 where there is none."""
    actions: Tensor
    """[B, S] index of each sprite's action, -1 where it rests or there is none."""


class _Cast(NamedTuple):
    """Who plays in some videos."""

    present: Tensor
    """[B, S] bool."""
    sprite: Tensor
    """[B, S]."""
    style: Tensor
    """[B, S]."""
    scene: Tensor
    """[B]."""
    targets: Tensor
    """[B, V] bool."""


class World:
    """``split`` is "train", "val" or "test": it chooses the backgrounds and keeps the seeds apart.

    ``part`` is what training sees ("pretrain", "seen") or a column of the evaluation (``vidlex.model.emoji.protocol``).
    ``num_more_pairs`` adds labels of that many pairs behind the part's own; the same seeds show the same videos.
    ``device`` draws the frames: who plays and how is decided on the CPU, so that the same seed shows the same
    everywhere; pixels may differ by rounding between devices.
    """

    def __init__(
        self,
        cache: Path,
        *,
        canvas: int = 96,
        split: str = "train",
        part: Part = "seen",
        num_more_pairs: int = 0,
        sheet: SpriteSheet | None = None,
        device: str = "cpu",
    ) -> None:
        salt = {"train": 1, "val": 2, "test": 3}[split]
        self.canvas = canvas
        self.salt = salt
        self.sheet = sheet if sheet is not None else load_sheet(cache)
        self._bank = scene_bank(96 if split == "train" else 24, seed=salt).to(device)
        self._sprites = self.sheet.sprites.to(device)
        self.device = device
        self.protocol = Protocol(self.sheet.nouns)
        self.column = self.protocol.column(part, num_more_pairs)
        self.labels = self.column.labels
        unseen = [style in UNSEEN_STYLES for style in self.sheet.styles]
        wanted = self.column.unseen_styles and any(unseen)
        self.styles = torch.tensor([i for i, is_unseen in enumerate(unseen) if is_unseen == wanted])

    def kinds(self) -> dict[str, str]:
        """Label -> "noun", "hypernym", "keyword", "scene", "action" or "pair"."""
        return dict(self.column.kinds)

    def thing_of_pairs(self) -> Tensor:
        """[V] int64: the noun of each label that is a pair, -1 for other labels."""
        things = torch.full((len(self.labels),), -1)
        for (noun, _), label in self.column.pair_truth.items():
            things[label] = noun
        return things

    def generator(self, seed: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed * 8 + self.salt)

    def pictures(self, num: int, generator: torch.Generator, *, max_sprites: int = 2) -> Sample:
        """Still pictures [num, 1, 3, H, W]: what web images are to CLIP. Their targets hold no action."""
        still = torch.full((num, max_sprites), STILL)
        noun = self._draw(self.column.nouns, (num, max_sprites), generator)
        return self._sample(noun, still, torch.tensor([0.5]), sizes=PICTURE_SIZES, generator=generator)

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
        noun, action = self._things(num, generator, max_sprites, at_rest)
        times = (torch.arange(num_frames) + 0.5) / num_frames
        return self._sample(noun, action, times, sizes=VIDEO_SIZES, generator=generator, one_sprite=one_sprite)

    def targets_of_videos(self, num: int, generator: torch.Generator) -> Tensor:
        """[num, V] bool: the targets of ``videos`` by the same generator, without drawing them."""
        noun, action = self._things(num, generator)
        return self._cast(noun, action, generator, one_sprite=0.5).targets

    def _things(
        self, num: int, generator: torch.Generator, max_sprites: int = 2, at_rest: float = 0.12
    ) -> tuple[Tensor, Tensor]:
        """Noun and action of each sprite, [num, max_sprites] each."""
        shape = (num, max_sprites)
        noun = self._draw(self.column.nouns, shape, generator)
        action = self._draw(self.column.actions, shape, generator)
        noun, action = self._favour_pairs(noun, action, generator)
        rests = torch.rand(shape, generator=generator) < at_rest
        return noun, torch.where(rests | self._forbidden(noun, action), STILL, action)

    def _draw(self, pool: Tensor, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return pool[torch.randint(0, len(pool), shape, generator=generator)]

    def _favour_pairs(self, noun: Tensor, action: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Some sprites are one of the column's pairs, others half of one: hard negatives of its label."""
        pairs = self.column.pairs
        chance = torch.rand(noun.shape, generator=generator)
        if not len(pairs):
            return noun, action
        pair = self._draw(pairs, noun.shape, generator)  # [num, S, 2]
        noun = torch.where(chance < 2 * PAIR_PART, pair[..., 0], noun)
        moves_so = (chance < PAIR_PART) | ((chance >= 2 * PAIR_PART) & (chance < 3 * PAIR_PART))
        action = torch.where(moves_so, pair[..., 1], action)
        return noun, action

    def _forbidden(self, noun: Tensor, action: Tensor) -> Tensor:
        """[num, S] bool: pairs that this column never shows."""
        forbidden = self.column.forbidden
        cells = [pair in forbidden for pair in zip(noun.flatten().tolist(), action.flatten().tolist(), strict=True)]
        return torch.tensor(cells).view(noun.shape)

    def _sample(
        self,
        noun: Tensor,
        action: Tensor,
        times: Tensor,
        *,
        sizes: tuple[float, float],
        generator: torch.Generator,
        one_sprite: float = 0.5,
    ) -> Sample:
        num, max_sprites = action.shape
        cast = self._cast(noun, action, generator, one_sprite)
        present = cast.present
        pose = sample_pose(action.reshape(-1), times, sizes, generator)  # [num * S, T]
        pose = _spread(pose, num, max_sprites, present, generator)
        background = crop_backgrounds(self._bank, cast.scene, self.canvas, generator)
        sprites = self._sprites[cast.style.to(self.device), cast.sprite.to(self.device)]  # [num, S, 4, h, w]
        frames = render(background, sprites, pose.to(self.device))
        shown = torch.where(present, noun, -1)
        moving = present & (action != STILL)
        return Sample(frames, cast.targets, times, shown, torch.where(moving, action, -1))

    def _cast(self, noun: Tensor, action: Tensor, generator: torch.Generator, one_sprite: float) -> _Cast:
        num, max_sprites = action.shape
        single = torch.rand(num, generator=generator) < one_sprite
        present = torch.ones(num, max_sprites, dtype=torch.bool)
        present[single, 1:] = False
        sprite = self._one_sprite_of(noun, generator)
        style = self._draw(self.styles, (num, 1), generator).expand(num, max_sprites)
        scene = torch.randint(0, len(SCENES), (num,), generator=generator)
        targets = self._targets(noun, action, scene, present, present & (action != STILL))
        return _Cast(present, sprite, style, scene, targets)

    def _targets(self, noun: Tensor, action: Tensor, scene: Tensor, present: Tensor, moving: Tensor) -> Tensor:
        """[num, V] bool: what the sprites, their motions and the scene make true."""
        column = self.column
        targets = column.scene_truth[scene].clone()
        for s in range(noun.shape[1]):
            targets |= column.noun_truth[noun[:, s]] & present[:, s, None]
            targets |= column.action_truth[action[:, s].clamp_max(len(ACTIONS) - 1)] & moving[:, s, None]
        if column.pair_truth:
            for i, s in moving.nonzero().tolist():
                label = column.pair_truth.get((int(noun[i, s]), int(action[i, s])))
                if label is not None:
                    targets[i, label] = True
        return targets

    def _one_sprite_of(self, noun: Tensor, generator: torch.Generator) -> Tensor:
        """A random sprite among those of each noun, same shape as ``noun``."""
        owner = self.sheet.sprite_noun  # sorted by noun
        first = torch.searchsorted(owner, noun)
        count = torch.searchsorted(owner, noun, right=True) - first
        return first + (torch.rand(noun.shape, generator=generator) * count).long()


def _spread(pose: Pose, num: int, max_sprites: int, present: Tensor, generator: torch.Generator) -> Pose:
    """[num * S, T] -> [num, S, T]: two sprites go to opposite halves, absent ones become invisible."""
    x, y, size, angle, alpha, stretch = (
        v.reshape(num, max_sprites, -1) for v in (pose.x, pose.y, pose.size, pose.angle, pose.alpha, pose.stretch)
    )
    if max_sprites == 2:
        both = present.all(dim=1)[:, None, None]
        side = (torch.randint(0, 2, (num, 1), generator=generator) * 2 - 1) * 0.45
        offset = torch.stack((side, -side), dim=1)  # [num, 2, 1]
        horizontal = (torch.rand(num, 1, 1, generator=generator) < 0.6) & both
        x = torch.where(horizontal, x * 0.5 + offset, x)
        y = torch.where(both & ~horizontal, y * 0.5 + offset, y)
        size = torch.where(both, size * 0.85, size)
    return Pose(x, y, size, angle, alpha * present[..., None], stretch)
