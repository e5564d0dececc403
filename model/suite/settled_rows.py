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
from vidlex.model.suite.config import SuiteConfig
from vidlex.model.suite.context import SuiteContext
from vidlex.model.suite.evaluation import (
    LabelStates,
    choose_trust,
    evaluate,
    logits_of,
    pool_features,
    save_checkpoint_of,
    trunk_adapter,
)
from vidlex.model.suite.pool import Pool
from vidlex.model.suite.probes import held_out_probe
from vidlex.model.suite.row import Row, row_file
from vidlex.model.train.clip_regulariser import ClipRegulariser
from vidlex.model.train.export import restore_network
from vidlex.model.train.fit import LabelTask
from vidlex.model.train.loop.loop import NO_EVALUATION, run

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
    fit = replace(
        config.fit(row.seed), num_stage_labels=config.num_settling_labels, label_learning_rate=config.settling_rate,
        **row.options.get("fit", {}),
    )  # fmt: skip
    without_llm = bool(row.options.get("without_llm"))
    created = context.create_network(config.video(), config.label(), row.seed)
    network = created.network
    restore_network(context.checkpoint(base), network)
    if not without_llm:
        network.label.prefixes.data.copy_(context.prefixes())  # the checkpoint has them in half precision
    states = LabelStates(context, network, without_llm=without_llm)
    world, pool = context.with_more_pairs(fit.num_more_pairs)
    pool = pool.first(config.num_settling_videos)
    num_base = len(context.worlds["train"].labels)
    chosen = _training_labels(pool, num_base, config.num_settling_pairs)
    labels = [world.labels[i] for i in chosen]
    targets = pool.targets[:, chosen]
    train_states = states.of(labels[:num_base])
    if more := world.labels[num_base:]:  # all of them, because the base row has cached the states of exactly these
        pair_states = states.of_more_pairs(more)
        train_states = torch.cat((train_states, pair_states[[i - num_base for i in chosen[num_base:]]]))
    regulariser: ClipRegulariser | None = None
    if fit.label_hold:
        kinds = world.kinds()
        regulariser = ClipRegulariser.fit(network.label.clip_text, labels, kinds, context.frame_means(pool), targets)
        regulariser = regulariser.for_label_stage([kinds[label] for label in labels])
    adapter = trunk_adapter(network.video, config.num_branch_blocks)
    task = LabelTask(
        "settle", network, cached=(pool_features(network, pool, adapter), targets), world=world, labels=labels,
        states=train_states.to(config.device), config=fit, regulariser=regulariser,
    )  # fmt: skip
    loop = fit.loop(config.num_settling_steps, num_warmup_steps=10, evaluate_every=NO_EVALUATION)
    run(task, loop, context.run_folder(row), context.run_description(row))
    probe = held_out_probe(context, network, adapter)
    by_trust = choose_trust(context, network, states, adapter)
    logits = logits_of(network, states, adapter)
    save_checkpoint_of(context, row, created, logits)
    trained = [*network.label.prompting.parameters(), network.log_scale, network.bias]
    return {
        **evaluate(context, logits),
        "held_out_probe": probe,
        "trust": network.label.config.name_trust,
        "by_trust": by_trust,
        "num_parameters": sum(p.numel() for p in trained),
    }


def _training_labels(pool: Pool, num_base: int, num_pairs: int) -> list[int]:
    """The first ``num_base`` labels, and at most ``num_pairs`` of the additional pairs that have a positive."""
    count: Tensor = pool.targets.sum(dim=0)
    occurring = num_base + count[num_base:].nonzero()[:, 0]
    drawn = torch.randperm(len(occurring), generator=torch.Generator().manual_seed(0))[:num_pairs]
    pairs: list[int] = sorted(occurring[drawn].tolist())
    return [*range(num_base), *pairs]
