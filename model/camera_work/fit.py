"""Trains the motion branch on cached feature maps of rendered scenes, and calibrates it on scenes of other photos."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from vidlex.model.camera_work.labels import MIRRORED_KEYS, MOTION_KEYS, UPSIDE_DOWN_KEYS, exchanged_columns
from vidlex.model.camera_work.map_cache import MapCache
from vidlex.model.camera_work.truth import label_scene
from vidlex.model.eval.metrics import per_label
from vidlex.model.video.motion_branch import MotionBranch, MotionBranchConfig

# Of the examples whose maps are flipped. A flipped map is not the map of the flipped picture, but it moves like one.
MIRRORED_SHARE, UPSIDE_DOWN_SHARE = 0.5, 0.25


@dataclass(frozen=True)
class MotionFitConfig:
    num_steps: int = 1200
    """Optimiser steps."""
    batch_size: int = 32
    """Scenes per step."""
    learning_rate: float = 1.5e-3
    """Peak learning rate."""
    weight_decay: float = 0.05
    """Weight decay of AdamW."""
    warmup_steps: int = 100
    """Steps of the linear warm-up; a cosine follows."""
    seed: int = 0
    """Seed of weights and order."""


@dataclass(frozen=True, eq=False)
class Batch:
    maps: Tensor  # [B, T, C, H, W]
    present: Tensor  # [B, V]
    known: Tensor  # [B, V]


class Examples:
    """Parts of cached scenes."""

    def __init__(self, caches: Sequence[MapCache]) -> None:
        self.items = [(cache, i) for cache in caches for i in range(len(cache.scenes))]
        self.num_frames = caches[0].maps.shape[1]

    def draw(self, rng: np.random.Generator, batch_size: int) -> Batch:
        """All of one length: half of them 8 frames, as the service samples, others between 2 and all of them."""
        most = self.num_frames
        length = min(8, most) if rng.random() < 0.5 else int(rng.integers(min(4, most), most + 1))
        if rng.random() < 0.03:
            length = int(rng.integers(2, min(4, most) + 1))
        chosen = rng.integers(0, len(self.items), batch_size)
        batch = self._gather([(int(item), self._part(rng, length)) for item in chosen])
        for axis, share, keys in ((4, MIRRORED_SHARE, MIRRORED_KEYS), (3, UPSIDE_DOWN_SHARE, UPSIDE_DOWN_KEYS)):
            batch = _flip(batch, torch.from_numpy(rng.random(batch_size) < share), axis, exchanged_columns(keys))
        return batch

    def _part(self, rng: np.random.Generator, length: int) -> NDArray[np.int64]:
        max_stride = (self.num_frames - 1) // max(length - 1, 1)
        stride = int(rng.integers(1, max(max_stride, 1) + 1))
        first = int(rng.integers(0, self.num_frames - (length - 1) * stride))
        part = first + stride * np.arange(length)
        return part[::-1].copy() if rng.random() < 0.5 else part

    def fixed(self, num_frames: int, batch_size: int = 32) -> list[Batch]:
        """Every scene once: ``num_frames`` of its frames, from its beginning, its middle or its end in turn."""
        last = self.num_frames - num_frames
        parts = [(item, (0, last // 2, last)[item % 3] + np.arange(num_frames)) for item in range(len(self.items))]
        return [self._gather(parts[start : start + batch_size]) for start in range(0, len(parts), batch_size)]

    def _gather(self, parts: Sequence[tuple[int, NDArray[np.int64]]]) -> Batch:
        maps, present, known = [], [], []
        for item, part in parts:
            cache, index = self.items[item]
            maps.append(np.asarray(cache.maps[index])[part])
            truth = label_scene(cache.scenes[index].take(part))
            present.append(truth.present)
            known.append(truth.known)
        return Batch(
            torch.from_numpy(np.stack(maps)).float(),
            torch.from_numpy(np.stack(present)),
            torch.from_numpy(np.stack(known)),
        )


def _flip(batch: Batch, rows: Tensor, axis: int, columns: list[int]) -> Batch:
    maps, present, known = batch.maps.clone(), batch.present.clone(), batch.known.clone()
    maps[rows] = maps[rows].flip(axis)
    present[rows] = present[rows][:, columns]
    known[rows] = known[rows][:, columns]
    return Batch(maps, present, known)


def masked_loss(logits: Tensor, batch: Batch) -> Tensor:
    losses = F.binary_cross_entropy_with_logits(logits, batch.present.float(), reduction="none")
    return (losses * batch.known).sum() / batch.known.sum().clamp_min(1)


def fit_motion_branch(
    examples: Examples,
    config: MotionFitConfig,
    branch_config: MotionBranchConfig | None = None,
    *,
    initial: MotionBranch | None = None,
    progress: Callable[[int, float, MotionBranch], None] | None = None,
) -> MotionBranch:
    torch.manual_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    first = examples.draw(rng, config.batch_size).maps
    if initial is None:
        branch = MotionBranch(
            branch_config or MotionBranchConfig(len(MOTION_KEYS), channels=first.shape[2], grid=first.shape[3])
        )
        branch.mean.copy_(first.mean((0, 1, 3, 4)))
        branch.std.copy_(first.std((0, 1, 3, 4)).clamp_min(1e-3))
    else:
        branch = initial
    decayed = [p for p in branch.parameters() if p.ndim > 1]
    others = [p for p in branch.parameters() if p.ndim <= 1]
    optimiser = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=config.learning_rate,
    )
    for step in range(config.num_steps):
        for group in optimiser.param_groups:
            group["lr"] = config.learning_rate * _rate(step, config)
        branch.train()
        batch = examples.draw(rng, config.batch_size)
        loss = masked_loss(branch.logits(batch.maps), batch)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(branch.parameters(), 1.0)
        optimiser.step()
        if progress is not None:
            progress(step + 1, float(loss.detach()), branch)
    return branch.eval()


def _rate(step: int, config: MotionFitConfig) -> float:
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    share = (step - config.warmup_steps) / max(config.num_steps - config.warmup_steps, 1)
    return 0.5 * (1 + math.cos(math.pi * share)) * 0.98 + 0.02


@torch.no_grad()
def predict(
    branch: MotionBranch, batches: Sequence[Batch]
) -> tuple[NDArray[Any], NDArray[np.bool_], NDArray[np.bool_]]:
    """Logits, present and known, each [B, V]."""
    branch.eval()
    logits = torch.cat([branch.logits(batch.maps) for batch in batches])
    present, known = torch.cat([b.present for b in batches]), torch.cat([b.known for b in batches])
    return logits.numpy(), present.numpy(), known.numpy()


def macro_aupr(logits: NDArray[Any], present: NDArray[np.bool_], known: NDArray[np.bool_]) -> float:
    return float(np.mean([row["aupr"] for row in per_label(logits, present, known) if row["num_positives"]]))


@dataclass(frozen=True)
class LabelCalibration:
    """``probability = sigmoid(scale * score + bias)`` of a standardised score."""

    key: str
    scale: float
    bias: float
    prior: float  # share of the scenes that have the label


def calibrate(branch: MotionBranch, batches: Sequence[Batch]) -> list[LabelCalibration]:
    """Standardises the branch's logits over the scenes, and fits a probability per label (Platt 1999).

    The feature of a single frame becomes the one that gives every label its prior.
    """
    logits, present, known = predict(branch, batches)
    branch.logit_mean.copy_(torch.from_numpy(logits.mean(0)))
    branch.logit_std.copy_(torch.from_numpy(logits.std(0)).clamp_min(1e-3))
    scores = (logits - branch.logit_mean.numpy()) / branch.logit_std.numpy()
    scores = scores.clip(-branch.config.max_score, branch.config.max_score)
    rows = []
    for column, key in enumerate(MOTION_KEYS):
        mask = known[:, column]
        y, x = present[mask, column], scores[mask, column : column + 1]
        prior = float((y.sum() + 1) / (len(y) + 2))
        scale, bias = 1.0, math.log(prior / (1 - prior))
        if y.any() and not y.all():
            found = LogisticRegression(C=100.0).fit(x, y)
            scale, bias = max(float(found.coef_[0, 0]), 0.1), float(found.intercept_[0])
        branch.neutral[column] = (math.log(prior / (1 - prior)) - bias) / scale
        rows.append(LabelCalibration(key, scale, bias, prior))
    return rows
