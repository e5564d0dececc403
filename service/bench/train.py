"""Training steps on video files, against a plain PyTorch loop: a DataLoader with PyAV; and the label stage's memory.

All sides do the same training step with the same network; only the videos reach it in different ways. Each run starts
and ends its own decode processes. The plain loop decodes from the first frame to the last one that it needs, and scales
those that it needs. The cache holds the outputs of the frozen tower; it is filled before the runs.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import DataLoader, Dataset

from vidlex.model.data.manifest import Entry, write_manifest
from vidlex.model.factory import load_classifier
from vidlex.model.seeds import Stream, generator_for
from vidlex.model.sources.config import DataConfig, EmojiConfig
from vidlex.model.sources.manifests import ManifestSource
from vidlex.model.sources.open import source_opener
from vidlex.model.text.label_encoder import LabelEncoder
from vidlex.model.torch_classifier import TorchClassifier
from vidlex.model.train.fit import JointTask
from vidlex.model.train.fit_config import FitConfig
from vidlex.model.train.loop.optim import optimized_parameters
from vidlex.model.train.loop.precision import choose_bf16
from vidlex.model.train.loop.processes import WHOLE_BATCH, MicroBatch
from vidlex.model.train.network import OpenVocabularyNetwork
from vidlex.model.train.recipe import joint_stage
from vidlex.model.train.source import SourceSetup, StepBatch, TrainingLabels, TrainingSource
from vidlex.model.types import FrameGeometry
from vidlex.service.bench.harness import (
    BenchError,
    BenchOptions,
    Case,
    Figure,
    Report,
    Side,
    Timing,
    alternate,
    ratio,
    report,
)
from vidlex.service.bench.load import write_videos
from vidlex.service.bench.train_memory import memory_case
from vidlex.service.machine.cpus import num_cpus

AT_LEAST, AT_LEAST_CACHED = 1.5, 10.0
MAX_WAITING_SHARE = 0.05
_LABELS = tuple(
    f"{size} {thing}" for size in ("small", "large") for thing in ("dog", "boat", "tree", "street", "piano")
)


@dataclass(frozen=True)
class TrainOptions(BenchOptions):
    repetitions: int = 3
    """Measured runs of each side."""
    # Filling the cache has already run the network and read every file.
    warmups: int = 0
    """Runs of each side before measuring."""
    num_steps: int = 4
    """Steps in each run of a side."""
    batch_size: int = 8
    """Videos per step."""
    num_videos: int = 6
    """Different videos; one is for validation."""
    video_seconds: float = 30.0
    """Length of each video in seconds."""
    video_height: int = 720
    """Height of each video in pixels; the width is 16/9 of it."""
    num_memory_labels: int = 2829
    """Labels of the step whose memory is measured; by default the joint vocabulary of the paper."""


def run(options: TrainOptions) -> Report:
    with tempfile.TemporaryDirectory(prefix="vidlex-bench-") as folder:
        return report("train", _cases(Path(folder), options), options)


class _Bench:
    def __init__(self, folder: Path, options: TrainOptions) -> None:
        classifier = load_classifier(options.model, device=options.device)
        if not isinstance(classifier, TorchClassifier) or not isinstance(classifier.label, LabelEncoder):
            raise BenchError(f"{options.model} cannot be trained")
        self.num_steps, self.batch_size = (2, 2) if options.quick else (options.num_steps, options.batch_size)
        self.folder, self.geometry = folder, classifier.geometry
        video, label = copy.deepcopy(classifier.video), classifier.label
        self.network = OpenVocabularyNetwork(video.requires_grad_(True), label).to(classifier.device)
        video.visual.requires_grad_(False)
        self.num_frames = video.config.num_frames
        generator = torch.Generator().manual_seed(options.seed)
        self.states = torch.randn(len(_LABELS), *label.state_mean.shape, generator=generator)
        bf16 = choose_bf16(None, video, self._forward, classifier.device, folder)  # as ``vidlex train fit`` does
        self.config = FitConfig(
            num_joint_steps=self.num_steps, batch_size=self.batch_size, num_validation_videos=1, bf16=bf16,
            device=classifier.device, seed=options.seed,
        )  # fmt: skip
        num_videos, seconds, height = options.num_videos, options.video_seconds, options.video_height
        if options.quick:
            num_videos, seconds, height = 3, 1.0, 90
        width = height * 16 // 9
        self.title = f"{num_videos} videos of {width}x{height}, {seconds:g} s, in batches of {self.batch_size}"
        write_videos(folder / "videos", count=num_videos, seconds=seconds, width=width, height=height)
        split = ["val", *["train"] * (num_videos - 1)]
        entries = [
            Entry(f"videos/{i}.mp4", (_LABELS[i % len(_LABELS)],), closed=True, split=split[i])
            for i in range(num_videos)
        ]
        write_manifest(folder / "manifest.jsonl", entries)
        self.waiting: dict[str, float] = {}

    def _forward(self) -> Tensor:
        size = self.geometry.image_size
        return self.network.video_features(torch.zeros(2, self.num_frames, 3, size, size, dtype=torch.uint8), 0.5)

    def source(self, num_cached_views: int) -> ManifestSource:
        """Opened and, if the outputs of the tower are cached, filled. The videos are not augmented on any side."""
        data = DataConfig(
            train=(str(self.folder / "manifest.jsonl"),), crop_scale=1.0, colour=0.0, time_jitter=0.0,
            num_cached_views=num_cached_views, cache_folder=self.folder / "trunks",
        )  # fmt: skip
        setup = SourceSetup(self.config, self.network.video, self.geometry, "bench", False, self.folder)
        source = cast(ManifestSource, source_opener(data, EmojiConfig(), self.folder)(setup))
        source.prepare()
        return source

    def ours(self, name: str, num_cached_views: int) -> Callable[[], None]:
        def run_once() -> None:
            source = self.source(num_cached_views)
            try:
                self._train(name, source)
            finally:
                source.close()

        return run_once

    def plain(self, name: str) -> Callable[[], None]:
        source = self.source(0)
        source.close()
        rows = [source.order.at(place) for place in range(self.num_steps * self.batch_size)]
        dataset = _PlainVideos(source, self.num_frames, self.geometry)

        def run_once() -> None:
            loader = DataLoader(dataset, batch_size=self.batch_size, sampler=rows, num_workers=num_cpus())
            self._train(name, cast(TrainingSource, _Loaded(source.labels, iter(loader), self.config.seed)))

        return run_once

    def _train(self, name: str, source: TrainingSource) -> None:
        """The step of ``model.train.loop``, without logs and saves."""
        states = self.states[: len(source.labels.names)]
        task = JointTask(joint_stage(self.config), self.network, source, states, self.config)
        device = torch.device(self.config.device)
        started = time.perf_counter()
        for step in range(self.num_steps):
            task.optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bool(self.config.bf16)):
                loss, _ = task.micro_batch_loss(step, WHOLE_BATCH)
            loss.backward()  # type: ignore[no-untyped-call]
            clip_grad_norm_(optimized_parameters(task.optimizer), 1.0)
            task.optimizer.step()
            loss.item()  # waits for the device, as in the loop
        self.waiting[name] = task.waited_seconds / (time.perf_counter() - started)


def _cases(folder: Path, options: TrainOptions) -> list[Case]:
    bench = _Bench(folder, options)
    decoded, cached, plain = "vidlex, decoding each epoch", "vidlex, with the cache", "DataLoader and PyAV"
    started = time.perf_counter()
    filled = bench.source(1)
    filled.close()
    num_filled = len(filled.training) + 1
    fill_rate = num_filled / (time.perf_counter() - started)
    sides = [
        Side(decoded, bench.ours(decoded, 0)),
        Side(cached, bench.ours(cached, 1)),
        Side(plain, bench.plain(plain)),
    ]
    timings = alternate(sides, options, work=bench.num_steps * bench.batch_size, unit="videos")
    by_name = {timing.name: timing for timing in timings}

    def case(name: str, ours: str, at_least: float, figures: list[Figure]) -> Case:
        pair: tuple[Timing, ...] = (by_name[ours], by_name[plain])
        return Case(
            name=f"{name}: {bench.title}",
            timings=pair,
            ratios=(ratio(*pair, at_least=at_least),),
            figures=tuple(figures),
            note=f"{num_cpus()} decode processes on each side; all sides train {options.model}'s branch on "
            f"{bench.config.device}.",
        )

    def waiting(name: str, at_most: float | None = None) -> Figure:
        return Figure(name=f"share of time that {name} waits", value=bench.waiting[name], at_most=at_most)

    return [
        case("without the cache", decoded, AT_LEAST, [waiting(decoded), waiting(plain)]),
        case(
            "with the cache",
            cached,
            AT_LEAST_CACHED,
            [waiting(cached, MAX_WAITING_SHARE), Figure(name="filling the cache", value=fill_rate, unit="videos/s")],
        ),
        memory_case(8 if options.quick else options.num_memory_labels, bench.config.device),
    ]


# --- the plain loop --------------------------------------------------------------------------------------------------


class _PlainVideos(Dataset[tuple[Tensor, Tensor]]):
    def __init__(self, source: ManifestSource, num_frames: int, geometry: FrameGeometry) -> None:
        self.paths = [source.training.path(row) for row in range(len(source.training))]
        self.targets = source.training.targets(range(len(self.paths)))
        self.num_frames, self.geometry = num_frames, geometry

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        return _decode(self.paths[row], self.num_frames, self.geometry), self.targets[row]


def _decode(path: Path, num_frames: int, geometry: FrameGeometry) -> Tensor:
    # [T, 3, H, W]
    size = geometry.image_size
    with av.open(str(path)) as container:
        stream: Any = container.streams.video[0]
        total = stream.frames
        wanted = [(2 * i + 1) * total // (2 * num_frames) for i in range(num_frames)]
        pictures = []
        for number, frame in enumerate(container.decode(stream)):
            if number in wanted:
                pictures.append(_scaled(frame, size, geometry))
            if len(pictures) == num_frames:
                break
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)


def _scaled(frame: Any, size: int, geometry: FrameGeometry) -> np.ndarray[Any, np.dtype[np.uint8]]:
    if geometry.resize_mode == "squash":
        squashed: np.ndarray[Any, np.dtype[np.uint8]] = frame.reformat(
            size, size, "rgb24", interpolation="BICUBIC"
        ).to_ndarray()
        return squashed
    scale = size / min(frame.width, frame.height)
    width, height = round(frame.width * scale), round(frame.height * scale)
    picture = frame.reformat(width, height, "rgb24", interpolation="BICUBIC").to_ndarray()
    top, left = (height - size) // 2, (width - size) // 2
    return np.ascontiguousarray(picture[top : top + size, left : left + size])


class _Loaded:
    """As much of a ``TrainingSource`` as the steps need."""

    def __init__(self, labels: TrainingLabels, batches: Iterator[tuple[Tensor, Tensor]], seed: int) -> None:
        self.labels, self.batches, self.seed = labels, batches, seed

    def draw(self, step: int, micro_batch: MicroBatch = WHOLE_BATCH) -> StepBatch:
        frames, targets = next(self.batches)
        return StepBatch(frames, targets, targets, generator_for(self.seed, Stream.JOINT_STEP, step))
