"""Training on the procedural world: a new video in every place of every step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from vidlex.model.emoji.assets import SpriteSheet
from vidlex.model.emoji.world import Sample, World
from vidlex.model.seeds import Stream, generator_for, seed_for
from vidlex.model.sources.config import EmojiConfig
from vidlex.model.train.fit_config import FitConfig
from vidlex.model.train.loop.processes import WHOLE_BATCH, MicroBatch, process_group
from vidlex.model.train.source import LabelledVideos, SourceOpener, SourceSetup, StepBatch, TrainingLabels

TRAINING_SEED, VALIDATION_SEED = 700_000, 300_000  # of the fixed videos of every method
CHUNK = 64

# In every step: these kinds have few labels, and those are hard or frequent.
ALWAYS_DRAWN_KINDS = ("action", "scene")
PAIR = "pair"


def training_labels(world: World, emoji: EmojiConfig) -> TrainingLabels:
    kinds = world.kinds()
    weight_of = {"action": emoji.action_weight, PAIR: emoji.pair_weight}
    is_pair = torch.tensor([kinds[name] == PAIR for name in world.labels])
    has_more_pairs = emoji.num_more_pairs > 0  # many labels, each of them rare
    return TrainingLabels(
        world.labels,
        kinds,
        torch.tensor([weight_of.get(kinds[name], 1.0) for name in world.labels]),
        torch.tensor([kinds[name] in ALWAYS_DRAWN_KINDS for name in world.labels]),
        is_pair if has_more_pairs else torch.zeros_like(is_pair),
        is_pair,
        world.pair_nouns() if has_more_pairs else None,
    )


class EmojiSource:
    """The same videos for every method and for every division of a step.

    Each video has its own generator, seeded by step and position in the batch. A process renders its own videos only;
    the processes exchange the targets. The world ``validation`` has the first labels of ``train`` only.
    """

    def __init__(self, train: World, validation: World, emoji: EmojiConfig, config: FitConfig, num_frames: int) -> None:
        self.train, self.validation, self.emoji, self.config = train, validation, emoji, config
        self.num_frames = num_frames
        self.labels = training_labels(train, emoji)
        self.validation_labels = validation.labels
        self._drawn: tuple[int, list[Sample], Tensor] | None = None

    def draw(self, step: int, micro_batch: MicroBatch = WHOLE_BATCH) -> StepBatch:
        size = self.config.batch_size
        own = micro_batch.rows_of_process(size)
        if self._drawn is None or self._drawn[0] != step:
            videos = [self._video(step, position) for position in range(own.start, own.stop)]
            targets = torch.zeros(size, len(self.labels.names), dtype=torch.int8)
            targets[own] = torch.cat([video.targets for video in videos]).to(torch.int8)
            targets = process_group(torch.device(self.config.device).type).sum(targets)
            self._drawn = (step, videos, targets)
        _, videos, targets = self._drawn
        rows = micro_batch.rows(size)
        frames = torch.cat([video.frames for video in videos[rows.start - own.start : rows.stop - own.start]])
        generator = generator_for(self.config.seed, Stream.JOINT_STEP, step)
        return StepBatch(frames, targets[rows], targets, generator)

    def _video(self, step: int, position: int) -> Sample:
        config = self.config
        index = step * config.batch_size + position
        generator = self.train.generator(seed_for(config.seed, Stream.VIDEO, index))
        progress = min(1.0, step / max(1.0, self.emoji.one_sprite_until * config.num_joint_steps))
        return self.train.videos(1, self.num_frames, generator, single_sprite_fraction=1.0 - 0.5 * progress)

    def prepare(self) -> None:
        pass

    def training_videos(self, max_videos: int) -> Iterator[LabelledVideos]:
        return self._fixed_videos(self.train, max_videos, TRAINING_SEED)

    def validation_videos(self, max_videos: int) -> Iterator[LabelledVideos]:
        return self._fixed_videos(self.validation, max_videos, VALIDATION_SEED)

    def _fixed_videos(self, world: World, num_videos: int, seed: int) -> Iterator[LabelledVideos]:
        for number, size in enumerate(_chunks(num_videos)):
            sample = world.videos(size, self.num_frames, world.generator(seed + number))
            yield LabelledVideos(sample.frames, sample.targets.to(torch.int8))

    def validation_targets(self, max_videos: int) -> Tensor:
        world = self.validation
        chunks = [
            world.video_targets(size, world.generator(VALIDATION_SEED + number))
            for number, size in enumerate(_chunks(max_videos))
        ]
        return torch.cat(chunks).to(torch.int8)

    def settings(self) -> Mapping[str, object]:
        return {"train": "emoji", **asdict(self.emoji)}

    def close(self) -> None:
        pass


def _chunks(num_videos: int) -> list[int]:
    return [min(CHUNK, num_videos - done) for done in range(0, num_videos, CHUNK)]


def emoji_opener(emoji: EmojiConfig, art_cache: Path, *, sheet: SpriteSheet | None = None) -> SourceOpener:
    """``sheet`` replaces the downloaded sprites."""

    def open_source(setup: SourceSetup) -> EmojiSource:
        canvas, device = setup.geometry.image_size, setup.config.device
        train = World(art_cache, canvas=canvas, num_more_pairs=emoji.num_more_pairs, sheet=sheet, device=device)
        validation = World(art_cache, canvas=canvas, split="val", sheet=train.sheet, device=device)
        return EmojiSource(train, validation, emoji, setup.config, setup.encoder.config.num_frames)

    return open_source
