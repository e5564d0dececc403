"""What the rows of the suite share: pools of videos, LLM states and learned prefixes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from filelock import FileLock
from safetensors.torch import load_file
from torch import Tensor

from vidlex.model.config import LabelEncoderConfig, VideoEncoderConfig
from vidlex.model.emoji.assets import SpriteSheet, load_sheet
from vidlex.model.emoji.protocol import COLUMNS
from vidlex.model.emoji.world import World
from vidlex.model.factory import Clip, create_clip
from vidlex.model.files import replace_atomically, save_tensors
from vidlex.model.sources.emoji import training_labels
from vidlex.model.sources.emoji_pool import (
    TRAIN_SEED,
    VALIDATION_SEED,
    Pool,
    PoolSource,
    TrunkAdapter,
    build_pool,
    pool_targets,
)
from vidlex.model.suite.config import SuiteConfig
from vidlex.model.suite.row import Row
from vidlex.model.text.label_encoder import LabelEncoder
from vidlex.model.text.label_memory import choose_num_chunk_labels
from vidlex.model.text.state_cache import cached_states
from vidlex.model.train.fit_config import FitConfig
from vidlex.model.train.loop.loop import console
from vidlex.model.train.network import OpenVocabularyNetwork
from vidlex.model.train.recipe import prefix_stage, start_stage
from vidlex.model.train.setup import create_network, set_up
from vidlex.model.train.source import TrainingLabels
from vidlex.model.train.stages import StageRunner
from vidlex.model.video.encoder import VideoEncoder

TEST_SEED = 820_000
TEST_SEED_STRIDE = 10_000  # between the columns of the test videos


class SuiteNetwork(NamedTuple):
    network: OpenVocabularyNetwork
    clip: Clip
    llm_folder: Path


class SuiteContext:
    """Everything is stored in ``out``: a second process or a resumed run reads it from there."""

    def __init__(
        self, config: SuiteConfig, *, clip_name: str, out: Path, art_cache: Path, sheet: SpriteSheet | None
    ) -> None:
        self.config, self.clip_name, self.out = config, clip_name, out
        clip = create_clip(clip_name)
        canvas = clip.source.geometry.image_size
        sheet = sheet if sheet is not None else load_sheet(art_cache)

        def world(split: str, part: Any) -> World:
            return World(art_cache, canvas=canvas, split=split, part=part, sheet=sheet, device=config.device)

        self._art_cache = art_cache
        self._with_more_pairs: dict[int, tuple[World, Pool]] = {}
        self.worlds = {"train": world("train", "seen"), "val": world("val", "seen")}
        columns = {column: world("test", column) for column in COLUMNS}
        self.protocol = self.worlds["train"].protocol
        self.kinds: dict[str, Mapping[str, str]] = {name: columns[name].kinds() for name in COLUMNS}
        self.labels: dict[str, tuple[str, ...]] = {name: columns[name].labels for name in COLUMNS}
        encoder = VideoEncoder(clip.model.visual, config.video(), mean=clip.source.mean, std=clip.source.std)
        encoder.to(config.device)
        self.tower_depth = len(clip.model.visual.transformer.resblocks)
        self.identity = clip.digest

        def pool(name: str, world: World, num: int, seed: int) -> Pool:
            path = out / "pools" / f"{name}.safetensors"
            return build_pool(path, world, encoder, num, seed=seed, identity=self.identity)

        self.train = pool("train", self.worlds["train"], config.num_pool_videos, TRAIN_SEED)
        self.validation = pool("val", self.worlds["val"], config.num_validation_videos, VALIDATION_SEED)
        self.test = {
            name: pool(name, columns[name], config.num_test_videos, TEST_SEED + TEST_SEED_STRIDE * i)
            for i, name in enumerate(COLUMNS)
        }

    def checkpoint(self, row: Row) -> Path:
        return self.out / "checkpoints" / row.key

    def run_folder(self, row: Row) -> Path:
        return self.out / "runs" / row.key

    def run_description(self, row: Row) -> dict[str, Any]:
        return {"row": row.key, "identity": self.identity, "seed": row.seed}

    def create_network(self, video: VideoEncoderConfig, label: LabelEncoderConfig, seed: int) -> SuiteNetwork:
        # ``seed`` determines all initial weights.
        fit = self.config.fit(seed)
        backbone = set_up(fit, video, clip_name=self.clip_name)
        network, llm_folder = create_network(backbone, replace(label, seed=seed), fit)
        network.label.num_chunk_labels = choose_num_chunk_labels(network.label, self.worlds["train"].labels)
        return SuiteNetwork(network, backbone.clip, llm_folder)

    def states(self, encoder: LabelEncoder, name: str, labels: Sequence[str]) -> Tensor:
        """[V, N, K, L, d] float16, for the prefixes of the encoder; cached in ``out/states``."""
        return cached_states(encoder, labels, self.out / "states", report=console.print, dtype=torch.float16, name=name)

    def prefixes(self) -> Tensor:
        """Shared by all rows; learned once through the frozen LLM, on frame means and few labels per step."""
        path = self.out / "prefixes.safetensors"
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():
                prefixes = self._learn_prefixes()
                with replace_atomically(path) as temporary:
                    save_tensors({"prefixes": prefixes}, temporary)
        return load_file(path)["prefixes"]

    def _learn_prefixes(self) -> Tensor:
        config = self.config
        network = self.create_network(VideoEncoderConfig(num_branch_blocks=0), config.label(), 0).network
        fit, emoji = config.fit(0), replace(config.emoji(), num_more_pairs=0)
        source = self.source(fit, self.train, training_labels(self.worlds["train"], emoji))
        runner = StageRunner(
            network, source, fit, out=self.out / "prefix",
            description={"part": "prefix", "identity": self.identity, "seed": fit.seed},
            states_of=lambda labels: self.states(network.label, "starting", labels).float(), keeps_features=False,
        )  # fmt: skip
        runner.run([start_stage(fit), prefix_stage(fit, "frame_means", with_extensions=False)])
        return network.label.prefixes.detach().cpu().clone()

    def source(
        self,
        fit: FitConfig,
        pool: Pool,
        labels: TrainingLabels,
        *,
        frames: bool = False,
        num_frames: int = 0,
        adapter: TrunkAdapter | None = None,
    ) -> PoolSource:
        return PoolSource(
            pool, self.validation, labels, batch_size=fit.batch_size, seed=fit.seed, frames=frames,
            num_frames=num_frames, adapter=adapter,
        )  # fmt: skip

    def frame_means(self, pool: Pool) -> Tensor:
        # [n, D], CLIP's zero-shot video features
        return F.normalize(pool.trunk.frame_features.float().mean(dim=1), dim=-1)

    def with_more_pairs(self, num: int) -> tuple[World, Pool]:
        # The additional pairs are labels of the same videos.
        base = self.worlds["train"]
        if not num:
            return base, self.train
        if num not in self._with_more_pairs:
            world = World(self._art_cache, canvas=base.canvas, num_more_pairs=num, sheet=base.sheet)
            pool = replace(self.train, targets=pool_targets(world, len(self.train), TRAIN_SEED))
            self._with_more_pairs[num] = world, pool
        return self._with_more_pairs[num]

    def more_pairs(self, world: World) -> Sequence[str]:
        return world.labels[len(self.worlds["train"].labels) :]

    def column_labels(self) -> list[str]:
        return list(dict.fromkeys(label for name in COLUMNS for label in self.labels[name]))
