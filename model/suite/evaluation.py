"""Evaluation of a row: features, metrics on every column, and the checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vidlex.model.emoji.protocol import COLUMNS
from vidlex.model.emoji.vocabulary import HELD_OUT_ACTIONS
from vidlex.model.eval.calibration import expected_calibration_error, fit_platt, reliability
from vidlex.model.eval.metrics import precision_recall_curve, summarise
from vidlex.model.eval.thresholds import threshold_loss
from vidlex.model.sources.emoji_pool import Pool, TrunkAdapter
from vidlex.model.suite.context import SuiteContext, SuiteNetwork
from vidlex.model.suite.row import Row
from vidlex.model.train.export import write_checkpoint
from vidlex.model.train.network import OpenVocabularyNetwork
from vidlex.model.video.encoder import Trunk, VideoEncoder

NUM_CURVE_POINTS = 200
BATCH_LABELS = 256

Logits = Callable[[Pool, Sequence[str]], Tensor]  # [n, V]


class LabelStates:
    def __init__(self, context: SuiteContext, network: OpenVocabularyNetwork, *, without_llm: bool = False) -> None:
        self.context, self.encoder, self.without_llm = context, network.label, without_llm
        self.labels = context.column_labels()
        self.position = {label: i for i, label in enumerate(self.labels)}
        self.states = self._read("columns", self.labels)

    def _read(self, name: str, labels: Sequence[str]) -> Tensor:
        if self.without_llm:  # equal for all labels: CLIP reads the name after one learned prompt
            return torch.zeros(len(labels), *self.encoder.state_mean.shape, dtype=torch.float16)
        return self.context.states(self.encoder, name, labels)

    def of_more_pairs(self, labels: Sequence[str]) -> Tensor:
        # Additional training labels are in no column.
        return self._read("pairs", labels)

    def of(self, labels: Sequence[str]) -> Tensor:
        return self.states[[self.position[label] for label in labels]]

    def of_training(self, labels: Sequence[str], pairs: Sequence[str]) -> Tensor:
        """On the device of training. ``pairs``: all additional pairs, of which ``labels`` may have some at its end."""
        own = [label for label in labels if label in self.position]
        states = self.of(own)
        if more := labels[len(own) :]:
            place = {pair: i for i, pair in enumerate(pairs)}
            states = torch.cat((states, self.of_more_pairs(pairs)[[place[label] for label in more]]))
        return states.to(self.context.config.device)

    @torch.no_grad()
    def features(self, network: OpenVocabularyNetwork, labels: Sequence[str]) -> Tensor:
        # [V, D]
        batches = [labels[i : i + BATCH_LABELS] for i in range(0, len(labels), BATCH_LABELS)]
        return torch.cat([network.label.forward_from_states(batch, self.of(batch)) for batch in batches])


def trunk_adapter(encoder: VideoEncoder, pool_blocks: int) -> TrunkAdapter | None:
    """For pools with the tokens before the last ``pool_blocks`` blocks: runs CLIP's own blocks up to the branch.

    None if the encoder has more branch blocks and needs the frames.
    """
    blocks = len(encoder.branch)
    if blocks > pool_blocks:
        return None
    between = encoder.visual.transformer.resblocks[-pool_blocks : -blocks or None] if blocks < pool_blocks else []

    @torch.no_grad()
    def adapt(trunk: Trunk) -> Trunk:
        if not blocks or not len(between):
            return trunk
        b, t, n, d = trunk.tokens.shape
        x = trunk.tokens.float().view(b * t, n, d)
        for block in between:
            x = block(x)
        return Trunk(trunk.frame_features, x.view(b, t, n, d))

    return adapt


@torch.no_grad()
def pool_features(
    network: OpenVocabularyNetwork, pool: Pool, adapter: TrunkAdapter | None, alpha: float | None = None
) -> Tensor:
    """[n, D] unit features. ``alpha`` None: the network's own."""
    features = []
    for chunk in pool.chunks(frames=adapter is None):
        videos = chunk.to(network.bias.device)
        if adapter is not None:
            assert isinstance(videos, Trunk)
            videos = adapter(videos)
        features.append(network.video_features(videos, alpha))
    return torch.cat(features)


def logits_of(network: OpenVocabularyNetwork, states: LabelStates, adapter: TrunkAdapter | None) -> Logits:
    @torch.no_grad()
    def logits(pool: Pool, labels: Sequence[str]) -> Tensor:
        return network.logits(pool_features(network, pool, adapter), states.features(network, labels))

    return logits


def evaluate(context: SuiteContext, logits: Logits) -> dict[str, Any]:
    validation = logits(context.validation, context.worlds["val"].labels).float().cpu().numpy()
    calibration = fit_platt(validation, context.validation.targets.numpy())
    result: dict[str, Any] = {"columns": {}, "curves": {}}
    for name in COLUMNS:
        scores = logits(context.test[name], context.labels[name]).float().cpu().numpy()
        targets = context.test[name].targets.numpy()
        result["columns"][name] = _column_metrics(context, name, scores, targets)
        result["curves"][name] = _curve_points(scores, targets)
        if name == "seen":
            kinds = [context.kinds[name][label] for label in context.labels[name]]
            result["thresholds"] = threshold_loss(scores, targets, None, kinds)
            probabilities = calibration.probability(scores)
            result["reliability"] = reliability(probabilities, targets)
            result["expected_calibration_error"] = expected_calibration_error(probabilities, targets)
    return result


def _column_metrics(
    context: SuiteContext, name: str, scores: NDArray[np.float32], targets: NDArray[np.bool_]
) -> dict[str, Any]:
    kinds = np.array([context.kinds[name][label] for label in context.labels[name]])
    parts = {kind: kinds == kind for kind in sorted(set(kinds))}
    if name == "unseen_actions":
        is_held_out = np.isin(context.labels[name], HELD_OUT_ACTIONS)
        parts = {"held-out actions": is_held_out, "new words for actions": ~is_held_out}
    return {
        "all": summarise(scores, targets),
        "parts": {
            part: summarise(scores[:, columns], targets[:, columns])
            for part, columns in parts.items()
            if targets[:, columns].any()
        },
    }


def _curve_points(scores: NDArray[np.float32], targets: NDArray[np.bool_]) -> list[tuple[float, float]]:
    # (recall, precision)
    precision, recall, _ = precision_recall_curve(scores, targets)
    index = np.unique(np.linspace(0, len(recall) - 1, NUM_CURVE_POINTS).astype(int))
    return [(round(float(recall[i]), 4), round(float(precision[i]), 4)) for i in index]


def save_checkpoint_of(context: SuiteContext, row: Row, trained: SuiteNetwork, logits: Logits) -> None:
    labels = context.worlds["train"].labels
    write_checkpoint(
        context.checkpoint(row),
        trained.network,
        trained.clip,
        trained.llm_folder,
        checkpoint_id=row.key,
        trained_labels=labels,
        validation=(logits(context.validation, labels).cpu(), context.validation.int8_targets),
    )
