"""The training loop, the same for every method: batches by step number, resumable, in one process or many.

It knows no model. Gradient accumulation, the moving average of the weights and early stopping live here alone.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.utils.tensorboard.writer import SummaryWriter

from vidlex.model.train.averages import StageWeights
from vidlex.model.train.optim import learned, schedule, set_learning_rate
from vidlex.model.train.processes import WHOLE, Part, Processes, processes_of
from vidlex.model.train.run_log import Log, RunFile, now
from vidlex.model.train.state import Progress, StageState, load_state, random_state, save_state

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
        """Figures on validation data. The first one says which weights are best: the higher the better."""
        ...


@runtime_checkable
class DividedTask(Protocol):
    """A task that also computes parts of a step's batch, for accumulation and for several processes."""

    def training_part(self, step: int, part: Part) -> tuple[Tensor, Mapping[str, float]]:
        """Loss of a part, scaled so that the mean over the parts is the loss of the whole step; figures to log."""
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
    num_accumulation_steps: int = 1
    """Parts in which each process computes its share of a step's batch: less memory, the same step."""
    ema_decay: float = 0.0
    """Of the moving average of the weights, which is evaluated and remains at the end; 0 keeps none."""
    patience: int = 0
    """Evaluations without a better figure after which the stage ends; its best weights remain. 0: never, and the
    last weights remain. A stage that is not evaluated runs to its end."""


def run(task: Task, config: LoopConfig, out: Path, description: Mapping[str, Any]) -> None:
    """Train ``task`` to the end, going on from ``out/<name>.state.safetensors`` where it exists.

    ``description`` holds all settings of the run: a state with other settings is refused. Started as several
    processes, all call it, with the same weights; the main one alone writes and evaluates.
    """
    stage = _Stage(task, config, out, description)
    if stage.device == "cuda":  # TF32 in matrix products; the encoders that only read are left at full precision
        with _matmul_precision("high"):
            _run(stage, config)
    else:
        _run(stage, config)


def _run(stage: _Stage, config: LoopConfig) -> None:
    progress = stage.state.progress
    first = progress.step
    while progress.step < config.num_steps and not progress.stopped:
        save_is_due = stage.learn()
        last = progress.step == config.num_steps
        if last or progress.step % config.evaluate_every == 0:
            stage.evaluate()
        if last or save_is_due or progress.stopped:
            stage.save()
    stage.end(ran=progress.step > first)


