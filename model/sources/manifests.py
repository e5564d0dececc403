"""Training on manifests of real videos: decoded and augmented for each step, or read from a cache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vidlex.model.config import fingerprint
from vidlex.model.seeds import Stream, generator_for
from vidlex.model.sources.cached_views import CHUNK, CachedViews
from vidlex.model.sources.catalogue import Catalogue
from vidlex.model.sources.config import DataConfig
from vidlex.model.sources.decode_pool import BrokenVideo
from vidlex.model.sources.order import DrawOrder, draw_weights
from vidlex.model.sources.reading import Slot, VideoBatch, VideoReader, View
from vidlex.model.train.loop.loop import console
from vidlex.model.train.loop.processes import WHOLE_BATCH, MicroBatch, process_group
from vidlex.model.train.source import LabelledVideos, SourceSetup, StepBatch, TrainingLabels

MAX_REPLACEMENTS = 100  # broken videos in a row


class _ReadAhead(NamedTuple):
    batch: VideoBatch
    rows: list[Future[int]]  # of the videos that were read; a broken one is replaced by another


class ManifestSource:
    """The videos of a step depend on seed and step alone; those that cannot be decoded are replaced by the next ones.

    A process reads the videos of its own rows only; the processes exchange which ones.
    """

    def __init__(
        self, config: DataConfig, training: Catalogue, validation: Catalogue, missing: list[Path], setup: SourceSetup
    ) -> None:
        if config.num_cached_views and setup.trains_tower:
            raise ValueError("this method trains the image tower, so its outputs cannot be kept: num_cached_views = 0")
        self.config, self.training, self.validation, self.setup = config, training, validation, setup
        self.labels = _training_labels(training, config)
        self.validation_labels = validation.names
        self.processes = process_group(torch.device(setup.config.device).type)
        self.reader = VideoReader(config, setup, self.processes.count)
        for path in missing:
            self.reader.broken.add(path, "it does not exist or is not a file")
        self.order = DrawOrder(draw_weights(training, config.rare_label_power), setup.config.seed)
        self.cached: CachedViews | None = None  # of validation, and of training with num_cached_views
        self._ahead: dict[int, _ReadAhead] = {}  # by step
        self._drawn: tuple[int, VideoBatch, Tensor] | None = None

    def prepare(self) -> None:
        if self.setup.trains_tower:
            return
        num_validation = self.setup.config.num_validation_videos
        views = [View(self.validation, row) for row in _fixed_rows(self.validation, num_validation)]
        for number in range(self.config.num_cached_views):
            views += [View(self.training, row, number) for row in range(len(self.training))]
        folder = self.config.cache_folder or self.setup.out / "trunks"
        self.cached = CachedViews(folder, views, self.setup, self.reader, self.processes)

    # --- steps -----------------------------------------------------------------------------------------------------

    def draw(self, step: int, micro_batch: MicroBatch = WHOLE_BATCH) -> StepBatch:
        size = self.setup.config.batch_size
        own = micro_batch.rows_of_process(size)
        if self._drawn is None or self._drawn[0] != step:
            batch, futures = self._take(step, own)
            rows = torch.zeros(size, dtype=torch.int64)
            rows[own] = torch.tensor([future.result() for future in futures])
            self._drawn = (step, batch, self.training.targets(self.processes.sum(rows).tolist()))
        _, batch, targets = self._drawn
        of_micro_batch = micro_batch.rows(size)
        videos = batch.videos(slice(of_micro_batch.start - own.start, of_micro_batch.stop - own.start))
        generator = generator_for(self.setup.config.seed, Stream.JOINT_STEP, step)
        return StepBatch(videos, targets[of_micro_batch], targets, generator)

    def _take(self, step: int, own: slice) -> _ReadAhead:
        """Also starts to read the steps after it."""
        last = max(step, min(step + self.config.num_prefetched_steps, self.setup.config.num_joint_steps - 1))
        self._ahead = {at: ahead for at, ahead in self._ahead.items() if step <= at <= last}
        for at in range(step, last + 1):
            if at not in self._ahead:
                self._ahead[at] = self._read_step(at, own)
        return self._ahead.pop(step)

    def _read_step(self, step: int, own: slice) -> _ReadAhead:
        shapes = self.reader.frame_shapes if self._cached_training is None else self._cached_training.cache.shapes
        batch = self.reader.batch(shapes, own.stop - own.start)
        futures = []
        for position in range(own.start, own.stop):
            place = step * self.setup.config.batch_size + position
            slot = batch.slot(position - own.start)
            futures.append(self.reader.pool.submit(self._read_place, place, self.order.at(place), slot))
        return _ReadAhead(batch, futures)

    def _read_place(self, place: int, row: int, slot: Slot) -> int:
        """The row whose video is in ``slot``: the given one, or the next that is not broken."""
        seed, cached, number = self.setup.config.seed, self._cached_training, 0
        if self.config.num_cached_views > 1:
            number = int(np.random.default_rng((seed, place)).integers(self.config.num_cached_views))
        for attempt in range(MAX_REPLACEMENTS):
            view = View(self.training, (row + attempt) % len(self.training), number)
            try:
                if cached is None:
                    self.reader.decode_augmented(view, slot, self.reader.augmentation(seed, place))
                else:
                    cached.read(view, slot)
            except BrokenVideo as error:
                reason = f"{self.training.path(view.row)}: {error}"
            else:
                return view.row
        raise ValueError(f"{MAX_REPLACEMENTS} training videos in a row cannot be decoded; the last is {reason}")

    @property
    def _cached_training(self) -> CachedViews | None:
        return self.cached if self.config.num_cached_views else None

    # --- fixed videos ----------------------------------------------------------------------------------------------

    def training_videos(self, max_videos: int) -> Iterator[LabelledVideos]:
        return self._fixed_videos(self.training, max_videos, self._cached_training)

    def validation_videos(self, max_videos: int) -> Iterator[LabelledVideos]:
        return self._fixed_videos(self.validation, max_videos, self.cached)

    def validation_targets(self, max_videos: int) -> Tensor:
        return self.validation.targets(_fixed_rows(self.validation, max_videos))

    def _fixed_videos(
        self, catalogue: Catalogue, max_videos: int, cached: CachedViews | None
    ) -> Iterator[LabelledVideos]:
        views = [View(catalogue, row) for row in _fixed_rows(catalogue, max_videos)]
        chunks = [views[i : i + CHUNK] for i in range(0, len(views), CHUNK)]
        if cached is None:
            read = self.reader.read_chunks(chunks, self.reader.decode, self.reader.frame_shapes)
        else:
            read = self.reader.read_chunks(chunks, cached.read, cached.cache.shapes)
        for chunk in read:
            if chunk.good:
                targets = catalogue.targets([chunk.views[position].row for position in chunk.good])
                yield LabelledVideos(chunk.videos(), targets)

    # --- the run ---------------------------------------------------------------------------------------------------

    def settings(self) -> Mapping[str, object]:
        config = self.config
        return {
            "train": self.training.identity(),
            "validation": self.validation.identity(),
            "weights": [dataset.weight for dataset in self.training.datasets],
            "rare_label_power": config.rare_label_power,
            "kind_weight": sorted(config.kind_weight),
            "always_drawn_kind": sorted(config.always_drawn_kind),
            "label_weights": fingerprint(self.labels.weights.tolist(), self.labels.is_always_drawn.tolist()),
            "augmentation": [config.crop_scale, config.flip, config.colour, config.time_jitter],
            "num_cached_views": config.num_cached_views,
        }

    def close(self) -> None:
        self.reader.pool.close()
        if num_broken := self.reader.broken.count():
            console.print(f"broken or missing videos, which were not used: {num_broken}, see {self.reader.broken.file}")


def _training_labels(training: Catalogue, config: DataConfig) -> TrainingLabels:
    names, kinds, weight_of = training.names, training.kinds, config.weights_by_kind()
    for kind in (*weight_of, *config.always_drawn_kind):
        if kind not in kinds.values():
            known = ", ".join(sorted(set(kinds.values()))) or "no kinds"
            raise ValueError(f"no training label is of the kind {kind!r}; there are {known}")
    none = torch.zeros(len(names), dtype=torch.bool)
    return TrainingLabels(
        names,
        kinds,
        torch.tensor([weight_of.get(kinds.get(name, ""), 1.0) for name in names]),
        torch.tensor([kinds.get(name) in config.always_drawn_kind for name in names]),
        none,
        none,
    )


def _fixed_rows(catalogue: Catalogue, max_videos: int) -> list[int]:
    order = torch.randperm(len(catalogue), generator=torch.Generator().manual_seed(0))
    rows: list[int] = order[:max_videos].tolist()
    return rows
