"""Runs the stages of a recipe. What a run has computed for its stages is kept in its folder: a resumed run reads it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vidlex.model.checkpoint import digest_tensors
from vidlex.model.files import replace_atomically, save_tensors
from vidlex.model.train.extensions.clip_hold import ClipKnowledge
from vidlex.model.train.extensions.create import create_extensions
from vidlex.model.train.extensions.extension import Extension
from vidlex.model.train.fit import JointTask, LabelTask, Validation
from vidlex.model.train.fit_config import FitConfig
from vidlex.model.train.loop.config import NO_EVALUATION
from vidlex.model.train.loop.loop import console, run
from vidlex.model.train.loop.processes import process_group
from vidlex.model.train.loop.run_log import RunFile
from vidlex.model.train.network import OpenVocabularyNetwork
from vidlex.model.train.recipe import Stage, Videos
from vidlex.model.train.source import LabelledVideos, TrainingLabels, TrainingSource
from vidlex.model.train.validation import choose_alpha, compute_video_features, frame_mean_features, rows_of

VOCABULARY_SEED = 0

StatesOf = Callable[[Sequence[str]], Tensor]  # [V, N, K, L, d] for the current prefixes


class StageRunner:
    """``states_of`` gives the language model's states; ``description`` all settings of the run.
    ``has_statistics``: ``fit_statistics`` of the label encoder was called. With ``keeps_features``, features of fixed
    videos are kept in ``out/features``.
    """

    def __init__(
        self,
        network: OpenVocabularyNetwork,
        source: TrainingSource,
        config: FitConfig,
        *,
        states_of: StatesOf,
        out: Path,
        description: Mapping[str, Any],
        has_statistics: bool = False,
        keeps_features: bool = True,
    ) -> None:
        self.network, self.source, self.config = network, source, config
        self.states_of, self.out, self.description, self.keeps_features = states_of, out, description, keeps_features
        self.is_main = process_group(torch.device(config.device).type).is_main
        self.alpha: float | None = None  # that was folded into the branch
        self._has_statistics = has_statistics
        self._last: tuple[tuple[str, ...], Tensor, Tensor] | None = None  # names, prefixes, states
        self._initial = _copy([*network.label.prompting.parameters(), network.log_scale, network.bias])
        self._knowledge: dict[tuple[str, ...], ClipKnowledge] = {}

    def run(self, stages: Sequence[Stage]) -> None:
        for stage in stages:
            self._run(stage)

    def validation(self) -> Validation:
        """Of the network as it is, for labels of the validation."""
        num, names = self.config.num_validation_videos, self.source.validation_labels
        features, targets = self._features("branch", self.source.validation_videos, num, "validation")
        states = self._states(self.source.labels.names)
        return Validation(features, targets, names, rows_of(names, self.source, states))

    def _run(self, stage: Stage) -> None:
        network, config, source = self.network, self.config, self.source
        index = _vocabulary(source.labels, stage.num_vocabulary)
        labels = source.labels.select(index)
        if stage.restarts:
            self._restart()
        if not self._has_statistics:
            network.label.fit_statistics(self._states(labels.names))
            self._has_statistics = True
        extensions = create_extensions(config, stage, network, labels, lambda: self._known(labels, index))
        task: JointTask | LabelTask
        if stage.videos == "drawn":
            task = JointTask(stage, network, source, self._states(labels.names), config, extensions=extensions)
        else:
            task = self._label_task(stage, labels, index, extensions)
        if stage.through_llm:
            config = replace(config, bf16=False)
        loop = config.loop(stage.num_steps, num_warmup_steps=stage.num_ramp_steps, evaluate_every=stage.evaluate_every)
        run(task, loop, self.out, self.description)
        if stage.videos == "drawn":
            self.alpha = self._fold_best_alpha(stage, self._states(labels.names))

    def _label_task(
        self, stage: Stage, labels: TrainingLabels, index: Tensor, extensions: Sequence[Extension]
    ) -> LabelTask:
        features, targets = self._training_features(stage.videos)
        is_evaluated = self.is_main and not stage.through_llm and stage.evaluate_every != NO_EVALUATION
        return LabelTask(
            stage,
            self.network,
            cached=(features, targets[:, index]),
            labels=labels,
            states=None if stage.through_llm else self._states(labels.names),
            config=self.config,
            validation=self.validation() if is_evaluated else None,
            extensions=extensions,
        )

    def _states(self, names: tuple[str, ...]) -> Tensor:
        prefixes = self.network.label.prefixes.detach()
        if self._last is None or self._last[0] != names or not torch.equal(self._last[1], prefixes):
            self._last = (names, prefixes.clone(), self.states_of(names))
        return self._last[2]

    def _restart(self) -> None:
        label = self.network.label
        with torch.no_grad():
            for parameter, value in zip(
                [*label.prompting.parameters(), self.network.log_scale, self.network.bias], self._initial, strict=True
            ):
                parameter.copy_(value)
        self._has_statistics = False

    def _known(self, labels: TrainingLabels, index: Tensor) -> ClipKnowledge:
        if labels.names not in self._knowledge:
            features, targets = self._training_features("frame_means")
            console.print(f"frozen CLIP's knowledge of {len(labels.names)} labels", highlight=False)
            self._knowledge[labels.names] = ClipKnowledge.fit(
                self.network.label.clip_text, labels.names, labels.kinds, features, targets[:, index]
            )
        return self._knowledge[labels.names]

    def _training_features(self, videos: Videos) -> tuple[Tensor, Tensor]:
        return self._features(videos, self.source.training_videos, self.config.num_cached_videos, "training")

    def _features(
        self, videos: Videos, read: Callable[[int], Any], num_videos: int, title: str
    ) -> tuple[Tensor, Tensor]:
        """[n, D] of fixed videos, and their targets [n, V] int8."""
        name = f"{title}-{videos}" if self.network.video.head is None else f"{title}-{videos}-extended"
        path = self.out / "features" / f"{name}.safetensors"
        weights = digest_tensors(dict(self.network.video.trainable_parameters())) if videos == "branch" else ""
        identity = json.dumps([name, num_videos, weights, dict(self.description)], sort_keys=True)
        device = self.config.device
        if self.keeps_features and (kept := _read_kept(path, identity)) is not None:
            return kept[0].to(device), kept[1]
        console.print(f"features of {num_videos} {title} videos", highlight=False)
        chunks = _reporting(read(num_videos), num_videos, title)
        if videos == "frame_means":
            found = frame_mean_features(self.network, chunks, self.config)
        else:
            found = compute_video_features(self.network, chunks, self.config, alpha=None)
        if self.keeps_features and self.is_main:
            _write_kept(path, identity, *found)
        return found

    def _fold_best_alpha(self, stage: Stage, states: Tensor) -> float:
        network, processes = self.network, process_group(self.network.device.type)
        run_file = RunFile(self.out, is_writer=self.is_main)
        weights = digest_tensors(dict(network.video.trainable_parameters()))
        recorded = run_file.data.get("stages", {}).get(stage.name, {})
        best = processes.broadcast(recorded["alpha"] if recorded.get("weights") == weights else None)
        if best is None:
            best = choose_alpha(network, self.source, states, self.config)
            run_file.update_stage(stage.name, alpha=best, weights=weights)
        else:
            network.video.fold(best)
        return float(best)


def _vocabulary(labels: TrainingLabels, num: int) -> Tensor:
    """Sorted indices of ``num`` labels, drawn at random from those that have no group; all with ``num`` 0."""
    num_all = len(labels.names)
    if not num:
        return torch.arange(num_all)
    order = torch.randperm(num_all, generator=torch.Generator().manual_seed(VOCABULARY_SEED))
    if labels.groups is not None:
        order = order[labels.groups[order] < 0]
    return order[:num].sort().values


def _reporting(chunks: Any, num_videos: int, title: str) -> Any:
    done = reported = 0
    chunk: LabelledVideos
    for chunk in chunks:
        yield chunk
        done += len(chunk.targets)
        if done - reported >= max(512, num_videos // 10):
            reported = done
            console.print(f"features of {title} videos: {done} of {num_videos}", highlight=False)


def _write_kept(path: Path, identity: str, features: Tensor, targets: Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_atomically(path) as temporary:
        tensors = {"features": features.contiguous(), "targets": targets.contiguous()}
        save_tensors(tensors, temporary, metadata={"identity": identity})


def _read_kept(path: Path, identity: str) -> tuple[Tensor, Tensor] | None:
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as archive:
            if archive.metadata().get("identity") != identity:
                return None
            return archive.get_tensor("features"), archive.get_tensor("targets")
    except SafetensorError:
        return None  # damaged


def _copy(parameters: Sequence[Tensor]) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in parameters]
