"""What the rows of the suite share: the pools of videos, the LLM's states, the learned prefixes, and the judging."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from filelock import FileLock
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from torch import Tensor

from vidlex.model.config import LabelEncoderConfig, VideoEncoderConfig
from vidlex.model.emoji.assets import SpriteSheet, load_sheet
from vidlex.model.emoji.protocol import COLUMNS
from vidlex.model.emoji.vocabulary import HELD_OUT_ACTIONS
from vidlex.model.emoji.world import World
from vidlex.model.eval.calibration import expected_calibration_error, fit_platt, reliability
from vidlex.model.eval.metrics import curve, summarise
from vidlex.model.eval.thresholds import threshold_loss
from vidlex.model.factory import Clip, create_clip, create_label_encoder
from vidlex.model.scoring import Scorer
from vidlex.model.suite.pool import Pool, build_pool, pool_targets
from vidlex.model.text.label_encoder import LabelEncoder
from vidlex.model.train.fit import LabelTask
from vidlex.model.train.fit_config import FitConfig
from vidlex.model.train.loop import console, run
from vidlex.model.train.task import OpenVocabularyNetwork
from vidlex.model.video.encoder import VideoEncoder

CURVE_POINTS = 200
NEVER = 10**9
"""A loop that evaluates so often evaluates never."""
TRAIN_SEED = 800_000
MAIN, WITHOUT_LLM = "main", "without the LLM"
"""Groups of rows that are trained in full, and leave checkpoints."""


@dataclass(frozen=True)
class SuiteConfig:
    """How large the suite is. The default suits two CPU cores and about an hour; the README has a command for a GPU."""

    num_seeds: int = 3
    num_pool_videos: int = 10_000
    num_test_videos: int = 400
    """Per column."""
    num_validation_videos: int = 400
    num_frames: int = 8
    num_branch_blocks: int = 2
    llm: str = "smollm2-135m-instruct"
    num_prefixes: int = 2
    num_attributes: int = 1
    tokens_per_attribute: int = 8
    batch_size: int = 32
    num_step_labels: int = 128
    all_positives: bool = False
    """Whether a step reads every label that is true in its batch, as the paper does, or an unbiased draw of them."""
    num_warmup_steps: int = 100
    """Of the label encoder on frame means, before the joint steps."""
    num_joint_steps: int = 500
    num_prefix_steps: int = 20
    num_prefix_labels: int = 12
    num_baseline_steps: int = 300
    num_tuned_frames: int = 4
    """Frames per video for the method that tunes CLIP's towers."""
    num_tuned_videos: int = 16
    """Videos per step for the same."""
    num_ablation_steps: int = 250
    num_label_ablation_steps: int = 200
    num_long_steps: int = 0
    """Joint steps of further runs of ours, to see what more training gives; 0: none."""
    held: bool = False
    """Whether all rows of ours are held to CLIP and read further pairs, with soft tokens behind the name, and not only
    some of the longer ones; what they are compared with then reads the further pairs too."""
    num_more_pairs: int = 2000
    """Further labels of a thing and what it does, read by what is held to CLIP."""
    video_hold: float = 0.5
    label_hold: float = 1.0
    pair_weight: float = 1.0
    state_noise: float = 0.0
    """``FitConfig.state_noise`` of what is held."""
    num_settling_steps: int = 0
    """Label steps of further rows of the main table, which go on from those of ours (``suite_settle``); 0: none."""
    num_settling_labels: int = 512
    """Per step."""
    num_settling_videos: int = 4000
    """The first ones of the pool."""
    num_settling_pairs: int = 3000
    """Further pairs at most."""
    settling_rate: float = 2.5e-3
    """``FitConfig.label_learning_rate`` of these steps."""
    with_ablations: bool = True
    skipped: str = ""
    """Methods to leave out, separated by commas: fixed_llm writes a text for each of 2,700 labels."""
    device: str = "cpu"
    bf16: bool | None = None

    def video(self) -> VideoEncoderConfig:
        return VideoEncoderConfig(num_branch_blocks=self.num_branch_blocks, num_frames=self.num_frames)

    def label(self) -> LabelEncoderConfig:
        return LabelEncoderConfig(
            llm=self.llm,
            num_prefixes=self.num_prefixes,
            num_attributes=self.num_attributes,
            tokens_per_attribute=self.tokens_per_attribute,
            soft_behind=self.held,
        )

    def holds(self) -> dict[str, Any]:
        """Settings of a training that is held to CLIP."""
        return {
            "num_more_pairs": self.num_more_pairs, "video_hold": self.video_hold, "label_hold": self.label_hold,
            "pair_weight": self.pair_weight, "state_noise": self.state_noise,
        }  # fmt: skip

    def fit(self, seed: int) -> FitConfig:
        fit = FitConfig(
            batch_size=self.batch_size, num_step_labels=self.num_step_labels, all_positives=self.all_positives,
            num_joint_steps=self.num_joint_steps, num_validation_videos=min(64, self.num_validation_videos),
            num_prefix_labels=self.num_prefix_labels,
            num_prefix_steps=self.num_prefix_steps, num_stage_labels=self.num_step_labels,
            device=self.device, bf16=self.bf16, seed=seed,
        )  # fmt: skip
        return replace(fit, **self.holds()) if self.held else fit


