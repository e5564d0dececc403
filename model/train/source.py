"""What training asks of a source of labelled videos. ``vidlex.model.sources`` has the sources."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from vidlex.model.train.fit_config import FitConfig
from vidlex.model.train.loop.processes import WHOLE_BATCH, MicroBatch
from vidlex.model.types import FrameGeometry
from vidlex.model.video.encoder import Trunk, VideoEncoder


@dataclass(frozen=True, eq=False)
class TrainingLabels:
    """The vocabulary of training, and what its source chooses for each label. All tensors are [V]."""

    names: tuple[str, ...]  # the texts that the label encoder reads
    kinds: Mapping[str, str]  # name -> kind, for metrics by kind; labels may have none
    weights: Tensor  # of the label in the loss
    is_always_drawn: Tensor  # bool: among the labels of every step
    is_drawn_when_positive: Tensor  # bool: among the labels of every step in which it is positive
    is_composed: Tensor  # bool: the name combines other labels, such as "dog jumping"
    # Composed labels with a common part have the same number, other labels -1. None: a step draws composed labels like
    # all others (``label_sampling.sample_labels``).
    groups: Tensor | None = None

    def select(self, index: Tensor) -> TrainingLabels:
        names = tuple(self.names[i] for i in index.tolist())
        return TrainingLabels(
            names,
            {name: self.kinds[name] for name in names if name in self.kinds},
            self.weights[index],
            self.is_always_drawn[index],
            self.is_drawn_when_positive[index],
            self.is_composed[index],
            None if self.groups is None else self.groups[index],
        )


@dataclass(frozen=True, eq=False)
class StepBatch:
    frames: Tensor | Trunk  # [b, T, 3, H, W] uint8, or the frozen tower's output
    targets: Tensor  # [b, V] int8
    all_targets: Tensor  # [B, V] int8, of all videos of the step: every micro-batch samples the same labels
    generator: torch.Generator  # for other random numbers of the step; in the same state for every micro-batch


class StepVideos(Protocol):
    def draw(self, step: int, micro_batch: MicroBatch = WHOLE_BATCH) -> StepBatch:
        """Depends on the arguments alone, so that a resumed or divided run has the same steps."""
        ...


class LabelledVideos(NamedTuple):
    frames: Tensor | Trunk  # [b, T, 3, H, W] uint8, or the frozen tower's output
    targets: Tensor  # [b, V] int8


class TrainingSource(StepVideos, Protocol):
    @property
    def labels(self) -> TrainingLabels: ...

    @property
    def validation_labels(self) -> tuple[str, ...]:
        """Some names of ``labels``, in the same order: the columns of the validation targets."""
        ...

    def prepare(self) -> None:
        """Called once by all processes of the run, before they ask for videos."""
        ...

    def training_videos(self, max_videos: int) -> Iterator[LabelledVideos]:
        """The same videos in every call, without augmentation."""
        ...

    def validation_videos(self, max_videos: int) -> Iterator[LabelledVideos]:
        """The same videos in every call, none of which ``draw`` or ``training_videos`` returns."""
        ...

    def validation_targets(self, max_videos: int) -> Tensor:
        """[n, V] int8 of ``validation_videos``, without reading the videos; those of unreadable ones are included."""
        ...

    def settings(self) -> Mapping[str, object]:
        """What the videos and targets depend on, as JSON: a run resumes only if it is equal."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, eq=False)
class SourceSetup:
    config: FitConfig  # with the precision of the run
    encoder: VideoEncoder  # on the device of training, untrained
    geometry: FrameGeometry
    clip_digest: str
    trains_tower: bool  # the outputs of the image tower change: they cannot be kept
    out: Path  # folder of the run


SourceOpener = Callable[[SourceSetup], TrainingSource]
