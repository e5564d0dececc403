"""The extensions of a stage, from the settings: none by default, which is the paper."""

from __future__ import annotations

from collections.abc import Callable

from vidlex.model.train.extensions.clip_hold import ClipHold, ClipKnowledge
from vidlex.model.train.extensions.extension import Extension
from vidlex.model.train.extensions.state_noise import StateNoise
from vidlex.model.train.fit_config import FitConfig
from vidlex.model.train.network import OpenVocabularyNetwork
from vidlex.model.train.recipe import Stage
from vidlex.model.train.source import TrainingLabels


def create_extensions(
    config: FitConfig,
    stage: Stage,
    network: OpenVocabularyNetwork,
    labels: TrainingLabels,
    knowledge: Callable[[], ClipKnowledge],
) -> list[Extension]:
    """``knowledge`` of ``labels`` is asked for if the stage is held to CLIP."""
    extensions: list[Extension] = []
    if config.state_noise and not stage.through_llm:
        extensions.append(StateNoise(config.state_noise, network.label.state_std, config.seed))
    if stage.with_extensions and (config.video_hold or config.label_hold):
        known = knowledge()
        if stage.videos == "branch" and not stage.through_llm:
            known = known.on_finished_branch(labels.is_composed)
        extensions.append(
            ClipHold(known, labels.is_composed, video_hold=config.video_hold, label_hold=config.label_hold)
        )
    return extensions
