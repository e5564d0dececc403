"""The trainable weights of a stage as they are, their moving average, and the best that validation has seen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

Weights = dict[str, Tensor]


def learned_tensors(module: nn.Module) -> Weights:
    """What training changes, by name: trainable parameters, and buffers (such as running statistics).

    What goes by several names is there once.
    """
    found: dict[int, tuple[str, Tensor]] = {}
    for name, value in module.state_dict(keep_vars=True).items():
        if value.requires_grad or not isinstance(value, nn.Parameter):
            found.setdefault(id(value), (name, value))
    return dict(found.values())


class StageWeights:
    """``decay`` 0: no average is kept. ``best`` is None until ``keep_best`` is called."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"the decay of the moving average must lie in 0..1 (1 excluded), got {decay}")
        self.live = learned_tensors(module)
        self.decay = decay
        self.average: Weights | None = _copy(self.live) if decay else None
        self.best: Weights | None = None

    @torch.no_grad()
    def update(self, num_steps: int) -> None:
        """Take a step's new weights into the average. Early on the average is shorter, or it would hold the start."""
        if self.average is None:
            return
        decay = min(self.decay, num_steps / (num_steps + 9))
        for name, value in self.live.items():
            if value.is_floating_point():
                self.average[name].lerp_(value, 1 - decay)
            else:
                self.average[name].copy_(value)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The module holds the averages inside, and its own weights again afterwards."""
        if self.average is None:
            yield
            return
        own = _copy(self.live)
        _write(self.live, self.average)
        try:
            yield
        finally:
            _write(self.live, own)

    def keep_best(self) -> None:
        """What is evaluated now (the averages, where they are kept) is the best so far."""
        self.best = _copy(self.live if self.average is None else self.average)

    def settle(self) -> None:
        """The stage is over: the module takes the best weights, else the averages, else keeps its own."""
        chosen = self.best if self.best is not None else self.average
        if chosen is not None:
            _write(self.live, chosen)


def _copy(weights: Mapping[str, Tensor]) -> Weights:
    return {name: value.detach().clone() for name, value in weights.items()}


@torch.no_grad()
def _write(target: Mapping[str, Tensor], source: Mapping[str, Tensor]) -> None:
    for name, value in target.items():
        value.copy_(source[name])