@dataclass(frozen=True)
class Row:
    """One run of training and its judging."""

    method: str
    seed: int = 0
    change: str = ""
    """What an ablation changes; empty in the main table."""
    group: str = MAIN
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_full(self) -> bool:
        return self.group in (MAIN, WITHOUT_LLM)

    @property
    def key(self) -> str:
        """Of its files: letters, digits, "-" and "_"."""
        group, change = ("".join(c if c.isalnum() else "-" for c in text) for text in (self.group, self.change))
        return "_".join(part for part in (group, self.method, change, f"seed{self.seed}") if part)


def figures_of(out: Path, row: Row) -> Path:
    """Where the figures of a row are."""
    return out / "rows" / f"{row.key}.json"


class Made(NamedTuple):
    """An untrained network and what it was made of."""

    network: OpenVocabularyNetwork
    clip: Clip
    llm_folder: Path


class Bench:
    """Made once per run; everything here is kept in ``out`` and found again."""

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

        def pool(name: str, world: World, num: int, seed: int, keep_frames: bool = True) -> Pool:
            path = out / "pools" / f"{name}.safetensors"
            return build_pool(path, world, encoder, num, seed=seed, keep_frames=keep_frames, identity=self.identity)

        self.train = pool("train", self.worlds["train"], config.num_pool_videos, TRAIN_SEED)
        self.validation = pool("val", self.worlds["val"], config.num_validation_videos, 810_000)
        self.test = {
            name: pool(name, columns[name], config.num_test_videos, 820_000 + 10_000 * i)
            for i, name in enumerate(COLUMNS)
        }

    def checkpoint(self, row: Row) -> Path:
        """Where a row that is trained in full leaves what it learned."""
        return self.out / "checkpoints" / row.key

    # --- the LLM's part ---

    def network(self, video: VideoEncoderConfig, label: LabelEncoderConfig, seed: int) -> Made:
        """Untrained, with seeds of its own for everything random."""
        torch.manual_seed(seed)
        clip = create_clip(self.clip_name)
        encoder = VideoEncoder(clip.model.visual, video, mean=clip.source.mean, std=clip.source.std)
        labels, llm_folder = create_label_encoder(replace(label, seed=seed), clip)
        return Made(OpenVocabularyNetwork(encoder, labels).to(self.config.device), clip, llm_folder)

    def states(self, encoder: LabelEncoder, name: str, labels: Sequence[str]) -> Tensor:
        """States [V, N, K, L, d] float16 of these labels under the encoder's prefixes, from the disk where possible."""
        prefixes = encoder.prefixes.detach().float().cpu().numpy().tobytes()
        config = encoder.config
        parts = [config.llm, config.prompt_version, config.feedback, config.num_attributes, config.tokens_per_attribute]
        digest = hashlib.sha256(json.dumps([parts, list(labels)]).encode() + prefixes).hexdigest()[:16]
        path = self.out / "states" / f"{name}-{digest}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():
                console.print(f"LLM states of {len(labels)} labels: {name}")
                partial = path.with_suffix(".partial")
                save_file({"states": encoder.cache_states(labels, dtype=torch.float16)}, partial)
                partial.replace(path)
        return load_file(path)["states"]

    def prefixes(self) -> Tensor:
        """The prefixes of all rows: learned once on frame means, few labels a step, through the frozen LLM."""
        path = self.out / "prefixes.safetensors"
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():
                self._learn_prefixes(path)
        return load_file(path)["prefixes"]

    def _learn_prefixes(self, path: Path) -> None:
        config = self.config
        network = self.network(VideoEncoderConfig(num_branch_blocks=0), config.label(), 0).network
        world = self.worlds["train"]
        picks = torch.randperm(len(world.labels), generator=torch.Generator().manual_seed(0))[:600].sort().values
        some = [world.labels[i] for i in picks.tolist()]
        states = self.states(network.label, "starting", some).float()
        network.label.fit_statistics(states)
        fit = replace(config.fit(0), num_more_pairs=0)
        cached = self.frame_means(self.train), self.train.targets[:, picks]
        for name, steps, seen in (
            ("warmup", config.num_warmup_steps, states),
            ("prefix", config.num_prefix_steps, None),
        ):
            task = LabelTask(name, network, cached=cached, world=world, labels=some, states=seen, config=fit)
            loop = replace(fit, bf16=False).loop(steps, num_warmup_steps=5, evaluate_every=NEVER)
            run(task, loop, self.out / "prefix", {"part": "prefix", "identity": self.identity})
        partial = path.with_suffix(".partial")
        save_file({"prefixes": network.label.prefixes.detach().cpu().clone()}, partial)
        partial.replace(path)

    # --- videos ---

    def frame_means(self, pool: Pool) -> Tensor:
        """[n, D] unit vectors: CLIP's zero-shot video features."""
        return F.normalize(pool.trunk.frame_features.float().mean(dim=1), dim=-1)

    def with_more_pairs(self, num: int) -> tuple[World, Pool]:
        """World and pool of training with ``num`` further labels of pairs: the same videos."""
        base = self.worlds["train"]
        if not num:
            return base, self.train
        if num not in self._with_more_pairs:
            world = World(self._art_cache, canvas=base.canvas, num_more_pairs=num, sheet=base.sheet)
            pool = replace(self.train, targets=pool_targets(world, len(self.train), TRAIN_SEED))
            self._with_more_pairs[num] = world, pool
        return self._with_more_pairs[num]

    def column_labels(self) -> list[str]:
        """Every label that any column reads, once."""
        return list(dict.fromkeys(label for name in COLUMNS for label in self.labels[name]))

    # --- judging ---

    def judge(self, logits: Callable[[Pool, Sequence[str]], Tensor]) -> dict[str, Any]:
        """Figures of one model. ``logits(pool, labels)`` is [n, V]."""
        validation = logits(self.validation, self.worlds["val"].labels).float().cpu().numpy()
        truth = self.validation.targets.numpy()
        calibration = fit_platt(validation, truth)
        result: dict[str, Any] = {"columns": {}, "curves": {}}
        for name in COLUMNS:
            scores = logits(self.test[name], self.labels[name]).float().cpu().numpy()
            targets = self.test[name].targets.numpy()
            result["columns"][name] = self._figures(name, scores, targets)
            result["curves"][name] = _points(scores, targets)
            if name == "seen":
                kinds = [self.kinds[name][label] for label in self.labels[name]]
                result["thresholds"] = threshold_loss(scores, targets, None, kinds)
                probabilities = Scorer(1.0, 0.0, calibration).calibration.probability(scores)
                result["reliability"] = reliability(probabilities, targets)
                result["expected_calibration_error"] = expected_calibration_error(probabilities, targets)
        return result

    def _figures(self, name: str, scores: Any, targets: Any) -> dict[str, Any]:
        kinds = np.array([self.kinds[name][label] for label in self.labels[name]])
        parts = {kind: kinds == kind for kind in sorted(set(kinds))}
        if name == "unseen_actions":
            held_out = np.isin(self.labels[name], HELD_OUT_ACTIONS)
            parts = {"held-out actions": held_out, "new words for actions": ~held_out}
        return {
            "all": summarise(scores, targets),
            "parts": {
                part: summarise(scores[:, columns], targets[:, columns])
                for part, columns in parts.items()
                if targets[:, columns].any()
            },
        }

    def one_frame_probe(self) -> dict[str, float]:
        """How far the actions can be read from one frame: a logistic regression on CLIP's features of the middle frame,
        trained on pool videos, against chance; the same for scenes, to show that the probe works."""
        path = self.out / f"one_frame-{self.identity}-{len(self.train)}.json"
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():
                partial = path.with_suffix(".partial")
                partial.write_text(json.dumps(self._probe_one_frame()), encoding="utf-8")
                partial.replace(path)
        found: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
        return found

    def _probe_one_frame(self) -> dict[str, float]:
        train, test = (pool.trunk.frame_features.float().cpu() for pool in (self.train, self.test["seen"]))
        middle = train.shape[1] // 2
        kinds = np.array(list(self.kinds["seen"].values()))
        found: dict[str, float] = {}
        for kind in ("action", "scene"):
            columns = kinds == kind
            y, truth = self.train.targets.numpy()[:, columns], self.test["seen"].targets.numpy()[:, columns]
            rows = slice(0, 4000)
            probe = OneVsRestClassifier(LogisticRegression(max_iter=200)).fit(
                F.normalize(train[rows, middle], dim=-1).numpy() * 10, y[rows]
            )
            scores = probe.decision_function(F.normalize(test[:, middle], dim=-1).numpy() * 10)
            figures = summarise(scores, truth)
            found |= {f"{kind}_aupr": figures["micro_aupr"], f"{kind}_chance": figures["chance"]}
        return found


def _points(scores: Any, targets: Any) -> list[tuple[float, float]]:
    """Some (recall, precision) points of the micro curve, for drawing."""
    precision, recall, _ = curve(scores, targets)
    keep = np.unique(np.linspace(0, len(recall) - 1, CURVE_POINTS).astype(int))
    return [(round(float(recall[i]), 4), round(float(precision[i]), 4)) for i in keep]
