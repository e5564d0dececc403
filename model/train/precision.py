"""Whether a run trains under bfloat16 autocast: as asked, or as measured once when the run begins.

Processors with matrix units for bfloat16 train faster with it, others many times slower.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from vidlex.model.train.processes import processes_of
from vidlex.model.train.run_log import RunFile

WORTH = 0.9
"""bfloat16 must take at most this share of the time of float32."""
NUM_TIMED = 3


def choose_bf16(asked: bool | None, module: nn.Module, forward: Callable[[], Tensor], device: str, out: Path) -> bool:
    """``asked``, or with None the faster one: ``forward`` is run a few times both ways, with its gradient.

    What was measured is kept in ``run.json``, and a run that goes on, here or elsewhere, keeps what it began with.
    """
    if asked is not None:
        return asked
    processes = processes_of(torch.device(device).type)
    run_file = RunFile(out, writes=processes.is_main, num_processes=processes.count)
    known = run_file.data.get("bf16")
    if known is None and processes.is_main:
        plain = _seconds(forward, device, bf16=False, enough=float("inf"))
        half = _seconds(forward, device, bf16=True, enough=3 * plain)
        module.zero_grad(set_to_none=True)
        known = {"used": half < WORTH * plain, "float32_seconds": plain, "bfloat16_seconds": half}
        run_file.update(bf16=known)
    return bool(processes.tell(known)["used"])


def _seconds(forward: Callable[[], Tensor], device: str, *, bf16: bool, enough: float) -> float:
    """Of one pass: the best of a few after one that does not count, or that one where it took more than ``enough``."""
    best = float("inf")
    for attempt in range(NUM_TIMED + 1):
        started = time.perf_counter()
        with torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=bf16):
            total = forward().float().square().sum()
        if total.requires_grad:
            total.backward()  # type: ignore[no-untyped-call]
        total.item()
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
        if attempt or seconds > enough:
            best = min(best, seconds)
        if seconds > enough:
            break
    return best
