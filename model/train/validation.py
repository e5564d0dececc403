"""Validation of the stages: features and logits of fixed videos, metrics over known pairs, the choice of alpha."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from vidlex.model.eval.metrics import summarise
from vidlex.model.train.fit_config import FitConfig
from vidlex.model.train.loop.loop import console
from vidlex.model.train.loop.processes import process_group
from vidlex.model.train.losses import NEGATIVE, POSITIVE, UNKNOWN
from vidlex.model.train.network import OpenVocabularyNetwork
from vidlex.model.train.source import LabelledVideos, TrainingSource
from vidlex.model.video.encoder import Trunk

ALPHAS = (0.25, 0.5, 0.75, 1.0)  # candidates for the interpolation of the branch's weights
MAX_ALPHA_VIDEOS = 400
# Of each class among the validation pairs. The threshold of Peak F1 and the two numbers of the calibration are fitted
# on them: with ten positives, the standard error of the recall at a threshold is up to 0.16.
MIN_VALIDATION_PAIRS = 10
SECONDS_BETWEEN_REPORTS = 15.0


def check_validation(targets: Tensor) -> None:
    """``targets`` [n, V] int8. Raises ValueError if metrics, threshold and calibration could not be computed."""
    if not len(targets):
        raise ValueError("there are no validation videos")
    for name, value in (("positive", POSITIVE), ("negative", NEGATIVE)):
        num = int((targets == value).sum())
        if num < MIN_VALIDATION_PAIRS:
            raise ValueError(
                f"the {len(targets)} validation videos have {num} known {name} labels of the training vocabulary: the "
                f"threshold and the calibration of the checkpoint need at least {MIN_VALIDATION_PAIRS}"
            )


def features_of_videos(
    features_of: Callable[[Tensor | Trunk], Tensor], videos: Iterable[LabelledVideos], config: FitConfig
) -> tuple[Tensor, Tensor]:
    """[n, ...] on the device of training, and targets [n, V] int8. Raises ValueError without videos."""
    features, targets, num_done, reported = [], [], 0, time.monotonic()
    for chunk in videos:
        with torch.autocast(torch.device(config.device).type, dtype=torch.bfloat16, enabled=bool(config.bf16)):
            features.append(features_of(chunk.frames.to(config.device)))
        targets.append(chunk.targets)
        num_done += len(chunk.targets)
        if time.monotonic() > reported + SECONDS_BETWEEN_REPORTS:
            console.print(f"features of {num_done} videos", highlight=False)
            reported = time.monotonic()
    if not features:
        raise ValueError("none of the videos can be decoded")
    return torch.cat(features), torch.cat(targets)


@torch.no_grad()
def compute_video_features(
    network: OpenVocabularyNetwork, videos: Iterable[LabelledVideos], config: FitConfig, *, alpha: float | None
) -> tuple[Tensor, Tensor]:
    # [n, D], [n, V]
    return features_of_videos(lambda frames: network.video_features(frames, alpha).float(), videos, config)


@torch.no_grad()
def frame_mean_features(
    network: OpenVocabularyNetwork, videos: Iterable[LabelledVideos], config: FitConfig
) -> tuple[Tensor, Tensor]:
    # [n, D], [n, V]
    return features_of_videos(network.frame_means, videos, config)


@torch.no_grad()
def evaluate_network(
    network: OpenVocabularyNetwork,
    source: TrainingSource,
    states: Tensor,
    config: FitConfig,
    *,
    num_videos: int,
    alpha: float | None,
) -> tuple[Tensor, Tensor]:
    """Logits and targets [n, V] over ``source.validation_labels``; ``states``: of ``source.labels``."""
    videos, targets = compute_video_features(network, source.validation_videos(num_videos), config, alpha=alpha)
    names = source.validation_labels
    labels = network.label.forward_from_states(list(names), rows_of(names, source, states).to(config.device))
    return network.logits(videos, labels).cpu(), targets


def rows_of(names: Sequence[str], source: TrainingSource, values: Tensor) -> Tensor:
    """``values``: [V, ...] over ``source.labels``."""
    position = {name: i for i, name in enumerate(source.labels.names)}
    index = torch.tensor([position[name] for name in names])
    return values[: len(index)] if torch.equal(index, torch.arange(len(index))) else values[index]


def metrics_by_kind(
    logits: Tensor, targets: Tensor, names: Sequence[str], kinds: Mapping[str, str]
) -> dict[str, float]:
    """Micro AUPR over known pairs, of all labels and of each kind with a positive. ``names`` [V]."""
    metrics = {"micro_aupr": _micro_aupr(logits, targets)}
    for kind in dict.fromkeys(kinds.values()):
        columns = torch.tensor([kinds.get(name) == kind for name in names])
        if (targets[:, columns] == POSITIVE).any():
            metrics[f"aupr_{kind}"] = _micro_aupr(logits[:, columns], targets[:, columns])
    return metrics


def _micro_aupr(logits: Tensor, targets: Tensor) -> float:
    known = (targets != UNKNOWN).numpy()
    return float(summarise(logits.cpu().numpy(), (targets == POSITIVE).numpy(), known)["micro_aupr"])


def choose_alpha(network: OpenVocabularyNetwork, source: TrainingSource, states: Tensor, config: FitConfig) -> float:
    """Fold the alpha with the best micro AUPR on validation videos into the branch. The main process evaluates."""
    processes = process_group(network.device.type)
    best = 0.0
    if processes.is_main:
        scores = {}
        num_videos = min(MAX_ALPHA_VIDEOS, config.num_validation_videos)
        for alpha in ALPHAS:
            found = evaluate_network(network, source, states, config, num_videos=num_videos, alpha=alpha)
            scores[alpha] = _micro_aupr(*found)
            console.print(f"alpha {alpha}: validation micro AUPR {scores[alpha]:.4f}", highlight=False)
        best = max(scores, key=lambda alpha: scores[alpha])
    best = float(processes.broadcast(best))
    network.video.fold(best)
    return best