@contextmanager
def _matmul_precision(name: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class _Stage:
    def __init__(self, task: Task, config: LoopConfig, out: Path, description: Mapping[str, Any]) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.task, self.config, self.out = task, config, out
        self.device = next(task.module.parameters()).device.type
        self.processes = processes_of(self.device)
        self.is_main = self.processes.is_main
        console.quiet = not self.is_main
        self.parts = _parts(task, config, self.processes)
        self.state = StageState(StageWeights(task.module, config.ema_decay), task.optimizer, Progress())
        self.state_file = out / f"{task.name}.state.safetensors"
        self.identity = json.dumps({"task": task.name, "num_steps": config.num_steps, **description}, sort_keys=True)
        if self.state_file.exists():
            load_state(self.state_file, self.state, self.processes.index, self.identity)
            console.print(f"{task.name}: going on after step {self.state.progress.step} of {config.num_steps}")
        self.run_file = RunFile(out, writes=self.is_main, num_processes=self.processes.count)
        started = self.run_file.data.get("stages", {}).get(task.name, {}).get("started", now())
        self.run_file.update(settings=dict(description), seed=description.get("seed"))
        self.run_file.update_stage(task.name, started=started, loop=asdict(config))
        self.log = Log(out, task.name, self.state.progress.step, writes=self.is_main)
        self.monitor = _Monitor(task.name, config, out, self.state.progress)
        self.saved = time.monotonic()

    def learn(self) -> bool:
        """One step. Returns whether the state is to be saved after it: all processes say the same."""
        task, config, progress = self.task, self.config, self.state.progress
        factor = schedule(progress.step, num_steps=config.num_steps, num_warmup_steps=config.num_warmup_steps)
        rate = set_learning_rate(task.optimizer, factor)
        task.optimizer.zero_grad(set_to_none=True)
        values = {"save_is_due": float(time.monotonic() - self.saved > config.save_every_seconds)}
        for part in self.parts:
            loss, figures = self._loss(part)
            (loss / len(self.parts)).backward()  # type: ignore[no-untyped-call]
            for key, value in {"loss": loss.item(), **figures}.items():
                values[key] = values.get(key, 0.0) + value / len(self.parts)
        values = self.processes.average(learned(task.optimizer), values)
        save_is_due = values.pop("save_is_due") > 0
        if not abs(values["loss"]) < float("inf"):  # nor may it be no number
            raise FloatingPointError(f"{task.name}: the loss is {values['loss']} at step {progress.step}")
        norm = clip_grad_norm_(learned(task.optimizer), config.clip_grad_norm, foreach=True)
        task.optimizer.step()
        progress.step += 1
        self.state.weights.update(progress.step)
        self.log.add(progress.step, {**values, "learning_rate": rate, "gradient_norm": norm.item()})
        self.monitor.step(progress, values)
        return save_is_due

    def _loss(self, part: Part) -> tuple[Tensor, Mapping[str, float]]:
        with torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.config.bf16):
            if part == WHOLE:
                return self.task.training_step(self.state.progress.step)
            assert isinstance(self.task, DividedTask)
            return self.task.training_part(self.state.progress.step, part)

    def evaluate(self) -> None:
        """Measure the weights that would remain, and stop early where they no longer get better."""
        progress, weights = self.state.progress, self.state.weights
        with weights.averaged():
            figures = self.processes.tell(dict(self.task.evaluate()) if self.is_main else None)
        self.log.add(progress.step, {"validation": figures})
        self.monitor.evaluation(progress.step, figures)
        if not self.config.patience or not figures:
            return
        figure = next(iter(figures.values()))
        if progress.best is None or figure > progress.best:
            progress.best, progress.best_step, progress.num_worse = figure, progress.step, 0
            weights.keep_best()
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
        self.saved = time.monotonic()

    def end(self, ran: bool) -> None:
        """The module takes the weights that remain; what the stage was goes to the run's folder."""
        progress = self.state.progress
        self.state.weights.settle()
        self.log.close()
        self.monitor.close()
        recorded = self.run_file.data["stages"][self.task.name] if self.is_main else {}
        if self.is_main and (ran or "ended" not in recorded):
            from vidlex.model.train.curves import plot_stage  # brings matplotlib

            plot_stage(self.out, self.task.name)
            best = {} if progress.best is None else {"best": progress.best, "best_step": progress.best_step}
            self.run_file.update_stage(
                self.task.name, ended=now(), num_steps=progress.step, stopped=progress.stopped, **best
            )


def _parts(task: Task, config: LoopConfig, processes: Processes) -> list[Part]:
    """The parts of a step that this process computes. Raises ValueError for a task that is not made for parts."""
    num = config.num_accumulation_steps
    if num < 1:
        raise ValueError("num_accumulation_steps must be at least 1")
    parts = [Part(processes.index, processes.count, micro, num) for micro in range(num)]
    if parts[0].count > 1 and not isinstance(task, DividedTask):
        raise ValueError(f"the step of {task.name} cannot be divided: one process, and no accumulation")
    return parts


class _Monitor:
    """What people watch: lines on the console and TensorBoard. Quiet in all processes but the main one."""

    def __init__(self, name: str, config: LoopConfig, out: Path, progress: Progress) -> None:
        self.name, self.config = name, config
        self.logged, self.logged_step = time.monotonic(), progress.step
        self.writer: SummaryWriter | None = None
        if not console.quiet:
            self.writer = SummaryWriter(str(out / "tensorboard" / name), purge_step=progress.step)

    def step(self, progress: Progress, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            mean = progress.means.get(key, value)
            progress.means[key] = 0.98 * mean + 0.02 * value
            self._scalar(f"train/{key}", value, progress.step)
        passed, num_steps = time.monotonic() - self.logged, self.config.num_steps
        if passed > self.config.log_every_seconds or progress.step == num_steps:
            rate = (progress.step - self.logged_step) / max(1e-9, passed)
            left = (num_steps - progress.step) / max(1e-9, rate)
            text = " ".join(f"{key} {value:.4f}" for key, value in progress.means.items())
            self._say(progress.step, f"{text} | {rate:.2f} steps/s, {left / 60:.1f} min left")
            self.logged, self.logged_step = time.monotonic(), progress.step

    def evaluation(self, step: int, figures: Mapping[str, float]) -> None:
        for key, value in figures.items():
            self._scalar(f"val/{key}", value, step)
        self._say(step, "validation: " + " ".join(f"{key} {value:.4f}" for key, value in figures.items()))

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()

    def _scalar(self, key: str, value: float, step: int) -> None:
        if self.writer is not None:
            self.writer.add_scalar(key, value, step)

    def _say(self, step: int, text: str) -> None:
        console.print(f"{self.name} {step}/{self.config.num_steps} {text}", highlight=False)
