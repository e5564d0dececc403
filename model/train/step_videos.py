from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vidlex.model.emoji.world import Sample, World
from vidlex.model.seeds import Stream, generator_for, seed_for
from vidlex.model.train.fit_config import FitConfig
from vidlex.model.train.loop.processes import WHOLE_BATCH, MicroBatch, process_group
from vidlex.model.video.encoder import Trunk


@dataclass(frozen=True, eq=False)
class StepBatch:
    frames: Tensor | Trunk  # [b, T, 3, H, W] uint8, or the frozen tower's output
    targets: Tensor  # [b, V] bool, over ``World.labels``
    all_targets: Tensor  # [B, V] bool, of all videos of the step: every micro-batch samples the same labels
    generator: torch.Generator  # for other random numbers of the step; in the same state for every micro-batch


class VideoSource(Protocol):
    def draw(self, step: int, micro_batch: MicroBatch = WHOLE_BATCH) -> StepBatch:
        """Depends on the arguments alone."""
        ...


class RenderedVideos:
    """The same videos for every method and for every division of a step.

    Each video has its own generator, seeded by step and position in the batch. A process renders its own videos only;
    the processes exchange the targets.
    """

    def __init__(self, world: World, config: FitConfig, num_frames: int) -> None:
        self.world, self.config, self.num_frames = world, config, num_frames
        self._drawn: tuple[int, list[Sample], Tensor] | None = None

    def draw(self, step: int, micro_batch: MicroBatch = WHOLE_BATCH) -> StepBatch:
        size = self.config.batch_size
        own = micro_batch.rows_of_process(size)
        if self._drawn is None or self._drawn[0] != step:
            videos = [self._video(step, position) for position in range(own.start, own.stop)]
            targets = torch.zeros(size, len(self.world.labels), dtype=torch.uint8)
            targets[own] = torch.cat([video.targets for video in videos]).to(torch.uint8)
            targets = process_group(torch.device(self.config.device).type).sum(targets).bool()
            self._drawn = (step, videos, targets)
        _, videos, targets = self._drawn
        rows = micro_batch.rows(size)
        frames = torch.cat([video.frames for video in videos[rows.start - own.start : rows.stop - own.start]])
        generator = generator_for(self.config.seed, Stream.JOINT_STEP, step)
        return StepBatch(frames, targets[rows], targets, generator)

    def _video(self, step: int, position: int) -> Sample:
        config = self.config
        index = step * config.batch_size + position
        generator = self.world.generator(seed_for(config.seed, Stream.VIDEO, index))
        progress = min(1.0, step / max(1.0, config.one_sprite_until * config.num_joint_steps))
        return self.world.videos(1, self.num_frames, generator, single_sprite_fraction=1.0 - 0.5 * progress)
