"""What the rows of the suite share: pools of videos, LLM states and learned prefixes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from filelock import FileLock
from safetensors.torch import load_file, save_file
from torch import Tensor

from vidlex.model.config import LabelEncoderConfig, VideoEncoderConfig
from vidlex.model.emoji.assets import SpriteSheet, load_sheet
from vidlex.model.emoji.protocol import COLUMNS
from vidlex.model.emoji.world import World
from vidlex.model.factory import Clip, create_clip, create_label_encoder
from vidlex.model.files import replace_atomically
from vidlex.model.suite.config import SuiteConfig
from vidlex.model.suite.pool import Pool, build_pool, pool_targets
from vidlex.model.suite.row import Row
from vidlex.model.text.label_encoder import LabelEncoder
from vidlex.model.train.fit import LabelTask
from vidlex.model.train.loop.loop import NO_EVALUATION, console, run
from vidlex.model.train.network import OpenVocabularyNetwork
from vidlex.model.video.encoder import VideoEncoder

TRAIN_SEED, VALIDATION_SEED, TEST_SEED = 800_000, 810_000, 820_000
TEST_SEED_STRIDE = 10_000  # between the columns of the test videos
NUM_PREFIX_VOCABULARY = 600  # labels on which the prefixes are learned, at most


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

    def run_description(self, row: Row) -> dict[str, str]:
        return {"row": row.key, "identity": self.identity}

    def create_network(self, video: VideoEncoderConfig, label: LabelEncoderConfig, seed: int) -> SuiteNetwork:
        # ``seed`` determines all initial weights.
        torch.manual_seed(seed)
        clip = create_clip(self.clip_name)
        encoder = VideoEncoder(clip.model.visual, video, mean=clip.source.mean, std=clip.source.std)
        labels, llm_folder = create_label_encoder(replace(label, seed=seed), clip)
        return SuiteNetwork(OpenVocabularyNetwork(encoder, labels).to(self.config.device), clip, llm_folder)

    def states(self, encoder: LabelEncoder, name: str, labels: Sequence[str]) -> Tensor:
        """[V, N, K, L, d] float16, for the prefixes of the encoder; cached in ``out/states``."""
        prefixes = encoder.prefixes.detach().float().cpu().numpy().tobytes()
        config = encoder.config
        parts = [config.llm, config.prompt_version, config.feedback, config.num_attributes, config.tokens_per_attribute]
        digest = hashlib.sha256(json.dumps([parts, list(labels)]).encode() + prefixes).hexdigest()[:16]
        path = self.out / "states" / f"{name}-{digest}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():
                console.print(f"LLM states of {len(labels)} labels: {name}")
                with replace_atomically(path) as temporary:
                    save_file({"states": encoder.cache_states(labels, dtype=torch.float16)}, temporary)
        return load_file(path)["states"]

    def prefixes(self) -> Tensor:
        """Shared by all rows; learned once through the frozen LLM, on frame means and few labels per step."""
        path = self.out / "prefixes.safetensors"
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():
                prefixes = self._learn_prefixes()
                with replace_atomically(path) as temporary:
                    save_file({"prefixes": prefixes}, temporary)
        return load_file(path)["prefixes"]

    def _learn_prefixes(self) -> Tensor:
        config = self.config
        network = self.create_network(VideoEncoderConfig(num_branch_blocks=0), config.label(), 0).network
        world = self.worlds["train"]
        order = torch.randperm(len(world.labels), generator=torch.Generator().manual_seed(0))
        chosen = order[:NUM_PREFIX_VOCABULARY].sort().values
        labels = [world.labels[i] for i in chosen.tolist()]
        states = self.states(network.label, "starting", labels).float()
        network.label.fit_statistics(states)
        fit = replace(config.fit(0), num_more_pairs=0)
        cached = self.frame_means(self.train), self.train.targets[:, chosen]
        for name, num_steps, stage_states in (
            ("warmup", config.num_warmup_steps, states),
            ("prefix", config.num_prefix_steps, None),
        ):
            task = LabelTask(name, network, cached=cached, world=world, labels=labels, states=stage_states, config=fit)
            loop = replace(fit, bf16=False).loop(num_steps, num_warmup_steps=5, evaluate_every=NO_EVALUATION)
            run(task, loop, self.out / "prefix", {"part": "prefix", "identity": self.identity})
        return network.label.prefixes.detach().cpu().clone()

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

    def column_labels(self) -> list[str]:
        return list(dict.fromkeys(label for name in COLUMNS for label in self.labels[name]))
