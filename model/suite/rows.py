"""The rows of the suite, and how each is trained: our method, its ablations and the baselines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from vidlex.model.config import BaselineConfig, LabelEncoderConfig, Method, TemplateSet, VideoEncoderConfig
from vidlex.model.sources.config import EmojiConfig
from vidlex.model.sources.emoji import training_labels
from vidlex.model.sources.emoji_pool import Pool
from vidlex.model.suite.config import SuiteConfig
from vidlex.model.suite.context import SuiteContext
from vidlex.model.suite.evaluation import (
    LabelStates,
    Logits,
    evaluate,
    logits_of,
    save_checkpoint_of,
    trunk_adapter,
)
from vidlex.model.suite.row import WITHOUT_LLM, Row
from vidlex.model.train.baseline import BaselineNetwork, BaselineTask
from vidlex.model.train.fit_config import FitConfig
from vidlex.model.train.loop.config import NO_EVALUATION
from vidlex.model.train.loop.loop import run
from vidlex.model.train.recipe import joint_stage, warmup_stage
from vidlex.model.train.setup import create_baseline, set_up
from vidlex.model.train.stages import StageRunner


@dataclass(frozen=True)
class Baseline:
    method: Method
    templates: TemplateSet = "photo"
    is_trained: bool = True


BASELINES = {
    "clip_name": Baseline("class_name", "name", is_trained=False),
    "clip_photo": Baseline("class_name", "photo", is_trained=False),
    "clip_ensemble": Baseline("class_name", "video", is_trained=False),
    "fixed_llm": Baseline("fixed_llm", is_trained=False),
    "coop": Baseline("coop"),
    "dualcoop": Baseline("dualcoop"),
    "vificlip": Baseline("vificlip"),
}

# The states of every label are zeros, so the prompting transformer returns one learned prompt for all labels.
NO_LLM: dict[str, Any] = {"without_llm": True, "fit": {"state_noise": 0.0}}


def without_llm(config: SuiteConfig) -> list[Row]:
    return [Row("ours", seed, group=WITHOUT_LLM, options=NO_LLM) for seed in range(config.num_seeds)]


def ablations(config: SuiteConfig, tower_depth: int) -> list[Row]:
    """The paper's ablations for a tower of ``tower_depth`` blocks, and with ``config.held`` those of our additions.

    Those of the label side train the label encoder alone, on frame means, and have their own reference.
    """
    label_side: list[tuple[str, dict[str, Any]]] = [
        ("reference", {}),
        ("without the LLM", NO_LLM),
        ("without the prompting transformer", {"without_transformer": True}),
        ("fixed prefixes", {"fixed_prefixes": True}),
        ("re-normalised mean", {"label": {"renormalize": True}}),
        ("with the bare name in the mean", {"label": {"with_name": True}}),
        ("soft fed-back tokens", {"label": {"feedback": "soft"}}),
        ("N = 1", {"label": {"num_prefixes": 1}}),
        ("K = 2", {"label": {"num_attributes": 2, "tokens_per_attribute": 4}}),
        ("L = 4", {"label": {"tokens_per_attribute": 4}}),
    ]
    rows = [Row("ours", 0, change, "label side", options) for change, options in label_side]
    for blocks in sorted({min(blocks, tower_depth) for blocks in (0, 1, 2, 4, 6, config.num_branch_blocks)}):
        rows.append(Row("ours", 0, f"{blocks} branch blocks", "video side", {"video": {"num_branch_blocks": blocks}}))
    rows.append(Row("ours", 0, "no weight interpolation", "video side", {"fit": {"interpolation_lambda": 0.0}}))
    rows.append(Row("ours", 0, "lambda 0.5", "video side", {"fit": {"interpolation_lambda": 0.5}}))
    tuned = {"fit": {"interpolation_lambda": 0.0}, "tuned_trunk": True}
    rows.append(Row("ours", 0, "no weight interpolation, CLIP trunk tuned", "video side", tuned))
    if config.held:
        rows.append(Row("ours", 0, "no further pairs", "video side", {"emoji": {"num_more_pairs": 0}}))
        if config.state_noise:
            rows.append(Row("ours", 0, "no noise on the states", "video side", {"fit": {"state_noise": 0.0}}))
        rows.append(Row("ours", 0, "soft tokens before the name", "video side", {"label": {"soft_behind": False}}))
        rows += [Row("ours", 0, change, "video side", options) for change, options in _without_regulariser()]
    return rows


def _without_regulariser() -> list[tuple[str, dict[str, Any]]]:
    free = {"video_hold": 0.0, "label_hold": 0.0}
    paper = {
        "fit": {**free, "state_noise": 0.0}, "emoji": {"num_more_pairs": 0, "pair_weight": 1.0},
        "label": {"soft_behind": False},
    }  # fmt: skip
    return [("not held to CLIP", {"fit": free}), ("as in the paper", paper)]


def longer_runs(config: SuiteConfig) -> list[Row]:
    """Our method with ``num_long_steps`` joint steps; no rows if that is 0.

    With ``config.held`` these are the runs without the CLIP regulariser. Otherwise they are every seed, one run with
    the bare name in the mean, and every seed with the CLIP regulariser.
    """
    steps = config.num_long_steps
    if not steps:
        return []
    change, longer = f"{steps} joint steps", {"fit": {"num_joint_steps": steps}}
    if config.held:
        free, (as_paper, paper) = _without_regulariser()
        fixed = {**paper, "fit": {**paper["fit"], "interpolation_lambda": 0.0}}  # forgetting shows over many steps
        return [
            Row("ours", 0, f"{change}, {removed}", "length", {**options, "fit": {**longer["fit"], **options["fit"]}})
            for removed, options in (free, (as_paper, paper), (f"{as_paper} but for weight interpolation", fixed))
        ]
    rows = [Row("ours", seed, change, "length", longer) for seed in range(config.num_seeds)]
    with_name = {**longer, "label": {"with_name": True}}
    rows.append(Row("ours", 0, f"{change}, the bare name in the mean", "length", with_name))
    regularised = config.regularised()
    held: dict[str, Any] = {
        "fit": {"num_joint_steps": steps, **regularised["fit"]}, "emoji": regularised["emoji"],
        "label": {"soft_behind": True},
    }  # fmt: skip
    return [
        *rows,
        *(Row("ours", seed, f"{change}, held to CLIP", "length", held) for seed in range(config.num_seeds)),
    ]


def train_ours(context: SuiteContext, row: Row) -> dict[str, Any]:
    """Train the label encoder on frame means, then both encoders; choose alpha in validation."""
    config, options = context.config, row.options
    video, label, fit, emoji = _settings(config, row)
    created = context.create_network(video, label, row.seed)
    network = created.network
    if not (options.get("fixed_prefixes") or options.get("without_llm")):
        network.label.prefixes.data.copy_(context.prefixes()[: label.num_prefixes])
    if options.get("without_transformer"):
        network.label.prompting.blocks = nn.ModuleList()
    states = LabelStates(context, network, without_llm=bool(options.get("without_llm")))
    # statistics of the labels that every row has
    network.label.fit_statistics(states.of(context.worlds["train"].labels).float())
    world, pool = context.with_more_pairs(emoji.num_more_pairs)
    trains_tower = bool(options.get("tuned_trunk"))
    adapter = None if trains_tower else trunk_adapter(network.video, config.num_branch_blocks)
    source = context.source(fit, pool, training_labels(world, emoji), frames=adapter is None, adapter=adapter)
    runner = StageRunner(
        network, source, fit, out=context.run_folder(row), description=context.run_description(row),
        states_of=lambda names: states.of_training(names, context.more_pairs(world)), has_statistics=True,
        keeps_features=False,
    )  # fmt: skip
    stages = [warmup_stage(fit)]
    if network.video.branch:
        stages.append(joint_stage(fit, tunes_tower=trains_tower))
    runner.run(stages)
    logits = logits_of(network, states, adapter)
    if row.is_full:
        save_checkpoint_of(context, row, created, logits)
    return {**evaluate(context, logits), "alpha": runner.alpha, "num_parameters": _num_trainable(network)}


def _settings(config: SuiteConfig, row: Row) -> tuple[VideoEncoderConfig, LabelEncoderConfig, FitConfig, EmojiConfig]:
    options = row.options
    is_label_side = row.group == "label side"
    blocks = 0 if is_label_side else config.num_branch_blocks
    video = replace(config.video(), **{"num_branch_blocks": blocks, **options.get("video", {})})
    fit = config.fit(row.seed)
    if not row.is_full:
        fit = replace(fit, num_joint_steps=config.num_ablation_steps)
    if is_label_side:
        fit = replace(fit, num_warmup_steps=config.num_label_ablation_steps)
    fit = replace(fit, **options.get("fit", {}))
    emoji = replace(config.emoji(), **options.get("emoji", {}))
    if is_label_side:  # each of these needs its own LLM states, which are slow for many pairs
        emoji = replace(emoji, num_more_pairs=0)
    return video, replace(config.label(), **options.get("label", {})), fit, emoji


def train_baseline(context: SuiteContext, row: Row) -> dict[str, Any]:
    config, spec = context.config, BASELINES[row.method]
    baseline = BaselineConfig(templates=spec.templates)
    label = replace(config.label(), seed=row.seed, soft_behind=False)
    fit = replace(config.fit(row.seed), num_joint_steps=config.num_baseline_steps)
    backbone = set_up(fit, replace(config.video(), num_branch_blocks=0), clip_name=context.clip_name)
    network, _ = create_baseline(backbone, spec.method, baseline, label, fit)
    trains_towers = network.train_towers
    if trains_towers:
        fit = replace(fit, batch_size=config.num_tuned_videos)
        baseline = replace(baseline, learning_rate=1e-4)  # a small tower needs a higher rate than the 1e-5 of ViT-B
    if spec.is_trained:
        emoji = config.emoji()
        world, pool = context.with_more_pairs(emoji.num_more_pairs)
        source = context.source(
            fit, pool, training_labels(world, emoji), frames=trains_towers,
            num_frames=config.num_tuned_frames if trains_towers else 0,
        )  # fmt: skip
        task = BaselineTask(spec.method, network, source, fit, baseline)
        loop = fit.loop(
            fit.num_joint_steps, num_warmup_steps=fit.num_joint_steps // 10 + 1, evaluate_every=NO_EVALUATION
        )
        run(task, loop, context.run_folder(row), context.run_description(row))
    result = evaluate(context, _baseline_logits(network, trains_towers))
    return {**result, "num_parameters": _num_trainable(network) if spec.is_trained else 0}


def _baseline_logits(network: BaselineNetwork, trains_towers: bool) -> Logits:
    features: dict[str, Tensor] = {}

    @torch.no_grad()
    def logits(pool: Pool, labels: Sequence[str]) -> Tensor:
        device = network.bias.device
        frames = torch.cat([network.frame_features(chunk.to(device)) for chunk in pool.chunks(frames=trains_towers)])
        missing = [label for label in labels if label not in features]
        for i in range(0, len(missing), 128):
            features.update(zip(missing[i : i + 128], network.label(missing[i : i + 128]), strict=True))
        return network.logits_from_features(frames, torch.stack([features[label] for label in labels]))

    return logits


def _num_trainable(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters() if p.requires_grad)
