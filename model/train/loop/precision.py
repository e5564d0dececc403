"""The precision of training: bfloat16 is faster on processors with matrix units for it, and far slower on others."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from vidlex.model.train.loop.processes import process_group
from vidlex.model.train.loop.run_log import RunFile

MAX_TIME_RATIO = 0.9  # bfloat16 is used if it takes at most this share of float32's time
NUM_TIMED_PASSES = 3


def choose_bf16(
    requested: bool | None, module: nn.Module, forward: Callable[[], Tensor], device: str, out: Path
) -> bool:
    """``requested``, or the precision in which ``forward`` and its gradient are faster.

    The measurement is stored in ``run.json``, and a resumed run uses it.
    """
    if requested is not None:
        return requested
    processes = process_group(torch.device(device).type)
    run_file = RunFile(out, is_writer=processes.is_main, num_processes=processes.count)
    measured = run_file.data.get("bf16")
    if measured is None and processes.is_main:
        float32 = _best_seconds(forward, device, bf16=False, limit=float("inf"))
        bfloat16 = _best_seconds(forward, device, bf16=True, limit=3 * float32)
        module.zero_grad(set_to_none=True)
        is_used = bfloat16 < MAX_TIME_RATIO * float32
        measured = {"used": is_used, "float32_seconds": float32, "bfloat16_seconds": bfloat16}
        run_file.update(bf16=measured)
    return bool(processes.broadcast(measured)["used"])


def _best_seconds(forward: Callable[[], Tensor], device: str, *, bf16: bool, limit: float) -> float:
    best = float("inf")
    for attempt in range(NUM_TIMED_PASSES + 1):  # the first one warms up
        started = time.perf_counter()
        with torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=bf16):
            total = forward().float().square().sum()
        if total.requires_grad:
            total.backward()  # type: ignore[no-untyped-call]
        total.item()
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
        if attempt or seconds > limit:
            best = min(best, seconds)
        if seconds > limit:
            break
    return best
