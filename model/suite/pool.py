"""A fixed pool of videos of the world, rendered and run through the frozen tower once, then read by every method.

Where the tower never learns, its activations are all that training reads: a pool makes each further run of training
cost its own branch and label encoder alone. A pool is one safetensors file, mapped into memory and not read whole.
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
from vidlex.model.train.loop import console
from vidlex.model.train.processes import WHOLE, Part
from vidlex.model.train.step_videos import StepBatch
from vidlex.model.video.encoder import Trunk, VideoEncoder

CHUNK = 64


@dataclass(frozen=True, eq=False)
class Pool:
    """Videos with their labels."""

    trunk: Trunk
    """Float16, on the device of training."""
    targets: Tensor
    """[n, V] bool over the world's labels."""
    frames: Tensor | None
    """[n, T, 3, H, W] uint8, where they are kept: a method that tunes the tower needs them."""

    def __len__(self) -> int:
        return len(self.targets)

    def rows(self, index: Tensor, *, frames: bool = False) -> Tensor | Trunk:
        """Some videos: their trunk, or their frames."""
        if frames:
            if self.frames is None:
                raise ValueError("this pool keeps no frames")
            return self.frames[index]
        return Trunk(self.trunk.frame_features[index], self.trunk.tokens[index])

    def first(self, num: int) -> Pool:
        """The first videos, without their frames."""
        trunk = Trunk(self.trunk.frame_features[:num], self.trunk.tokens[:num])
        return Pool(trunk, self.targets[:num], None)

    def chunks(self, *, frames: bool = False) -> Iterator[Tensor | Trunk]:
        """All videos in order, a few at a time."""
        for rows in torch.split(torch.arange(len(self)), CHUNK):
            yield self.rows(rows, frames=frames)


def build_pool(
    path: Path, world: World, encoder: VideoEncoder, num_videos: int, *, seed: int, keep_frames: bool, identity: str
) -> Pool:
    """The pool at ``path``, its trunk on the encoder's device; made when it is not there or was made for another
    ``identity`` (clip, sizes). Several processes may ask at once: one makes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    wanted = json.dumps([identity, num_videos, seed, keep_frames, encoder.config.num_frames, len(encoder.branch)])
    with FileLock(path.with_suffix(".lock")):
        if not path.exists() or _identity(path) != wanted:
            tensors = _render(world, encoder, num_videos, seed=seed, keep_frames=keep_frames, title=path.stem)
            partial = path.with_suffix(".partial")
            save_file(tensors, partial, metadata={"identity": wanted})
            partial.replace(path)
    tensors = load_file(path)
    trunk = Trunk(tensors["features"], tensors["tokens"]).to(encoder.mean.device)
    return Pool(trunk, tensors["targets"], tensors.get("frames"))


def _identity(path: Path) -> str:
    with safe_open(path, framework="pt") as archive:
        return str(archive.metadata()["identity"])


def _render(
    world: World, encoder: VideoEncoder, num_videos: int, *, seed: int, keep_frames: bool, title: str
) -> dict[str, Tensor]:
    features, tokens, targets, frames = [], [], [], []
    for done in range(0, num_videos, CHUNK):
        sample = world.videos(min(CHUNK, num_videos - done), encoder.config.num_frames, world.generator(seed + done))
        trunk = encoder.trunk(sample.frames)
        features.append(trunk.frame_features.half().cpu())
        tokens.append(trunk.tokens.half().cpu())
        targets.append(sample.targets)
        if keep_frames:
            frames.append(sample.frames.cpu())
        if done % (16 * CHUNK) == 0:
            console.print(f"{title}: {done} of {num_videos} videos", highlight=False)
    tensors = {"features": torch.cat(features), "tokens": torch.cat(tokens), "targets": torch.cat(targets)}
    if keep_frames:
        tensors["frames"] = torch.cat(frames)
    return tensors


def pool_targets(world: World, num_videos: int, seed: int) -> Tensor:
    """[n, V] bool: the targets of ``build_pool``'s videos over the labels of another world that shows the same."""
    return torch.cat(
        [
            world.targets_of_videos(min(CHUNK, num_videos - done), world.generator(seed + done))
            for done in range(0, num_videos, CHUNK)
        ]
    )


class PoolVideos:
    """The videos of the training steps, drawn from a pool: epoch by epoch, each in an order of its own.

    ``frames``, ``num_frames``: so many frames instead of the trunk, for methods that tune the tower. ``change``: what
    is done to the trunk on the way.
    """

    def __init__(
        self,
        pool: Pool,
        *,
        batch_size: int,
        seed: int,
        frames: bool = False,
        num_frames: int = 0,
        change: Callable[[Trunk], Trunk] | None = None,
    ) -> None:
        self.pool, self.batch_size, self.seed, self.change = pool, batch_size, seed, change
        self.frames, self.num_frames = frames, num_frames
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))

    def draw(self, step: int, part: Part = WHOLE) -> StepBatch:
        per_epoch = len(self.pool) // self.batch_size
        epoch, place = divmod(step, per_epoch)
        if self._order[0] != epoch:
            order = torch.Generator().manual_seed(self.seed * 10_000_019 + 60_000_000 + epoch)
            self._order = (epoch, torch.randperm(len(self.pool), generator=order))
        rows = self._order[1][place * self.batch_size : (place + 1) * self.batch_size]
        own = rows[part.rows(self.batch_size)]
        videos = self.pool.rows(own, frames=self.frames)
        if isinstance(videos, Tensor) and self.num_frames:
            stride = videos.shape[1] // self.num_frames
            videos = videos[:, stride // 2 :: stride][:, : self.num_frames]
        elif isinstance(videos, Trunk) and self.change is not None:
            videos = self.change(videos)
        generator = torch.Generator().manual_seed(self.seed * 10_000_019 + 40_000_000 + step)
        return StepBatch(videos, self.pool.targets[own], self.pool.targets[rows], generator)
