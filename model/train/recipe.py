"""A recipe: the stages of a training run, in order, as data. ``vidlex.model.train.stages`` runs one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from vidlex.model.train.fit_config import FitConfig
from vidlex.model.train.loop.config import NO_EVALUATION

# What has a learning rate of its own: the branch's new parameters and its copies of the tower's, the tower itself, the
# prompting transformer, the prefixes, and scale and bias of the logits.
Part = Literal["new", "copied", "tower", "prompting", "prefixes", "scoring"]
# The videos of a stage: new ones in every step, or fixed ones of which only features are needed: the frame means of the
# frozen tower, or the features of the branch as earlier stages left it.
Videos = Literal["drawn", "frame_means", "branch"]

PROMPTING_SHARE = 0.4  # of ``label_learning_rate``, on fixed features


@dataclass(frozen=True)
class Stage:
    name: str  # of its state, its lines in the log and its curves; unique in a recipe
    videos: Videos
    rates: Mapping[Part, float]  # peak learning rates; other parts do not change
    num_steps: int
    num_ramp_steps: int  # in which the learning rates rise
    num_labels: int = 0  # per step of a stage on fixed features; 0: all
    num_vocabulary: int = 0  # labels that the stage learns on, a random choice; 0: all
    evaluate_every: int = NO_EVALUATION
    restarts: bool = False  # the label encoder keeps its prefixes only, and the rest starts from its initial weights
    with_extensions: bool = True  # the losses of ``vidlex.model.train.extensions``, if any are on

    @property
    def through_llm(self) -> bool:
        """The prefixes train, so each step runs its labels through the LLM. Otherwise the LLM's states are known."""
        return "prefixes" in self.rates


def joint_stage(config: FitConfig, *, tunes_tower: bool = False) -> Stage:
    """The temporal branch and the prompting transformer. ``tunes_tower`` is an ablation: the tower trains too."""
    tower: dict[Part, float] = {"tower": config.copied_learning_rate / 4} if tunes_tower else {}
    return Stage(
        "joint",
        "drawn",
        {
            "new": config.new_learning_rate,
            "copied": config.copied_learning_rate,
            **tower,
            "prompting": config.label_learning_rate,
            "scoring": 5 * config.label_learning_rate,
        },
        config.num_joint_steps,
        config.num_ramp_steps,
        evaluate_every=config.evaluate_every,
    )


def prefix_stage(config: FitConfig, videos: Videos, *, with_extensions: bool = True) -> Stage:
    """The prefixes, end to end through the frozen LLM with few labels per step."""
    return Stage(
        "prefix",
        videos,
        {**label_rates(config), "prefixes": config.prefix_learning_rate},
        config.num_prefix_steps,
        num_ramp_steps=5,
        num_labels=config.num_prefix_labels,
        num_vocabulary=config.num_prefix_vocabulary,
        with_extensions=with_extensions,
    )


def start_stage(config: FitConfig) -> Stage:
    """The prompting transformer on the initial prefixes, so that a prefix stage has a gradient to follow."""
    return Stage(
        "start", "frame_means", label_rates(config), config.num_warmup_steps, num_ramp_steps=5,
        num_labels=config.num_step_labels, num_vocabulary=config.num_prefix_vocabulary, with_extensions=False,
    )  # fmt: skip


def warmup_stage(config: FitConfig, *, restarts: bool = False) -> Stage:
    """The prompting transformer on frame means, before the branch trains."""
    return Stage(
        "warmup", "frame_means", label_rates(config), config.num_warmup_steps, num_ramp_steps=10,
        num_labels=config.num_step_labels, restarts=restarts,
    )  # fmt: skip


def label_stage(config: FitConfig) -> Stage:
    """The prompting transformer, scale and bias on the finished branch."""
    rate = config.label_stage_learning_rate or PROMPTING_SHARE * config.label_learning_rate
    return Stage(
        "label", "branch", {"prompting": rate, "scoring": rate}, config.num_label_steps, num_ramp_steps=10,
        num_labels=config.num_stage_labels, evaluate_every=max(1, config.num_label_steps // 10),
    )  # fmt: skip


def label_rates(config: FitConfig) -> dict[Part, float]:
    rate = PROMPTING_SHARE * config.label_learning_rate
    return {"prompting": rate, "scoring": rate}


def recipe(config: FitConfig) -> list[Stage]:
    """The stages of ``config.recipe``. Raises ValueError for an unknown or repeated name, or an order without sense."""
    names = [name.strip() for name in config.recipe.split(",")]
    create: dict[str, Callable[[Sequence[str]], Stage]] = {
        "start": lambda before: start_stage(config),
        "prefix": lambda before: prefix_stage(
            config, "branch" if "joint" in before else "frame_means", with_extensions="joint" in before
        ),
        "warmup": lambda before: warmup_stage(config, restarts="prefix" in before),
        "joint": lambda before: joint_stage(config),
        "label": lambda before: label_stage(config),
    }
    stages = []
    for place, name in enumerate(names):
        before = names[:place]
        if name not in create:
            raise ValueError(f"unknown stage {name!r} in the recipe: {', '.join(create)}")
        if name in before:
            raise ValueError(f"the recipe has the stage {name!r} twice")
        if name in ("start", "warmup") and "joint" in before:
            raise ValueError(f"the stage {name!r} learns on frame means: it comes before the joint stage")
        stages.append(create[name](before))
    if "joint" not in names:
        raise ValueError("a recipe needs the joint stage")
    return stages
