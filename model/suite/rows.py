"""How each row of the suite is trained: our method and its variants, and the methods it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from vidlex.model.config import BaselineConfig, LabelEncoderConfig, Method, TemplateSet, VideoEncoderConfig
from vidlex.model.factory import create_baseline_labels, create_clip
from vidlex.model.suite.bench import NEVER, WITHOUT_LLM, Bench, Row, SuiteConfig
from vidlex.model.suite.judging import AtDepth, States, at_depth_of, choose_alpha, judge_of, keep
from vidlex.model.suite.pool import Pool, PoolVideos
from vidlex.model.train.baseline import BaselineNetwork, BaselineTask
from vidlex.model.train.clip_regulariser import Held, hold
from vidlex.model.train.fit import JointTask, LabelTask
from vidlex.model.train.fit_config import FitConfig
from vidlex.model.train.loop import run
from vidlex.model.video.encoder import VideoEncoder


@dataclass(frozen=True)
class Compared:
    """A method of the main table."""

    method: Method
    templates: TemplateSet = "photo"
    is_trained: bool = True


METHODS = {
    "clip_name": Compared("class_name", "name", is_trained=False),
    "clip_photo": Compared("class_name", "photo", is_trained=False),
    "clip_ensemble": Compared("class_name", "video", is_trained=False),
    "fixed_llm": Compared("fixed_llm", is_trained=False),
    "coop": Compared("coop"),
    "dualcoop": Compared("dualcoop"),
    "vificlip": Compared("vificlip"),
}


NO_LLM: dict[str, Any] = {"without_llm": True, "fit": {"state_noise": 0.0}}
"""Every label's states are zeros: the prompting transformer gives a learned prompt, the same for all. There is nothing
that noise would be on."""


def without_llm(config: SuiteConfig) -> list[Row]:
    """Ours without the LLM, trained like that of the main table: what the LLM's knowledge brings."""
    return [Row("ours", seed, group=WITHOUT_LLM, options=NO_LLM) for seed in range(config.num_seeds)]


