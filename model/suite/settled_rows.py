"""Rows "settled" (not in the paper): the label encoder of a trained row, trained further on its finished branch.

In the joint stage the video features change while labels are learned, and the CLIP regulariser includes pairs. Here the
video features are fixed, so a step costs only its labels; the regulariser excludes pairs, which can learn the motion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vidlex.model.checkpoint import CheckpointError
from vidlex.model.sources.emoji import training_labels
from vidlex.model.sources.emoji_pool import Pool
from vidlex.model.suite.config import SuiteConfig
from vidlex.model.suite.context import SuiteContext
from vidlex.model.suite.evaluation import (
    LabelStates,
    evaluate,
    logits_of,
    save_checkpoint_of,
    trunk_adapter,
)
from vidlex.model.suite.probes import held_out_probe
from vidlex.model.suite.row import Row, row_file
from vidlex.model.suite.trust import choose_trust
from vidlex.model.train.export import restore_network
from vidlex.model.train.loop.config import NO_EVALUATION
from vidlex.model.train.recipe import label_stage
from vidlex.model.train.stages import StageRunner

SETTLED = "settled"  # the ``method`` of these rows


def settled_rows(config: SuiteConfig, rows: Sequence[Row]) -> list[Row]:
    return [replace(row, method=SETTLED) for row in rows if row.method == "ours" and config.num_settling_steps]


def base_row(row: Row) -> Row:
    return replace(row, method="ours")


def train_settled(context: SuiteContext, row: Row) -> dict[str, Any]:
    """Raises CheckpointError if the base row has no checkpoint."""
    base = base_row(row)
    if not context.checkpoint(base).is_dir():
        raise CheckpointError(
            f"{row.key} starts from {context.checkpoint(base)}, which does not exist: delete "
            f"{row_file(context.out, base)} and run the command again to train that row"
        )
    config = context.config
    fit = replace(config.settling(row.seed), **row.options.get("fit", {}))
    emoji = replace(config.emoji(), **row.options.get("emoji", {}))
    without_llm = bool(row.options.get("without_llm"))
    created = context.create_network(config.video(), config.label(), row.seed)
    network = created.network
    restore_network(context.checkpoint(base), network)
    if not without_llm:
        network.label.prefixes.data.copy_(context.prefixes())  # the checkpoint has them in half precision
    states = LabelStates(context, network, without_llm=without_llm)
    world, pool = context.with_more_pairs(emoji.num_more_pairs)
    pool = pool.first(config.num_settling_videos)
    num_base = len(context.worlds["train"].labels)
    chosen = torch.tensor(_training_labels(pool, num_base, config.num_settling_pairs))
    adapter = trunk_adapter(network.video, config.num_branch_blocks)
    labels = training_labels(world, emoji).select(chosen)
    runner = StageRunner(
        network, context.source(fit, pool.select(chosen), labels, adapter=adapter), fit,
        out=context.run_folder(row), description=context.run_description(row), has_statistics=True,
        states_of=lambda names: states.of_training(names, context.more_pairs(world)), keeps_features=False,
    )  # fmt: skip
    runner.run([replace(label_stage(fit), evaluate_every=NO_EVALUATION)])
    probe = held_out_probe(context, network, adapter)
    trust = choose_trust(context, network, states, adapter)
    logits = logits_of(network, states, adapter)
    save_checkpoint_of(context, row, created, logits)
    parameters = [*network.label.prompting.parameters(), network.log_scale, network.bias]
    return {
        **evaluate(context, logits),
        "held_out_probe": probe,
        **trust,
        "num_parameters": sum(p.numel() for p in parameters),
    }


def _training_labels(pool: Pool, num_base: int, num_pairs: int) -> list[int]:
    """The first ``num_base`` labels, and at most ``num_pairs`` of the additional pairs that have a positive."""
    count: Tensor = pool.targets.sum(dim=0)
    occurring = num_base + count[num_base:].nonzero()[:, 0]
    drawn = torch.randperm(len(occurring), generator=torch.Generator().manual_seed(0))[:num_pairs]
    pairs: list[int] = sorted(occurring[drawn].tolist())
    return [*range(num_base), *pairs]
