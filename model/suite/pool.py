"""A fixed pool of videos, rendered and run through the frozen tower once, then shared by all methods.

Stored as one safetensors file, which is memory-mapped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from vidlex.model.emoji.world import World
from vidlex.model.files import replace_atomically
from vidlex.model.seeds import Stream, generator_for
from vidlex.model.train.loop.loop import console
from vidlex.model.train.loop.processes import WHOLE_BATCH, MicroBatch
from vidlex.model.train.step_videos import StepBatch
from vidlex.model.video.encoder import Trunk, VideoEncoder

CHUNK = 64


@dataclass(frozen=True, eq=False)
class Pool:
    trunk: Trunk  # float16, on the device of training
    targets: Tensor  # [n, V] bool over the world's labels
    frames: Tensor | None  # [n, T, 3, H, W] uint8, for methods that train the tower

    def __len__(self) -> int:
        return len(self.targets)

    def rows(self, index: Tensor, *, frames: bool = False) -> Tensor | Trunk:
        if frames:
            if self.frames is None:
                raise ValueError("this pool has no frames")
            return self.frames[index]
        return Trunk(self.trunk.frame_features[index], self.trunk.tokens[index])

    def first(self, num: int) -> Pool:
        trunk = Trunk(self.trunk.frame_features[:num], self.trunk.tokens[:num])
        return Pool(trunk, self.targets[:num], None)

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
                save_file(tensors, temporary, metadata={"identity": expected})
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


class PoolVideos:
    """A new random order every epoch. ``frames`` draws ``num_frames`` frames (0: all) instead of the trunk."""

    def __init__(
        self,
        pool: Pool,
        *,
        batch_size: int,
        seed: int,
        frames: bool = False,
        num_frames: int = 0,
        adapter: Callable[[Trunk], Trunk] | None = None,
    ) -> None:
        self.pool, self.batch_size, self.seed, self.adapter = pool, batch_size, seed, adapter
        self.frames, self.num_frames = frames, num_frames
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))

    def draw(self, step: int, micro_batch: MicroBatch = WHOLE_BATCH) -> StepBatch:
        per_epoch = len(self.pool) // self.batch_size
        epoch, position = divmod(step, per_epoch)
        if self._order[0] != epoch:
            generator = generator_for(self.seed, Stream.POOL_ORDER, epoch)
            self._order = (epoch, torch.randperm(len(self.pool), generator=generator))
        rows = self._order[1][position * self.batch_size : (position + 1) * self.batch_size]
        chosen = rows[micro_batch.rows(self.batch_size)]
        videos = self.pool.rows(chosen, frames=self.frames)
        if isinstance(videos, Tensor) and self.num_frames:
            stride = videos.shape[1] // self.num_frames
            videos = videos[:, stride // 2 :: stride][:, : self.num_frames]
        elif isinstance(videos, Trunk) and self.adapter is not None:
            videos = self.adapter(videos)
        generator = generator_for(self.seed, Stream.JOINT_STEP, step)
        return StepBatch(videos, self.pool.targets[chosen], self.pool.targets[rows], generator)
