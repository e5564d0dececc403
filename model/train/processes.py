"""The processes of one training run: a single one, or as many as ``accelerate launch`` or ``torchrun`` started.

Weights are the same in all of them; each computes its parts of a step's batch, and the gradients are averaged. The
average is taken here and not by DistributedDataParallel, which sees a forward pass only through its own wrapper: our
tasks call several methods of several modules. What is trained is small, so one call for all gradients costs little.
"""

from __future__ import annotations

import atexit
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from accelerate.state import PartialState
from torch import Tensor, nn


@dataclass(frozen=True)
class Part:
    """One part of a step's batch: micro-batch ``micro`` of the ``num_micros`` of a process."""

    process: int = 0
    num_processes: int = 1
    micro: int = 0
    num_micros: int = 1

    @property
    def index(self) -> int:
        return self.process * self.num_micros + self.micro

    @property
    def count(self) -> int:
        return self.num_processes * self.num_micros

    def rows(self, num: int) -> slice:
        """This part's rows of ``num``. Parts are equal, or differ by one row."""
        return _share(num, self.index, self.count)

    def rows_of_process(self, num: int) -> slice:
        """The rows of all parts of this part's process: one after the other."""
        first, last = self.process * self.num_micros, (self.process + 1) * self.num_micros - 1
        return slice(_share(num, first, self.count).start, _share(num, last, self.count).stop)


WHOLE = Part()


def _share(num: int, index: int, count: int) -> slice:
    if num < count:
        raise ValueError(f"{num} rows cannot be divided into {count} parts")
    return slice(num * index // count, num * (index + 1) // count)


@cache
def processes_of(device_type: str) -> Processes:
    """The processes of this run, which joins them when it is first asked."""
    return Processes(device_type)


class Processes:
    """What the processes of a run do together. With one process every method returns what it was given."""

    def __init__(self, device_type: str) -> None:
        state = PartialState(cpu=device_type == "cpu")
        self.index, self.count = int(state.process_index), int(state.num_processes)
        self.is_main = self.index == 0
        self.device = torch.device("cpu") if device_type == "cpu" else state.device
        asked = int(os.environ.get("WORLD_SIZE", "1"))
        if self.count != asked:
            raise RuntimeError(f"{asked} processes were started, but {self.count} can work together on {device_type}")
        if self.count > 1:
            atexit.register(state.destroy_process_group)

    def average(self, parameters: Iterable[nn.Parameter], values: Mapping[str, float]) -> dict[str, float]:
        """Average the gradients in place, and return the averages of ``values``.

        A gradient that some processes lack counts as zero there; one that all lack stays away.
        """
        if self.count == 1:
            return dict(values)
        learned = list(parameters)
        present = torch.tensor([p.grad is not None for p in learned], dtype=torch.float32, device=self.device)
        figures = torch.tensor([*values.values()], dtype=torch.float32, device=self.device)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in learned]
        flat = torch.cat([*(g.float().flatten() for g in gradients), present, figures])
        dist.all_reduce(flat)
        flat /= self.count
        *averaged, present, figures = torch.split(flat, [*(p.numel() for p in learned), len(learned), len(values)])
        for parameter, gradient, anywhere in zip(learned, averaged, present.tolist(), strict=True):
            parameter.grad = gradient.view_as(parameter).to(parameter.dtype) if anywhere else None
        return dict(zip(values, figures.tolist(), strict=True))

    def sum(self, value: Tensor) -> Tensor:
        """The sum over the processes, on the CPU."""
        if self.count == 1:
            return value
        total = value.to(self.device, copy=True)
        dist.all_reduce(total)
        return total.cpu()

    def tell(self, value: Any) -> Any:
        """What the main process gives, a JSON value, in every process."""
        if self.count == 1:
            return value
        text = torch.tensor([*json.dumps(value).encode()], dtype=torch.uint8, device=self.device)
        length = torch.tensor([len(text)], device=self.device)
        dist.broadcast(length, src=0)
        if not self.is_main:
            text = torch.empty(int(length), dtype=torch.uint8, device=self.device)
        dist.broadcast(text, src=0)
        return json.loads(bytes(text.tolist()))
