from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

Weights = dict[str, Tensor]


def trainable_tensors(module: nn.Module) -> Weights:
    """Includes buffers such as running statistics. A shared tensor is listed under its first name."""
    found: dict[int, tuple[str, Tensor]] = {}
    for name, value in module.state_dict(keep_vars=True).items():
        if value.requires_grad or not isinstance(value, nn.Parameter):
            found.setdefault(id(value), (name, value))
    return dict(found.values())


class StageWeights:
    def __init__(self, module: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"the decay of the moving average must be at least 0 and less than 1, got {decay}")
        self.live = trainable_tensors(module)
        self.decay = decay
        self.average: Weights | None = _copy(self.live) if decay else None
        self.best: Weights | None = None

    @torch.no_grad()
    def update(self, num_steps: int) -> None:
        if self.average is None:
            return
        # Starts at 1/10: otherwise the initial weights would dominate early averages.
        decay = min(self.decay, num_steps / (num_steps + 9))
        for name, value in self.live.items():
            if value.is_floating_point():
                self.average[name].lerp_(value, 1 - decay)
            else:
                self.average[name].copy_(value)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        if self.average is None:
            yield
            return
        current = _copy(self.live)
        _write(self.live, self.average)
        try:
            yield
        finally:
            _write(self.live, current)

    def store_best(self) -> None:
        self.best = _copy(self.live if self.average is None else self.average)

    def load_final(self) -> None:
        final = self.best if self.best is not None else self.average
        if final is not None:
            _write(self.live, final)


def _copy(weights: Mapping[str, Tensor]) -> Weights:
    return {name: value.detach().clone() for name, value in weights.items()}


@torch.no_grad()
def _write(target: Mapping[str, Tensor], source: Mapping[str, Tensor]) -> None:
    for name, value in target.items():
        value.copy_(source[name])
