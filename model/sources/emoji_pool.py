"""Training on a fixed pool of videos of the procedural world, rendered and run through the frozen tower once.

Stored as one safetensors file, which is memory-mapped, and shared by runs and methods.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType

import torch
from filelock import FileLock
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from vidlex.model.emoji.assets import SpriteSheet
from vidlex.model.emoji.world import World
from vidlex.model.files import replace_atomically, save_tensors
from vidlex.model.seeds import Stream, generator_for
from vidlex.model.sources.config import EmojiConfig
from vidlex.model.sources.emoji import training_labels
from vidlex.model.train.loop.loop import console
from vidlex.model.train.loop.processes import WHOLE_BATCH, MicroBatch
from vidlex.model.train.source import LabelledVideos, SourceOpener, SourceSetup, StepBatch, TrainingLabels
from vidlex.model.video.encoder import Trunk, VideoEncoder

CHUNK = 64
TRAIN_SEED, VALIDATION_SEED = 800_000, 810_000

TrunkAdapter = Callable[[Trunk], Trunk]  # carries a pool's tokens to the block where a branch begins


@dataclass(frozen=True, eq=False)
class Pool:
    trunk: Trunk  # float16, on the device of training
    targets: Tensor  # [n, V] bool over the world's labels
    frames: Tensor | None  # [n, T, 3, H, W] uint8, for methods that train the tower

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def int8_targets(self) -> Tensor:  # of the losses; every pair is known
        return self.targets.view(torch.int8)

    def rows(self, index: Tensor, *, frames: bool = False) -> Tensor | Trunk:
        if frames:
            if self.frames is None:
                raise ValueError("this pool has no frames")
            return self.frames[index]
        return Trunk(self.trunk.frame_features[index], self.trunk.tokens[index])

    def first(self, num: int) -> Pool:
        trunk = Trunk(self.trunk.frame_features[:num], self.trunk.tokens[:num])
        return Pool(trunk, self.targets[:num], None)

    def select(self, labels: Tensor) -> Pool:
        return replace(self, targets=self.targets[:, labels])

    def chunks(self, *, frames: bool = False) -> Iterator[Tensor | Trunk]:
        for rows in torch.split(torch.arange(len(self)), CHUNK):
            yield self.rows(rows, frames=frames)


def build_pool(path: Path, world: World, encoder: VideoEncoder, num_videos: int, *, seed: int, identity: str) -> Pool:
    """Rendered if the file is missing or has another ``identity`` (of the CLIP) or size. Safe between processes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    has_frames = True  # always; part of the stored identity
    expected = json.dumps([identity, num_videos, seed, has_frames, encoder.config.num_frames, len(encoder.branch)])
    with FileLock(path.with_suffix(".lock")):
        if not path.exists() or _identity(path) != expected:
            tensors = _render(world, encoder, num_videos, seed=seed, title=path.stem)
            with replace_atomically(path) as temporary:
                save_tensors(tensors, temporary, metadata={"identity": expected})
    tensors = load_file(path)
    trunk = Trunk(tensors["features"], tensors["tokens"]).to(encoder.mean.device)
    return Pool(trunk, tensors["targets"], tensors["frames"])


def _identity(path: Path) -> str:
    with safe_open(path, framework="pt") as archive:
        return str(archive.metadata()["identity"])


def _render(world: World, encoder: VideoEncoder, num_videos: int, *, seed: int, title: str) -> dict[str, Tensor]:
    features, tokens, targets, frames = [], [], [], []
    for done in range(0, num_videos, CHUNK):
        sample = world.videos(min(CHUNK, num_videos - done), encoder.config.num_frames, world.generator(seed + done))
        trunk = encoder.compute_trunk(sample.frames)
        features.append(trunk.frame_features.half().cpu())
        tokens.append(trunk.tokens.half().cpu())
        targets.append(sample.targets)
        frames.append(sample.frames.cpu())
        if done % (16 * CHUNK) == 0:
            console.print(f"{title}: {done} of {num_videos} videos", highlight=False)
    return {
        "features": torch.cat(features),
        "tokens": torch.cat(tokens),
        "targets": torch.cat(targets),
        "frames": torch.cat(frames),
    }


def pool_targets(world: World, num_videos: int, seed: int) -> Tensor:
    """[n, V] bool: targets of the videos of ``build_pool`` over the labels of a world with additional pairs."""
    return torch.cat(
        [
            world.video_targets(min(CHUNK, num_videos - done), world.generator(seed + done))
            for done in range(0, num_videos, CHUNK)
        ]
    )


