"""The optimizer and the learning-rate schedule. Parameter groups are formed by module, never by matching names."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class ParameterGroup:
    parameters: Sequence[nn.Parameter]
    learning_rate: float  # the peak


def make_optimizer(
    groups: Iterable[ParameterGroup], *, weight_decay: float, betas: tuple[float, float]
) -> torch.optim.AdamW:
    """AdamW over the trainable parameters. Only matrices decay, not biases, norms and scales."""
    rows: list[dict[str, Any]] = []
    for group in groups:
        trainable = [p for p in group.parameters if p.requires_grad]
        for decays in (True, False):
            chosen = [p for p in trainable if (p.ndim >= 2) is decays]
            if chosen:
                decay = weight_decay if decays else 0.0
                rows.append(
                    {"params": chosen, "lr": group.learning_rate, "peak": group.learning_rate, "weight_decay": decay}
                )
    if not rows:
        raise ValueError("nothing to train: every parameter is frozen")
    return torch.optim.AdamW(rows, betas=betas, fused=True)


def learning_rate_factor(step: int, *, num_steps: int, num_warmup_steps: int) -> float:
    # Linear warm-up, then half a cosine down to 2 %.
    if step < num_warmup_steps:
        return (step + 1) / num_warmup_steps
    progress = (step - num_warmup_steps) / max(1, num_steps - num_warmup_steps)
    return 0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> float:
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor
    return max(float(group["lr"]) for group in optimizer.param_groups)


def optimized_parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]
