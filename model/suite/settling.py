"""The labels of a trained row of ours settle: its label encoder alone learns on, from what the finished branch makes of
the pool (not in the paper).

The joint steps change the videos under the labels' feet, and where they are held to CLIP they hold the names of pairs
too. Here the videos stand still, so a step costs what its labels cost; names that CLIP knows well stay held, pairs are
free to take the motion in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vidlex.model.checkpoint import CheckpointError
from vidlex.model.suite.bench import NEVER, Bench, Row, SuiteConfig, figures_of
from vidlex.model.suite.judging import States, at_depth_of, choose_trust, held_out_probe, judge_of, keep, pool_features
from vidlex.model.suite.pool import Pool
from vidlex.model.train.clip_regulariser import Held, hold
from vidlex.model.train.export import read_checkpoint
from vidlex.model.train.fit import LabelTask
from vidlex.model.train.loop import run

SETTLED = "settled"
"""The method of these rows in the main table."""


def settled(config: SuiteConfig, rows: Sequence[Row]) -> list[Row]:
    """One behind each of these rows of ours; none where no steps are asked for."""
    return [replace(row, method=SETTLED) for row in rows if row.method == "ours" and config.num_settling_steps]


def starts_from(row: Row) -> Row:
    """The row whose checkpoint a settled one goes on from."""
    return replace(row, method="ours")


def settle(bench: Bench, row: Row) -> dict[str, Any]:
    """Judged on all columns, and kept as a checkpoint of its own. Raises CheckpointError where the row that it starts
    from has left none."""
    start = starts_from(row)
    if not bench.checkpoint(start).is_dir():
        raise CheckpointError(
            f"{row.key} goes on from {bench.checkpoint(start)}, which is not there: delete "
            f"{figures_of(bench.out, start)}, and the same command trains that row again"
        )
    config = bench.config
    fit = replace(
        config.fit(row.seed), num_stage_labels=config.num_settling_labels, label_learning_rate=config.settling_rate,
        **row.options.get("fit", {}),
    )  # fmt: skip
    without_llm = bool(row.options.get("without_llm"))
    made = bench.network(config.video(), config.label(), row.seed)
    network = made.network
    read_checkpoint(bench.checkpoint(start), network)
    if not without_llm:
        network.label.prefixes.data.copy_(bench.prefixes())  # the checkpoint has them in half precision
    states = States(bench, network, without_llm=without_llm)
    world, pool = bench.with_more_pairs(fit.num_more_pairs)
    pool = pool.first(config.num_settling_videos)
    num_base = len(bench.worlds["train"].labels)
    chosen = _chosen(pool, num_base, config.num_settling_pairs)
    labels = [world.labels[i] for i in chosen]
    targets = pool.targets[:, chosen]
    trained = states.of(labels[:num_base])
    if more := world.labels[num_base:]:  # the row that this one starts from has read them all
        read = states.of_further_pairs(more)
        trained = torch.cat((trained, read[[i - num_base for i in chosen[num_base:]]]))
    held: Held | None = None
    if fit.label_hold:
        kinds = world.kinds()
        held = hold(network.label.clip_text, labels, kinds, bench.frame_means(pool), targets)
        held = held.settling([kinds[label] for label in labels])
    at_depth = at_depth_of(network.video, config.num_branch_blocks)
    task = LabelTask(
        "settle", network, cached=(pool_features(network, pool, at_depth), targets), world=world, labels=labels,
        states=trained.to(config.device), config=fit, held=held,
    )  # fmt: skip
    loop = fit.loop(config.num_settling_steps, num_warmup_steps=10, evaluate_every=NEVER)
    run(task, loop, bench.out / "runs" / row.key, {"row": row.key, "identity": bench.identity})
    probe = held_out_probe(bench, network, at_depth)
    by_trust = choose_trust(bench, network, states, at_depth)
    judged = judge_of(network, states, at_depth)
    keep(bench, row, made, judged)
    learned = [*network.label.prompting.parameters(), network.log_scale, network.bias]
    return {
        **bench.judge(judged),
        "held_out_probe": probe,
        "trust": network.label.config.name_trust,
        "by_trust": by_trust,
        "num_parameters": sum(p.numel() for p in learned),
    }


def _chosen(pool: Pool, num_base: int, num_pairs: int) -> list[int]:
    """Places of the labels that are read: all but the further pairs, and of those ``num_pairs`` that are ever true."""
    count: Tensor = pool.targets.sum(dim=0)
    occurring = num_base + count[num_base:].nonzero()[:, 0]
    drawn = torch.randperm(len(occurring), generator=torch.Generator().manual_seed(0))[:num_pairs]
    further: Sequence[int] = sorted(occurring[drawn].tolist())
    return [*range(num_base), *further]
