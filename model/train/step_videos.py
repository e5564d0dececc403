"""The videos of the training steps, and where they come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vidlex.model.emoji.world import Sample, World
from vidlex.model.train.fit_config import FitConfig
from vidlex.model.train.processes import WHOLE, Part, processes_of
from vidlex.model.video.encoder import Trunk


@dataclass(frozen=True, eq=False)
class StepBatch:
    """What one part of a step learns from. Targets are over ``World.labels``."""

    frames: Tensor | Trunk
    """[b, T, 3, H, W] uint8: the part's videos; or what the frozen tower made of them."""
    targets: Tensor
    """[b, V] bool."""
    all_targets: Tensor
    """[B, V] bool: of all videos of the step, so that every part chooses the same labels."""
    generator: torch.Generator
    """Draws the rest of the step, the same for every part."""


class VideoSource(Protocol):
    """Where the videos of the steps come from."""

    def draw(self, step: int, part: Part = WHOLE) -> StepBatch:
        """The part's videos; the same for the same step."""
        ...


class StepVideos:
    """The videos of the training steps, the same for every method and however a step is divided.

    Each video has a generator of its own, seeded by step and place in the batch. A process draws only its own; what
    the others' show is exchanged.
    """

    def __init__(self, world: World, config: FitConfig, num_frames: int) -> None:
        self.world, self.config, self.num_frames = world, config, num_frames
        self._drawn: tuple[int, list[Sample], Tensor] | None = None

    def draw(self, step: int, part: Part = WHOLE) -> StepBatch:
        size = self.config.batch_size
        own = part.rows_of_process(size)
        if self._drawn is None or self._drawn[0] != step:
            videos = [self._video(step, place) for place in range(own.start, own.stop)]
            targets = torch.zeros(size, len(self.world.labels), dtype=torch.uint8)
            targets[own] = torch.cat([video.targets for video in videos]).to(torch.uint8)
            targets = processes_of(torch.device(self.config.device).type).sum(targets).bool()
            self._drawn = (step, videos, targets)
        _, videos, targets = self._drawn
        rows = part.rows(size)
        frames = torch.cat([video.frames for video in videos[rows.start - own.start : rows.stop - own.start]])
        generator = torch.Generator().manual_seed(self.config.seed * 10_000_019 + 40_000_000 + step)
        return StepBatch(frames, targets[rows], targets, generator)

    def _video(self, step: int, place: int) -> Sample:
        config = self.config
        generator = self.world.generator(config.seed * 10_000_019 + 50_000_000 + step * config.batch_size + place)
        eased = min(1.0, step / max(1.0, config.one_sprite_until * config.num_joint_steps))
        return self.world.videos(1, self.num_frames, generator, one_sprite=1.0 - 0.5 * eased)
