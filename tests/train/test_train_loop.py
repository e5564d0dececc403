"""The training loop: resuming, moving averages, early stopping and the learning-rate schedule."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from support.paths import TESTS
from vidlex.model.train.loop.averages import StageWeights
from vidlex.model.train.loop.config import LoopConfig
from vidlex.model.train.loop.loop import run
from vidlex.model.train.loop.optim import ParameterGroup, learning_rate_factor, make_optimizer


class LineTask:
    """Learns y = 2 x + 1. ``pause`` are seconds per step, so that a test can kill the process."""

    name = "line"

    def __init__(self, pause: float = 0.0) -> None:
        torch.manual_seed(0)
        self.module = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
        self.optimizer = make_optimizer(
            [ParameterGroup([*self.module.parameters()], 0.05)], weight_decay=0.01, betas=(0.9, 0.98)
        )
        self.pause = pause

    def training_step(self, step: int) -> tuple[Tensor, Mapping[str, float]]:
        time.sleep(self.pause)
        print(step, flush=True)
        x = torch.randn(32, 1, generator=torch.Generator().manual_seed(step))
        return (self.module(x).float() - (2 * x + 1)).square().mean(), {}

    def evaluate(self) -> Mapping[str, float]:
        return {"error": self.training_step(10**6)[0].item()}


def settings(num_steps: int) -> LoopConfig:
    return LoopConfig(num_steps, num_warmup_steps=5, save_every_seconds=0.0, evaluate_every=50, bf16=False)


def final_state(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "line.state.safetensors")


def test_loop_learns_and_logs(tmp_path: Path) -> None:
    task = LineTask()
    before = task.evaluate()["error"]
    run(task, settings(150), tmp_path, {})
    assert task.evaluate()["error"] < 0.2 * before
    assert list((tmp_path / "tensorboard" / "line").glob("events*"))


def test_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    run(LineTask(), settings(60), tmp_path / "unbroken", {})
    code = (
        "import sys\nfrom pathlib import Path\nsys.path.append('train')\n"
        "from test_train_loop import LineTask, settings\n"
        "from vidlex.model.train.loop.loop import run\n"
        f"run(LineTask(0.02), settings(60), Path({str(tmp_path / 'broken')!r}), {{}})"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=TESTS, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == "23":
            process.send_signal(signal.SIGKILL)
            break
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL
    resumed = LineTask()
    run(resumed, settings(60), tmp_path / "broken", {})
    ours, theirs = final_state(tmp_path / "broken"), final_state(tmp_path / "unbroken")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_state_of_other_settings_is_refused(tmp_path: Path) -> None:
    run(LineTask(), settings(10), tmp_path, {"seed": 0})
    with pytest.raises(ValueError, match="seed: 0 -> 1"):
        run(LineTask(), settings(10), tmp_path, {"seed": 1})


def test_loss_that_is_not_finite_raises(tmp_path: Path) -> None:
    class Broken(LineTask):
        def training_step(self, step: int) -> tuple[Tensor, Mapping[str, float]]:
            loss, logged = super().training_step(step)
            return loss * (float("nan") if step == 3 else 1.0), logged

    with pytest.raises(FloatingPointError, match="step 3"):
        run(Broken(), settings(10), tmp_path, {})


def test_moving_average_by_hand() -> None:
    """The decay is 1/10 after one step, then 2/11, then 0.2."""
    module = nn.Linear(1, 1, bias=False)
    module.weight.data.fill_(1.0)
    weights = StageWeights(module, 0.2)
    expected = 1.0
    for step, (value, decay) in enumerate(((2.0, 1 / 10), (5.0, 2 / 11), (3.0, 0.2), (4.0, 0.2)), start=1):
        module.weight.data.fill_(value)
        weights.update(step)
        expected = decay * expected + (1 - decay) * value
    with weights.averaged():
        assert module.weight.item() == pytest.approx(expected)
    assert module.weight.item() == 4.0
    weights.load_final()
    assert module.weight.item() == pytest.approx(expected)
    with pytest.raises(ValueError, match="decay"):
        StageWeights(module, 1.0)


def test_averages_are_evaluated_saved_and_the_result(tmp_path: Path) -> None:
    seen = []

    class Watched(LineTask):
        def evaluate(self) -> Mapping[str, float]:
            seen.append({name: p.detach().clone() for name, p in self.module.named_parameters()})
            return super().evaluate()

    config = replace(settings(40), ema_decay=0.9, evaluate_every=40)
    task = Watched()
    run(task, config, tmp_path, {})
    state = final_state(tmp_path)
    for name, parameter in task.module.named_parameters():
        assert torch.equal(parameter, state[f"average/{name}"]) and torch.equal(parameter, seen[0][name])
        assert not torch.equal(parameter, state[f"module/{name}"])
    again = Watched()
    run(again, config, tmp_path, {})  # nothing to do: the same weights
    assert all(torch.equal(a, b) for a, b in zip(again.module.parameters(), task.module.parameters(), strict=True))
    assert len(seen) == 1


class Scripted(LineTask):
    """Returns given validation metrics."""

    def __init__(self, figures: list[float]) -> None:
        super().__init__()
        self.figures = figures
        self.at_evaluation: list[dict[str, Tensor]] = []

    def evaluate(self) -> Mapping[str, float]:
        self.at_evaluation.append({name: p.detach().clone() for name, p in self.module.named_parameters()})
        return {"figure": self.figures[len(self.at_evaluation) - 1], "other": 1.0}


def test_early_stopping_restores_the_best_weights(tmp_path: Path) -> None:
    config = replace(settings(100), patience=2, evaluate_every=10)
    task = Scripted([0.1, 0.4, 0.3, float("nan"), 0.9])
    run(task, config, tmp_path, {})
    assert len(task.at_evaluation) == 4
    stage = json.loads((tmp_path / "run.json").read_text())["stages"]["line"]
    assert (stage["num_steps"], stage["stopped"], stage["best"], stage["best_step"]) == (40, True, 0.4, 20)
    assert all(torch.equal(p, task.at_evaluation[1][name]) for name, p in task.module.named_parameters())
    again = Scripted([])
    run(again, config, tmp_path, {})  # remains stopped
    assert all(torch.equal(p, task.at_evaluation[1][name]) for name, p in again.module.named_parameters())


def test_patience_continues_after_a_restart(tmp_path: Path) -> None:
    class Interrupted(Scripted):
        def training_step(self, step: int) -> tuple[Tensor, Mapping[str, float]]:
            if step == 35:
                raise KeyboardInterrupt
            return super().training_step(step)

    config = replace(settings(100), patience=3, evaluate_every=10)
    with pytest.raises(KeyboardInterrupt):
        run(Interrupted([0.5, 0.4, 0.3]), config, tmp_path, {})
    resumed = Scripted([0.45, 0.6])
    run(resumed, config, tmp_path, {})
    assert len(resumed.at_evaluation) == 1  # the third without an improvement
    stage = json.loads((tmp_path / "run.json").read_text())["stages"]["line"]
    assert (stage["num_steps"], stage["best"], stage["best_step"]) == (40, 0.5, 10)
    best = {key.removeprefix("best/"): v for key, v in final_state(tmp_path).items() if key.startswith("best/")}
    assert all(torch.equal(p, best[name]) for name, p in resumed.module.named_parameters())


def test_global_random_state_is_restored(tmp_path: Path) -> None:
    class Noisy(LineTask):
        def training_step(self, step: int) -> tuple[Tensor, Mapping[str, float]]:
            if step == self.stop_at:
                raise KeyboardInterrupt
            loss, logged = super().training_step(step)
            return loss * (1 + torch.rand(())), logged

        stop_at = -1

    run(Noisy(), settings(20), tmp_path / "unbroken", {})
    broken = Noisy()
    broken.stop_at = 9
    with pytest.raises(KeyboardInterrupt):
        run(broken, settings(20), tmp_path / "broken", {})
    run(Noisy(), settings(20), tmp_path / "broken", {})
    assert (tmp_path / "broken" / "log.jsonl").read_text() == (tmp_path / "unbroken" / "log.jsonl").read_text()


def test_indivisible_task_with_accumulation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="line does not support several processes or gradient accumulation"):
        run(LineTask(), replace(settings(10), num_accumulation_steps=2), tmp_path, {})


def test_learning_rate_factor_by_hand() -> None:
    factors = [learning_rate_factor(s, num_steps=110, num_warmup_steps=10) for s in (0, 9, 10, 60, 110)]
    assert factors == pytest.approx([0.1, 1.0, 1.0, 0.51, 0.02])


def test_only_trainable_matrices_decay() -> None:
    layer = nn.Linear(3, 2)
    frozen = nn.Parameter(torch.ones(2, 2), requires_grad=False)
    groups = make_optimizer(
        [ParameterGroup([*layer.parameters(), frozen], 0.1)], weight_decay=0.5, betas=(0.9, 0.9)
    ).param_groups
    assert [(g["weight_decay"], [p.ndim for p in g["params"]]) for g in groups] == [(0.5, [2]), (0.0, [1])]
    with pytest.raises(ValueError, match="nothing to train"):
        make_optimizer([ParameterGroup([frozen], 0.1)], weight_decay=0.0, betas=(0.9, 0.9))
