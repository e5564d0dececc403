"""The rows of the suite, and how each is trained: our method, its ablations and the baselines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from vidlex.model.config import BaselineConfig, LabelEncoderConfig, Method, TemplateSet, VideoEncoderConfig
from vidlex.model.factory import create_baseline_labels, create_clip
from vidlex.model.suite.config import SuiteConfig
from vidlex.model.suite.context import SuiteContext
from vidlex.model.suite.evaluation import (
    LabelStates,
    Logits,
    TrunkAdapter,
    evaluate,
    logits_of,
    pool_features,
    save_checkpoint_of,
    trunk_adapter,
)
from vidlex.model.suite.pool import Pool, PoolVideos
from vidlex.model.suite.row import WITHOUT_LLM, Row
from vidlex.model.train.baseline import BaselineNetwork, BaselineTask
from vidlex.model.train.clip_regulariser import ClipRegulariser
from vidlex.model.train.fit import JointTask, LabelTask, choose_alpha
from vidlex.model.train.fit_config import FitConfig
from vidlex.model.train.loop.loop import NO_EVALUATION, run
from vidlex.model.train.network import OpenVocabularyNetwork
from vidlex.model.video.encoder import VideoEncoder


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
        rows.append(Row("ours", 0, "no further pairs", "video side", {"fit": {"num_more_pairs": 0}}))
        if config.state_noise:
            rows.append(Row("ours", 0, "no noise on the states", "video side", {"fit": {"state_noise": 0.0}}))
        rows.append(Row("ours", 0, "soft tokens before the name", "video side", {"label": {"soft_behind": False}}))
        rows += [Row("ours", 0, change, "video side", options) for change, options in _without_regulariser()]
    return rows


def _without_regulariser() -> list[tuple[str, dict[str, Any]]]:
    free = {"video_hold": 0.0, "label_hold": 0.0}
    paper = {
        "fit": {**free, "num_more_pairs": 0, "pair_weight": 1.0, "state_noise": 0.0}, "label": {"soft_behind": False}
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
    held: dict[str, Any] = {"fit": {"num_joint_steps": steps, **config.regularised()}, "label": {"soft_behind": True}}
    return [
        *rows,
        *(Row("ours", seed, f"{change}, held to CLIP", "length", held) for seed in range(config.num_seeds)),
    ]


def train_ours(context: SuiteContext, row: Row) -> dict[str, Any]:
    """Train the label encoder on frame means, then both encoders; choose alpha in validation."""
    config, options = context.config, row.options
    video, label, fit = _settings(config, row)
    created = context.create_network(video, label, row.seed)
    network = created.network
    if not (options.get("fixed_prefixes") or options.get("without_llm")):
        network.label.prefixes.data.copy_(context.prefixes()[: label.num_prefixes])
    if options.get("without_transformer"):
        network.label.prompting.blocks = nn.ModuleList()
    states = LabelStates(context, network, without_llm=bool(options.get("without_llm")))
    base = context.worlds["train"]
    train_states = states.of(base.labels)
    network.label.fit_statistics(train_states.float())
    world, pool = context.with_more_pairs(fit.num_more_pairs)
    if more := world.labels[len(base.labels) :]:
        train_states = torch.cat((train_states, states.of_more_pairs(more)))
    train_states = train_states.to(config.device)
    out, description = context.run_folder(row), context.run_description(row)
    cached = context.frame_means(pool), pool.targets
    regulariser: ClipRegulariser | None = None
    if fit.video_hold or fit.label_hold:
        regulariser = ClipRegulariser.fit(network.label.clip_text, world.labels, world.kinds(), *cached)
    is_label_side = row.group == "label side"
    label_task = LabelTask(
        "warmup", network, cached=cached, world=world, states=train_states, config=fit, regulariser=regulariser
    )
    num_label_steps = config.num_label_ablation_steps if is_label_side else config.num_warmup_steps
    loop = fit.loop(num_label_steps, num_warmup_steps=10, evaluate_every=NO_EVALUATION)
    run(label_task, loop, out, description)
    trains_trunk = bool(options.get("tuned_trunk"))
    adapter = None if trains_trunk else trunk_adapter(network.video, config.num_branch_blocks)
    alpha = None
    if network.video.branch:
        network.video.requires_grad_(True)
        network.video.visual.requires_grad_(trains_trunk)
        task = JointTask(network, {**context.worlds, "train": world}, train_states, fit, regulariser)
        task.videos = PoolVideos(
            pool, batch_size=fit.batch_size, seed=fit.seed, frames=adapter is None, adapter=adapter
        )
        run(task, fit.loop(fit.num_joint_steps, num_warmup_steps=50, evaluate_every=NO_EVALUATION), out, description)
        alpha = _choose_alpha(context, network, states, adapter)
    logits = logits_of(network, states, adapter)
    if row.is_full:
        save_checkpoint_of(context, row, created, logits)
    return {**evaluate(context, logits), "alpha": alpha, "num_parameters": _num_trainable(network)}


@torch.no_grad()
def _choose_alpha(
    context: SuiteContext, network: OpenVocabularyNetwork, states: LabelStates, adapter: TrunkAdapter | None
) -> float:
    texts = states.features(network, context.worlds["val"].labels)
    pool = context.validation
    return choose_alpha(
        network, lambda alpha: (network.logits(pool_features(network, pool, adapter, alpha), texts), pool.targets)
    )


def _settings(config: SuiteConfig, row: Row) -> tuple[VideoEncoderConfig, LabelEncoderConfig, FitConfig]:
    options = row.options
    is_label_side = row.group == "label side"
    blocks = 0 if is_label_side else config.num_branch_blocks
    video = replace(config.video(), **{"num_branch_blocks": blocks, **options.get("video", {})})
    fit = config.fit(row.seed)
    if not row.is_full:
        fit = replace(fit, num_joint_steps=config.num_ablation_steps)
    fit = replace(fit, **options.get("fit", {}))
    if is_label_side:  # each of these needs its own LLM states, which are slow for many pairs
        fit = replace(fit, num_more_pairs=0)
    return video, replace(config.label(), **options.get("label", {})), fit


def train_baseline(context: SuiteContext, row: Row) -> dict[str, Any]:
    config, spec = context.config, BASELINES[row.method]
    torch.manual_seed(row.seed)
    clip = create_clip(context.clip_name)
    encoder = VideoEncoder(
        clip.model.visual, replace(config.video(), num_branch_blocks=0), mean=clip.source.mean, std=clip.source.std
    )
    baseline = BaselineConfig(templates=spec.templates)
    label = replace(config.label(), seed=row.seed, soft_behind=False)
    labels, _ = create_baseline_labels(spec.method, baseline, label, clip)
    trains_towers = spec.method == "vificlip"
    network = BaselineNetwork(clip.model, encoder, labels, places=baseline.places, train_towers=trains_towers)
    network.to(config.device)
    fit = replace(config.fit(row.seed), num_joint_steps=config.num_baseline_steps)
    if trains_towers:
        fit = replace(fit, batch_size=config.num_tuned_videos)
        baseline = replace(baseline, learning_rate=1e-4)  # a small tower needs a higher rate than the 1e-5 of ViT-B
    if spec.is_trained:
        world, pool = context.with_more_pairs(fit.num_more_pairs)
        task = BaselineTask(spec.method, network, {**context.worlds, "train": world}, fit, baseline)
        task.videos = PoolVideos(
            pool, batch_size=fit.batch_size, seed=fit.seed, frames=trains_towers,
            num_frames=config.num_tuned_frames if trains_towers else 0,
        )  # fmt: skip
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
