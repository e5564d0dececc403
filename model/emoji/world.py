"""The procedural world: an unlimited supply of labelled images and videos, bit-identical for the same seed.

A video shows one scene and one or two sprites, each moving or still. Its labels are the nouns, their hypernyms and
keywords, the scene, the actions, and pairs of noun and action. Splits differ only in seeds and background banks.
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
MAX_SPRITES = 2
STILL_FRACTION = 0.12
# of the sprites, for each of: a pair of the column, the noun of a pair alone, the action of a pair alone
PAIR_FRACTION = 0.12


@dataclass(frozen=True, eq=False)
class Sample:
    """A batch of labelled videos, or images if T = 1."""

    frames: Tensor  # [B, T, 3, H, W] uint8 RGB on the device of the world; all others are on the CPU
    targets: Tensor  # [B, V] bool over ``World.labels``
    nouns: Tensor  # [B, S] index of each sprite's noun, -1 without a sprite
    actions: Tensor  # [B, S] index of each sprite's action, -1 if it is still or without a sprite


class _Composition(NamedTuple):
    is_present: Tensor  # [B, S] bool
    sprite: Tensor  # [B, S]
    style: Tensor  # [B, S]
    scene: Tensor  # [B]
    targets: Tensor  # [B, V] bool


class World:
    """``split`` ("train", "val" or "test") selects the background bank and the range of seeds.

    ``part`` is a part of training ("pretrain", "seen") or a column of the evaluation (``vidlex.model.emoji.protocol``).
    ``num_more_pairs`` appends labels for that many pairs; the videos stay the same. ``device`` renders the frames. All
    random numbers are drawn on the CPU: between devices only pixels may differ, by rounding.
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
        self.canvas = canvas
        self._salt = {"train": 1, "val": 2, "test": 3}[split]
        self.sheet = sheet if sheet is not None else load_sheet(cache)
        self._bank = scene_bank(96 if split == "train" else 24, seed=self._salt).to(device)
        self._sprites = self.sheet.sprites.to(device)
        self.device = device
        self.protocol = Protocol(self.sheet.nouns)
        self.column = self.protocol.column(part, num_more_pairs)
        self.labels = self.column.labels
        unseen = [style in UNSEEN_STYLES for style in self.sheet.styles]
        use_unseen = self.column.unseen_styles and any(unseen)
        self.styles = torch.tensor([i for i, is_unseen in enumerate(unseen) if is_unseen == use_unseen])

    def kinds(self) -> dict[str, str]:  # label -> noun, hypernym, keyword, scene, action or pair
        return dict(self.column.kinds)

    def pair_nouns(self) -> Tensor:  # [V] int64, -1 for labels that are no pair
        nouns = torch.full((len(self.labels),), -1)
        for (noun, _), label in self.column.pair_labels.items():
            nouns[label] = noun
        return nouns

    def generator(self, seed: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed * 8 + self._salt)

    def pictures(self, num: int, generator: torch.Generator) -> Sample:  # [num, 1, 3, H, W]
        noun = _choose(self.column.nouns, (num, MAX_SPRITES), generator)
        action = torch.full((num, MAX_SPRITES), STILL)
        times = torch.tensor([0.5])
        return self._sample(noun, action, times, generator, sizes=PICTURE_SIZES, single_sprite_fraction=0.5)

    def videos(
        self, num: int, num_frames: int, generator: torch.Generator, *, single_sprite_fraction: float = 0.5
    ) -> Sample:
        noun, action = self._sample_nouns_and_actions(num, generator)
        times = (torch.arange(num_frames) + 0.5) / num_frames
        return self._sample(
            noun, action, times, generator, sizes=VIDEO_SIZES, single_sprite_fraction=single_sprite_fraction
        )

    def video_targets(self, num: int, generator: torch.Generator) -> Tensor:
        """[num, V] bool: the targets of ``videos`` with the same generator, without rendering."""
        noun, action = self._sample_nouns_and_actions(num, generator)
        return self._compose(noun, action, generator, single_sprite_fraction=0.5).targets

    def _sample_nouns_and_actions(self, num: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:  # [num, S] each
        shape = (num, MAX_SPRITES)
        noun = _choose(self.column.nouns, shape, generator)
        action = _choose(self.column.actions, shape, generator)
        noun, action = self._oversample_pairs(noun, action, generator)
        is_still = torch.rand(shape, generator=generator) < STILL_FRACTION
        return noun, torch.where(is_still | self._is_excluded(noun, action), STILL, action)

    def _oversample_pairs(self, noun: Tensor, action: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Replace some sprites by a pair of the column, or by half of one (a hard negative of its label)."""
        pairs = self.column.pairs
        chance = torch.rand(noun.shape, generator=generator)
        if not len(pairs):
            return noun, action
        pair = _choose(pairs, noun.shape, generator)  # [num, S, 2]
        noun = torch.where(chance < 2 * PAIR_FRACTION, pair[..., 0], noun)
        replaces_action = (chance < PAIR_FRACTION) | ((chance >= 2 * PAIR_FRACTION) & (chance < 3 * PAIR_FRACTION))
        action = torch.where(replaces_action, pair[..., 1], action)
        return noun, action

    def _is_excluded(self, noun: Tensor, action: Tensor) -> Tensor:  # [num, S] bool
        excluded = self.column.excluded_pairs
        cells = [pair in excluded for pair in zip(noun.flatten().tolist(), action.flatten().tolist(), strict=True)]
        return torch.tensor(cells).view(noun.shape)

    def _sample(
        self,
        noun: Tensor,
        action: Tensor,
        times: Tensor,
        generator: torch.Generator,
        *,
        sizes: tuple[float, float],
        single_sprite_fraction: float,
    ) -> Sample:
        composition = self._compose(noun, action, generator, single_sprite_fraction)
        is_present = composition.is_present
        pose = sample_pose(action.reshape(-1), times, sizes, generator)  # [num * S, T]
        pose = _separate_sprites(pose, is_present, generator)
        background = crop_backgrounds(self._bank, composition.scene, self.canvas, generator)
        sprites = self._sprites[composition.style.to(self.device), composition.sprite.to(self.device)]
        frames = render(background, sprites, pose.to(self.device))  # sprites [num, S, 4, h, w]
        is_moving = is_present & (action != STILL)
        return Sample(
            frames, composition.targets, torch.where(is_present, noun, -1), torch.where(is_moving, action, -1)
        )

    def _compose(
        self, noun: Tensor, action: Tensor, generator: torch.Generator, single_sprite_fraction: float
    ) -> _Composition:
        num = len(action)
        is_single = torch.rand(num, generator=generator) < single_sprite_fraction
        is_present = torch.ones(num, MAX_SPRITES, dtype=torch.bool)
        is_present[is_single, 1:] = False
        sprite = self._choose_sprites(noun, generator)
        style = _choose(self.styles, (num, 1), generator).expand(num, MAX_SPRITES)
        scene = torch.randint(0, len(SCENES), (num,), generator=generator)
        targets = self._targets(noun, action, scene, is_present)
        return _Composition(is_present, sprite, style, scene, targets)

    def _targets(self, noun: Tensor, action: Tensor, scene: Tensor, is_present: Tensor) -> Tensor:  # [num, V] bool
        column = self.column
        is_moving = is_present & (action != STILL)
        targets = column.scene_labels[scene].clone()
        for s in range(MAX_SPRITES):
            targets |= column.noun_labels[noun[:, s]] & is_present[:, s, None]
            targets |= column.action_labels[action[:, s].clamp_max(len(ACTIONS) - 1)] & is_moving[:, s, None]
        if column.pair_labels:
            for i, s in is_moving.nonzero().tolist():
                label = column.pair_labels.get((int(noun[i, s]), int(action[i, s])))
                if label is not None:
                    targets[i, label] = True
        return targets

    def _choose_sprites(self, noun: Tensor, generator: torch.Generator) -> Tensor:
        nouns = self.sheet.sprite_noun  # sorted
        first = torch.searchsorted(nouns, noun)
        count = torch.searchsorted(nouns, noun, right=True) - first
        return first + (torch.rand(noun.shape, generator=generator) * count).long()


def _choose(pool: Tensor, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return pool[torch.randint(0, len(pool), shape, generator=generator)]


def _separate_sprites(pose: Pose, is_present: Tensor, generator: torch.Generator) -> Pose:
    """[num * S, T] -> [num, S, T]: two sprites move to opposite halves, absent ones become invisible."""
    num = len(is_present)
    x, y, size, angle, alpha, stretch = (
        v.reshape(num, MAX_SPRITES, -1) for v in (pose.x, pose.y, pose.size, pose.angle, pose.alpha, pose.stretch)
    )
    has_two = is_present.all(dim=1)[:, None, None]
    side = (torch.randint(0, 2, (num, 1), generator=generator) * 2 - 1) * 0.45
    offset = torch.stack((side, -side), dim=1)  # [num, 2, 1]
    is_horizontal = (torch.rand(num, 1, 1, generator=generator) < 0.6) & has_two
    x = torch.where(is_horizontal, x * 0.5 + offset, x)
    y = torch.where(has_two & ~is_horizontal, y * 0.5 + offset, y)
    size = torch.where(has_two, size * 0.85, size)
    return Pose(x, y, size, angle, alpha * is_present[..., None], stretch)