def ablations(config: SuiteConfig, tower_depth: int) -> list[Row]:
    """The paper's ablations, for a tower of so many blocks, and where all rows are held those of what the paper does
    not have.

    Those of the label side train it alone, on frame means, beside their own reference.
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
        rows += [Row("ours", 0, change, "video side", options) for change, options in _less_held()]
    return rows


def _less_held() -> list[tuple[str, dict[str, Any]]]:
    """Changes to a training that is held to CLIP, which take from it what the paper does not have."""
    free = {"video_hold": 0.0, "label_hold": 0.0}
    paper = {
        "fit": {**free, "num_more_pairs": 0, "pair_weight": 1.0, "state_noise": 0.0}, "label": {"soft_behind": False}
    }  # fmt: skip
    return [("not held to CLIP", {"fit": free}), ("as in the paper", paper)]


def longer(config: SuiteConfig) -> list[Row]:
    """Ours with more joint steps than the main table's, every seed; one with the bare name in the mean beside them; and
    every seed held to what CLIP knows. None where none are asked for. Where all rows are held, the longer ones are
    those that are not: what it gives at full length."""
    steps = config.num_long_steps
    if not steps:
        return []
    change, more = f"{steps} joint steps", {"fit": {"num_joint_steps": steps}}
    if config.held:
        free, (as_paper, paper) = _less_held()
        fixed = {**paper, "fit": {**paper["fit"], "interpolation_lambda": 0.0}}  # what forgets shows over many steps
        return [
            Row("ours", 0, f"{change}, {less}", "length", {**options, "fit": {**more["fit"], **options["fit"]}})
            for less, options in (free, (as_paper, paper), (f"{as_paper} but for weight interpolation", fixed))
        ]
    rows = [Row("ours", seed, change, "length", more) for seed in range(config.num_seeds)]
    with_name = {**more, "label": {"with_name": True}}
    rows.append(Row("ours", 0, f"{change}, the bare name in the mean", "length", with_name))
    held: dict[str, Any] = {"fit": {"num_joint_steps": steps, **config.holds()}, "label": {"soft_behind": True}}
    return [
        *rows,
        *(Row("ours", seed, f"{change}, held to CLIP", "length", held) for seed in range(config.num_seeds)),
    ]


def train_ours(bench: Bench, row: Row) -> dict[str, Any]:
    """Label encoder on frame means first, then both encoders together; alpha by validation; judged on all columns."""
    config, options = bench.config, row.options
    video, label, fit = _settings(config, row)
    made = bench.network(video, label, row.seed)
    network = made.network
    if not (options.get("fixed_prefixes") or options.get("without_llm")):
        network.label.prefixes.data.copy_(bench.prefixes()[: label.num_prefixes])
    if options.get("without_transformer"):
        network.label.prompting.blocks = nn.ModuleList()
    states = States(bench, network, without_llm=bool(options.get("without_llm")))
    base = bench.worlds["train"]
    trained = states.of(base.labels)
    network.label.fit_statistics(trained.float())
    world, pool = bench.with_more_pairs(fit.num_more_pairs)
    if more := world.labels[len(base.labels) :]:
        trained = torch.cat((trained, states.of_further_pairs(more)))
    trained = trained.to(config.device)
    out, description = bench.out / "runs" / row.key, {"row": row.key, "identity": bench.identity}
    cached = bench.frame_means(pool), pool.targets
    held: Held | None = None
    if fit.video_hold or fit.label_hold:
        held = hold(network.label.clip_text, world.labels, world.kinds(), *cached)
    label_only = row.group == "label side"
    label_task = LabelTask("warmup", network, cached=cached, world=world, states=trained, config=fit, held=held)
    num_label_steps = config.num_label_ablation_steps if label_only else config.num_warmup_steps
    loop = fit.loop(num_label_steps, num_warmup_steps=10, evaluate_every=NEVER)
    run(label_task, loop, out, description)
    tuned = bool(options.get("tuned_trunk"))
    at_depth = None if tuned else at_depth_of(network.video, config.num_branch_blocks)
    alpha = None
    if network.video.branch:
        network.video.requires_grad_(True)
        network.video.visual.requires_grad_(tuned)
        task = JointTask(network, {**bench.worlds, "train": world}, trained, fit, held)
        task.videos = _OursVideos(pool, fit, at_depth)
        run(task, fit.loop(fit.num_joint_steps, num_warmup_steps=50, evaluate_every=NEVER), out, description)
        alpha = choose_alpha(bench, network, states, at_depth)
    judged = judge_of(network, states, at_depth)
    if row.is_full:
        keep(bench, row, made, judged)
    return {**bench.judge(judged), "alpha": alpha, "num_parameters": _num_learned(network)}


def _settings(config: SuiteConfig, row: Row) -> tuple[VideoEncoderConfig, LabelEncoderConfig, FitConfig]:
    options = row.options
    label_only = row.group == "label side"
    blocks = 0 if label_only else config.num_branch_blocks
    video = replace(config.video(), **{"num_branch_blocks": blocks, **options.get("video", {})})
    fit = config.fit(row.seed)
    if not row.is_full:
        fit = replace(fit, num_joint_steps=config.num_ablation_steps)
    fit = replace(fit, **options.get("fit", {}))
    if label_only:  # further pairs would multiply what the LLM has to read for each of these
        fit = replace(fit, num_more_pairs=0)
    return video, replace(config.label(), **options.get("label", {})), fit


class _OursVideos(PoolVideos):
    def __init__(self, pool: Pool, fit: FitConfig, at_depth: AtDepth) -> None:
        super().__init__(pool, batch_size=fit.batch_size, seed=fit.seed, frames=at_depth is None, change=at_depth)


def train_baseline(bench: Bench, row: Row) -> dict[str, Any]:
    """A compared method on the same pool: what learns nothing is judged as it is."""
    config, compared = bench.config, METHODS[row.method]
    torch.manual_seed(row.seed)
    clip = create_clip(bench.clip_name)
    encoder = VideoEncoder(
        clip.model.visual, replace(config.video(), num_branch_blocks=0), mean=clip.source.mean, std=clip.source.std
    )
    baseline = BaselineConfig(templates=compared.templates)
    label = replace(config.label(), seed=row.seed)
    label = replace(label, soft_behind=False)
    labels, _ = create_baseline_labels(compared.method, baseline, label, clip)
    tunes = compared.method == "vificlip"
    network = BaselineNetwork(clip.model, encoder, labels, places=baseline.places, train_towers=tunes).to(config.device)
    fit = replace(config.fit(row.seed), num_joint_steps=config.num_baseline_steps)
    if tunes:
        fit = replace(fit, batch_size=config.num_tuned_videos)
        baseline = replace(baseline, learning_rate=1e-4)  # a tower this small wants more than the 1e-5 of ViT-B
    if compared.is_trained:
        world, pool = bench.with_more_pairs(fit.num_more_pairs)
        task = BaselineTask(compared.method, network, {**bench.worlds, "train": world}, fit, baseline)
        task.videos = PoolVideos(
            pool, batch_size=fit.batch_size, seed=fit.seed, frames=tunes,
            num_frames=config.num_tuned_frames if tunes else 0,
        )  # fmt: skip
        loop = fit.loop(fit.num_joint_steps, num_warmup_steps=fit.num_joint_steps // 10 + 1, evaluate_every=NEVER)
        run(task, loop, bench.out / "runs" / row.key, {"row": row.key, "identity": bench.identity})
    result = bench.judge(_judge_of_baseline(network, tunes))
    return {**result, "num_parameters": _num_learned(network) if compared.is_trained else 0}


def _judge_of_baseline(network: BaselineNetwork, tunes: bool) -> Callable[[Pool, Sequence[str]], Tensor]:
    known: dict[str, Tensor] = {}

    @torch.no_grad()
    def logits(pool: Pool, labels: Sequence[str]) -> Tensor:
        device = network.bias.device
        frames = torch.cat([network.frame_features(chunk.to(device)) for chunk in pool.chunks(frames=tunes)])
        new = [label for label in labels if label not in known]
        for i in range(0, len(new), 128):
            known.update(zip(new[i : i + 128], network.label(new[i : i + 128]), strict=True))
        return network.logits_from_features(frames, torch.stack([known[label] for label in labels]))

    return logits


def _num_learned(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters() if p.requires_grad)
