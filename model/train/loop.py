"""The training loop: batches by step number, resumable, with progress and TensorBoard. It knows no model."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.utils.tensorboard.writer import SummaryWriter

from model.train.optim import schedule, set_learning_rate
from model.train.state import load_state, save_state

console = Console(stderr=True)


class Task(Protocol):
    """Model, data and loss of one training stage."""

    name: str

    @property
    def module(self) -> nn.Module: ...

    @property
    def optimizer(self) -> torch.optim.Optimizer: ...

    def training_step(self, step: int) -> tuple[Tensor, Mapping[str, float]]:
        """Loss of the batch of this step (the same batch for the same step) and figures to log."""
        ...

    def evaluate(self) -> Mapping[str, float]:
        """Figures on validation data."""
        ...


@dataclass(frozen=True)
class LoopConfig:
    num_steps: int
    num_warmup_steps: int = 200
    clip_grad_norm: float = 1.0
    evaluate_every: int = 1000
    save_every_seconds: float = 60.0
    log_every_seconds: float = 15.0
    bf16: bool = True
    """bfloat16 autocast, on CPU and GPU alike. Weights and optimizer stay in float32."""


def run(task: Task, config: LoopConfig, out: Path, description: Mapping[str, Any]) -> None:
    """Train ``task`` to the end, going on from ``out/<name>.state.safetensors`` where it exists.

    ``description`` holds all settings of the run: a state with other settings is refused.
    """
    out.mkdir(parents=True, exist_ok=True)
    identity = json.dumps({"task": task.name, "num_steps": config.num_steps, **description}, sort_keys=True)
    state = out / f"{task.name}.state.safetensors"
    start = load_state(state, task.module, task.optimizer, identity) if state.exists() else 0
    if start:
        console.print(f"{task.name}: going on after step {start} of {config.num_steps}")
    device = next(task.module.parameters()).device.type
    writer = SummaryWriter(str(out / "tensorboard" / task.name), purge_step=start)
    saved = logged = time.monotonic()
    logged_step = start
    averages: dict[str, float] = {}
    for step in range(start, config.num_steps):
        factor = schedule(step, num_steps=config.num_steps, num_warmup_steps=config.num_warmup_steps)
        set_learning_rate(task.optimizer, factor)
        task.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=config.bf16):
            loss, figures = task.training_step(step)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"{task.name}: the loss is {loss.item()} at step {step}")
        loss.backward()  # type: ignore[no-untyped-call]
        clip_grad_norm_(
            [p for g in task.optimizer.param_groups for p in g["params"]], config.clip_grad_norm, foreach=True
        )
        task.optimizer.step()

        for key, value in {"loss": loss.item(), **figures}.items():
            averages[key] = value if key not in averages else 0.98 * averages[key] + 0.02 * value
            writer.add_scalar(f"train/{key}", value, step)
        done, now = step + 1, time.monotonic()
        if now - logged > config.log_every_seconds or done == config.num_steps:
            rate = (done - logged_step) / max(1e-9, now - logged)
            left = (config.num_steps - done) / max(1e-9, rate)
            text = " ".join(f"{key} {value:.4f}" for key, value in averages.items())
            console.print(
                f"{task.name} {done}/{config.num_steps} {text} | {rate:.2f} steps/s, {left / 60:.1f} min left",
                highlight=False,
            )
            logged, logged_step = now, done
        if done % config.evaluate_every == 0 or done == config.num_steps:
            result = task.evaluate()
            for key, value in result.items():
                writer.add_scalar(f"val/{key}", value, done)
            text = " ".join(f"{key} {value:.4f}" for key, value in result.items())
            console.print(f"{task.name} {done}/{config.num_steps} validation: {text}", highlight=False)
        if now - saved > config.save_every_seconds or done == config.num_steps:
            save_state(state, task.module, task.optimizer, done, identity)
            saved = now
    writer.close()