class PoolSource:
    """Draws from the pool in a new random order every epoch.

    ``labels`` are those of the columns of ``pool``, those of ``validation`` the first of them. ``frames`` gives
    ``num_frames`` frames of each video (0: all) instead of the trunk. ``adapter`` changes each trunk.
    """

    def __init__(
        self,
        pool: Pool,
        validation: Pool,
        labels: TrainingLabels,
        *,
        batch_size: int,
        seed: int,
        frames: bool = False,
        num_frames: int = 0,
        adapter: TrunkAdapter | None = None,
        settings: Mapping[str, object] = MappingProxyType({}),
    ) -> None:
        self.pool, self.validation, self.labels = pool, validation, labels
        self.validation_labels = labels.names[: validation.targets.shape[1]]
        self.batch_size, self.seed, self.adapter = batch_size, seed, adapter
        self.frames, self.num_frames, self._settings = frames, num_frames, settings
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))

    def draw(self, step: int, micro_batch: MicroBatch = WHOLE_BATCH) -> StepBatch:
        per_epoch = len(self.pool) // self.batch_size
        epoch, position = divmod(step, per_epoch)
        if self._order[0] != epoch:
            generator = generator_for(self.seed, Stream.POOL_ORDER, epoch)
            self._order = (epoch, torch.randperm(len(self.pool), generator=generator))
        rows = self._order[1][position * self.batch_size : (position + 1) * self.batch_size]
        chosen = rows[micro_batch.rows(self.batch_size)]
        videos = self._adapted(self.pool.rows(chosen, frames=self.frames))
        generator = generator_for(self.seed, Stream.JOINT_STEP, step)
        targets = self.pool.int8_targets
        return StepBatch(videos, targets[chosen], targets[rows], generator)

    def _adapted(self, videos: Tensor | Trunk) -> Tensor | Trunk:
        if isinstance(videos, Tensor) and self.num_frames:
            stride = videos.shape[1] // self.num_frames
            return videos[:, stride // 2 :: stride][:, : self.num_frames]
        if isinstance(videos, Trunk) and self.adapter is not None:
            return self.adapter(videos)
        return videos

    def prepare(self) -> None:
        pass

    def training_videos(self, max_videos: int) -> Iterator[LabelledVideos]:
        return self._fixed(self.pool, max_videos)

    def validation_videos(self, max_videos: int) -> Iterator[LabelledVideos]:
        return self._fixed(self.validation, max_videos)

    def _fixed(self, pool: Pool, max_videos: int) -> Iterator[LabelledVideos]:
        for rows in torch.split(torch.arange(min(max_videos, len(pool))), CHUNK):
            yield LabelledVideos(self._adapted(pool.rows(rows, frames=self.frames)), pool.int8_targets[rows])

    def validation_targets(self, max_videos: int) -> Tensor:
        return self.validation.int8_targets[:max_videos]

    def settings(self) -> Mapping[str, object]:
        return self._settings

    def close(self) -> None:
        pass


def pool_opener(emoji: EmojiConfig, art_cache: Path, *, sheet: SpriteSheet | None = None) -> SourceOpener:
    """``sheet`` replaces the downloaded sprites. The pools are kept in the folder ``pools`` of the run."""

    def open_source(setup: SourceSetup) -> PoolSource:
        config, encoder = setup.config, setup.encoder
        canvas, device = setup.geometry.image_size, config.device
        train = World(art_cache, canvas=canvas, num_more_pairs=emoji.num_more_pairs, sheet=sheet, device=device)
        val = World(art_cache, canvas=canvas, split="val", sheet=train.sheet, device=device)

        def pool(name: str, world: World, num: int, seed: int) -> Pool:
            path = setup.out / "pools" / f"{name}.safetensors"
            return build_pool(path, world, encoder, num, seed=seed, identity=setup.clip_digest)

        return PoolSource(
            pool("train", train, emoji.num_pool_videos, TRAIN_SEED),
            pool("val", val, config.num_validation_videos, VALIDATION_SEED),
            training_labels(train, emoji), batch_size=config.batch_size, seed=config.seed,
            frames=setup.trains_tower, settings={"train": "emoji", **asdict(emoji)},
        )  # fmt: skip

    return open_source
