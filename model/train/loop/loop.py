"""The training loop of every method: resumable, in one process or several.

Batches depend on the step number alone.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.utils.tensorboard.writer import SummaryWriter

from vidlex.model.train.loop.averages import StageWeights
from vidlex.model.train.loop.config import LoopConfig
from vidlex.model.train.loop.optim import learning_rate_factor, optimized_parameters, set_learning_rate
from vidlex.model.train.loop.processes import MicroBatch, ProcessGroup, process_group
from vidlex.model.train.loop.run_log import RunFile, StageLog, timestamp
from vidlex.model.train.loop.state import Progress, StageState, load_state, random_state, save_state

console = Console(stderr=True)


class Task(Protocol):
    name: str

    @property
    def module(self) -> nn.Module: ...

    @property
    def optimizer(self) -> torch.optim.Optimizer: ...

    def evaluate(self) -> Mapping[str, float]:
        """Validation metrics. The first one selects the best weights: higher is better."""
        ...


class WholeBatchTask(Task, Protocol):
    def training_step(self, step: int) -> tuple[Tensor, Mapping[str, float]]:
        """The loss of the batch, and values to log. The batch depends on ``step`` alone."""
        ...


@runtime_checkable
class DivisibleTask(Task, Protocol):
    def micro_batch_loss(self, step: int, micro_batch: MicroBatch) -> tuple[Tensor, Mapping[str, float]]:
        """The loss, scaled so that the mean over the micro-batches is the loss of the batch, and values to log."""
        ...


@runtime_checkable
class WaitingTask(Protocol):
    waited_seconds: float  # for data, in the steps of this process: meanwhile the device has nothing to do


def run(task: WholeBatchTask | DivisibleTask, config: LoopConfig, out: Path, description: Mapping[str, Any]) -> None:
    """Train ``task`` to the end, resuming from ``out/<name>.state.safetensors`` if it exists.

    ``description`` holds all settings of the run. Raises ValueError if the state has other settings. In a run of
    several processes all of them call this function, with equal weights; only the main one writes and evaluates.
    """
    stage = _Stage(task, config, out, description)
    if stage.device == "cuda":  # TF32 in matrix products of training; inference keeps full precision
        with _matmul_precision("high"):
            _run(stage, config)
    else:
        _run(stage, config)


def _run(stage: _Stage, config: LoopConfig) -> None:
    progress = stage.state.progress
    first = progress.step
    while progress.step < config.num_steps and not progress.stopped:
        save_is_due = stage.step()
        last = progress.step == config.num_steps
        if last or progress.step % config.evaluate_every == 0:
            stage.evaluate()
        if last or save_is_due or progress.stopped:
            stage.save()
    stage.finish(has_trained=progress.step > first)


@contextmanager
def _matmul_precision(name: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class _Stage:
    def __init__(
        self, task: WholeBatchTask | DivisibleTask, config: LoopConfig, out: Path, description: Mapping[str, Any]
    ) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.task, self.config, self.out = task, config, out
        self.device = next(task.module.parameters()).device.type
        self.processes = process_group(self.device)
        self.is_main = self.processes.is_main
        console.quiet = not self.is_main
        self.micro_batches = _micro_batches(task, config, self.processes)
        self.state = StageState(StageWeights(task.module, config.ema_decay), task.optimizer, Progress())
        self.state_file = out / f"{task.name}.state.safetensors"
        self.identity = json.dumps({"task": task.name, "num_steps": config.num_steps, **description}, sort_keys=True)
        if self.state_file.exists():
            load_state(self.state_file, self.state, self.processes.index, self.identity)
            console.print(f"{task.name}: resuming after step {self.state.progress.step} of {config.num_steps}")
        self.run_file = RunFile(out, is_writer=self.is_main, num_processes=self.processes.count)
        started = self.run_file.data.get("stages", {}).get(task.name, {}).get("started", timestamp())
        self.run_file.update(settings=dict(description), seed=description.get("seed"))
        self.run_file.update_stage(task.name, started=started, loop=asdict(config))
        self.log = StageLog(out, task.name, self.state.progress.step, is_writer=self.is_main)
        self.monitor = _Monitor(task.name, config, out, self.state.progress)
        self.saved_at = time.monotonic()
        self.step_seconds = 0.0

    def step(self) -> bool:
        """Returns whether the state has to be saved, which is the same in all processes."""
        started = time.monotonic()
        task, config, progress = self.task, self.config, self.state.progress
        factor = learning_rate_factor(
            progress.step, num_steps=config.num_steps, num_warmup_steps=config.num_warmup_steps
        )
        rate = set_learning_rate(task.optimizer, factor)
        task.optimizer.zero_grad(set_to_none=True)
        values = {"save_is_due": float(time.monotonic() - self.saved_at > config.save_every_seconds)}
        num_micro_batches = len(self.micro_batches)
        for micro_batch in self.micro_batches:
            loss, logged = self._loss(micro_batch)
            (loss / num_micro_batches).backward()  # type: ignore[no-untyped-call]
            for key, value in {"loss": loss.item(), **logged}.items():
                values[key] = values.get(key, 0.0) + value / num_micro_batches
        parameters = optimized_parameters(task.optimizer)
        values = self.processes.average(parameters, values)
        save_is_due = values.pop("save_is_due") > 0
        if not math.isfinite(values["loss"]):
            raise FloatingPointError(f"{task.name}: the loss is {values['loss']} at step {progress.step}")
        norm = clip_grad_norm_(parameters, config.clip_grad_norm, foreach=True)
        task.optimizer.step()
        progress.step += 1
        self.state.weights.update(progress.step)
        self.log.add(progress.step, {**values, "learning_rate": rate, "gradient_norm": norm.item()})
        self.monitor.step(progress, values)
        self.step_seconds += time.monotonic() - started
        return save_is_due

    def _loss(self, micro_batch: MicroBatch) -> tuple[Tensor, Mapping[str, float]]:
        with torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.config.bf16):
            if isinstance(self.task, DivisibleTask):
                return self.task.micro_batch_loss(self.state.progress.step, micro_batch)
            return self.task.training_step(self.state.progress.step)

    def evaluate(self) -> None:
        progress, weights = self.state.progress, self.state.weights
        with weights.averaged():
            metrics = self.processes.broadcast(dict(self.task.evaluate()) if self.is_main else None)
        self.log.add(progress.step, {"validation": metrics})
        self.monitor.evaluation(progress.step, metrics)
        if not self.config.patience or not metrics:
            return
        metric = next(iter(metrics.values()))
        if progress.best is None or metric > progress.best:
            progress.best, progress.best_step, progress.num_worse = metric, progress.step, 0
            weights.store_best()
        else:
            progress.num_worse += 1
            progress.stopped = progress.num_worse >= self.config.patience

    def save(self) -> None:
        own = random_state()
        states = torch.zeros(self.processes.count, len(own), dtype=torch.uint8)
        states[self.processes.index] = own
        states = self.processes.sum(states)
        if self.is_main:
            save_state(self.state_file, self.state, states, self.identity)
        self.saved_at = time.monotonic()

    def finish(self, has_trained: bool) -> None:
        progress = self.state.progress
        self.state.weights.load_final()
        self.log.close()
        self.monitor.close()
        recorded = self.run_file.data["stages"][self.task.name] if self.is_main else {}
        if self.is_main and (has_trained or "ended" not in recorded):
            from vidlex.model.train.loop.curves import plot_stage  # imports matplotlib, which is slow

            plot_stage(self.out, self.task.name)
            figures = {} if progress.best is None else {"best": progress.best, "best_step": progress.best_step}
            if isinstance(self.task, WaitingTask) and has_trained:
                share = self.task.waited_seconds / self.step_seconds
                figures["waiting_share"] = round(share, 4)
                console.print(f"{self.task.name}: {share:.1%} of the time of the steps was waiting for videos")
            self.run_file.update_stage(
                self.task.name, ended=timestamp(), num_steps=progress.step, stopped=progress.stopped, **figures
            )


def _micro_batches(task: Task, config: LoopConfig, processes: ProcessGroup) -> list[MicroBatch]:
    num = config.num_accumulation_steps
    if num < 1:
        raise ValueError("num_accumulation_steps must be at least 1")
    micro_batches = [MicroBatch(processes.index, processes.count, i, num) for i in range(num)]
    if micro_batches[0].count > 1 and not isinstance(task, DivisibleTask):
        raise ValueError(f"{task.name} does not support several processes or gradient accumulation")
    return micro_batches


class _Monitor:
    def __init__(self, name: str, config: LoopConfig, out: Path, progress: Progress) -> None:
        self.name, self.config = name, config
        self.printed_at, self.printed_step = time.monotonic(), progress.step
        self.writer: SummaryWriter | None = None
        if not console.quiet:
            self.writer = SummaryWriter(str(out / "tensorboard" / name), purge_step=progress.step)

    def step(self, progress: Progress, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            mean = progress.means.get(key, value)
            progress.means[key] = 0.98 * mean + 0.02 * value
            self._add_scalar(f"train/{key}", value, progress.step)
        elapsed, num_steps = time.monotonic() - self.printed_at, self.config.num_steps
        if elapsed > self.config.log_every_seconds or progress.step == num_steps:
            rate = (progress.step - self.printed_step) / max(1e-9, elapsed)
            seconds_left = (num_steps - progress.step) / max(1e-9, rate)
            text = " ".join(f"{key} {value:.4f}" for key, value in progress.means.items())
            self._print(progress.step, f"{text} | {rate:.2f} steps/s, {seconds_left / 60:.1f} min left")
            self.printed_at, self.printed_step = time.monotonic(), progress.step

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        for key, value in metrics.items():
            self._add_scalar(f"val/{key}", value, step)
        self._print(step, "validation: " + " ".join(f"{key} {value:.4f}" for key, value in metrics.items()))

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()

    def _add_scalar(self, key: str, value: float, step: int) -> None:
        if self.writer is not None:
            self.writer.add_scalar(key, value, step)

    def _print(self, step: int, text: str) -> None:
        console.print(f"{self.name} {step}/{self.config.num_steps} {text}", highlight=False)
