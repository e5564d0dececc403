"""The processes of one training run: one, or those that ``accelerate launch`` or ``torchrun`` started.

All processes hold the same weights. Each computes its micro-batches of a step, then gradients are averaged here rather
than by DistributedDataParallel, which tracks only the forward pass of its own wrapper: the tasks call several methods
of several modules. The trainable part is small, so one all-reduce of all gradients is cheap.
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
class MicroBatch:
    process: int = 0
    num_processes: int = 1
    local_index: int = 0  # within the process
    num_local: int = 1

    @property
    def index(self) -> int:
        return self.process * self.num_local + self.local_index

    @property
    def count(self) -> int:
        return self.num_processes * self.num_local

    def rows(self, num: int) -> slice:
        # Shares differ by at most one row.
        return _share(num, self.index, self.count)

    def rows_of_process(self, num: int) -> slice:
        first, last = self.process * self.num_local, (self.process + 1) * self.num_local - 1
        return slice(_share(num, first, self.count).start, _share(num, last, self.count).stop)


WHOLE_BATCH = MicroBatch()


def _share(num: int, index: int, count: int) -> slice:
    if num < count:
        raise ValueError(f"{num} rows cannot be divided into {count} micro-batches")
    return slice(num * index // count, num * (index + 1) // count)


@cache
def process_group(device_type: str) -> ProcessGroup:
    # The first call joins the processes.
    return ProcessGroup(device_type)


class ProcessGroup:
    """Collective operations. With one process every method returns its argument."""

    def __init__(self, device_type: str) -> None:
        state = PartialState(cpu=device_type == "cpu")
        self.index, self.count = int(state.process_index), int(state.num_processes)
        self.is_main = self.index == 0
        self.device = torch.device("cpu") if device_type == "cpu" else state.device
        num_started = int(os.environ.get("WORLD_SIZE", "1"))
        if self.count != num_started:
            raise RuntimeError(f"{num_started} processes were started, but {self.count} can share {device_type}")
        if self.count > 1:
            atexit.register(state.destroy_process_group)

    def average(self, parameters: Iterable[nn.Parameter], values: Mapping[str, float]) -> dict[str, float]:
        """Average the gradients in place, and return the averages of ``values``.

        A gradient that is None in some processes counts as zero there; one that is None in all stays None.
        """
        if self.count == 1:
            return dict(values)
        averaged_parameters = list(parameters)
        present = torch.tensor(
            [p.grad is not None for p in averaged_parameters], dtype=torch.float32, device=self.device
        )
        figures = torch.tensor([*values.values()], dtype=torch.float32, device=self.device)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in averaged_parameters]
        flat = torch.cat([*(g.float().flatten() for g in gradients), present, figures])
        dist.all_reduce(flat)
        flat /= self.count
        sizes = [*(p.numel() for p in averaged_parameters), len(averaged_parameters), len(values)]
        *averages, present, figures = torch.split(flat, sizes)
        for parameter, average, is_present in zip(averaged_parameters, averages, present.tolist(), strict=True):
            parameter.grad = average.view_as(parameter).to(parameter.dtype) if is_present else None
        return dict(zip(values, figures.tolist(), strict=True))

    def sum(self, value: Tensor) -> Tensor:
        if self.count == 1:
            return value
        total = value.to(self.device, copy=True)
        dist.all_reduce(total)
        return total.cpu()

    def broadcast(self, value: Any) -> Any:
        # ``value`` must be JSON.
        if self.count == 1:
            return value
        text = torch.tensor([*json.dumps(value).encode()], dtype=torch.uint8, device=self.device)
        length = torch.tensor([len(text)], device=self.device)
        dist.broadcast(length, src=0)
        if not self.is_main:
            text = torch.empty(int(length), dtype=torch.uint8, device=self.device)
        dist.broadcast(text, src=0)
        return json.loads(bytes(text.tolist()))
