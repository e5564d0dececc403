"""Complete runs of ``vidlex train fit``: kills and restarts, accumulation, several processes, and the run folder."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from support.paths import ROOT, TESTS
from support.tiny_fit import PLACES, STEPS, fit, write_backbones
from vidlex.model.config import Method
from vidlex.model.sources.config import EmojiConfig
from vidlex.model.train.fit_config import FitConfig
from vidlex.model.train.loop.config import LoopConfig
from vidlex.model.train.loop.loop import DivisibleTask
from vidlex.model.train.loop.optim import optimized_parameters
from vidlex.model.train.loop.precision import choose_bf16
from vidlex.model.train.loop.processes import WHOLE_BATCH, MicroBatch
from vidlex.model.train.loop.run_log import StageLog, read_log

REGULARISED = {"video_hold": 0.5, "label_hold": 2.0, "state_noise": 0.5}
MORE_PAIRS = {"emoji": EmojiConfig(num_more_pairs=5)}
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_backbones(tmp_path_factory.mktemp("backbones"))


@pytest.fixture(scope="module")
def plain_run(backbones: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of one process, without accumulation."""
    out = tmp_path_factory.mktemp("plain")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vidlex.model.train.loop.curves.plot_stage", lambda out, stage: None)
        fit(backbones, out, num_accumulation_steps=1)
    return out


@pytest.mark.timeout(1200)  # several runs, slow on a busy machine
def test_run_killed_at_random_steps_equals_an_uninterrupted_one(backbones: Path, tmp_path: Path) -> None:
    """SIGKILL at each place of a step, at a random step of each stage; with one thread, results are bit-identical."""
    draw = random.Random(3)
    kills = [(place, stage, draw.randint(1, STEPS[stage])) for place, stage in zip(PLACES, STEPS, strict=True)]
    command = [sys.executable, "-m", "support.tiny_fit", str(backbones), str(tmp_path), json.dumps(kills)]
    done = subprocess.run(command, cwd=TESTS, env=ONE_THREAD, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [0, *[-signal.SIGKILL] * len(kills), 0], (kills, done.stderr)
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    steps = [(line["stage"], line["step"]) for line in read_log(unbroken) if "loss" in line]
    assert steps == [(stage, step + 1) for stage, num in STEPS.items() for step in range(num)]
    for name in ("log.jsonl", "metrics.json", "checkpoint/config.json"):
        assert (broken / name).read_bytes() == (unbroken / name).read_bytes(), (name, kills)
    for name in ("checkpoint/model.safetensors", *(f"{stage}.state.safetensors" for stage in STEPS)):
        ours, theirs = (load_file(out / name) for out in (broken, unbroken))
        assert ours.keys() == theirs.keys() and len(ours) > 10
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), (name, kills)
    sessions = json.loads((broken / "run.json").read_text())["sessions"]
    assert len(sessions) == len(kills) + 1


def test_run_folder_contents(backbones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["vidlex", "train", "fit", "--out", "a folder"])
    fit(backbones, tmp_path, bf16=None)
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["seed"] == run["settings"]["seed"] == 0
    assert run["ended"] >= run["sessions"][0]["started"]
    session = run["sessions"][0]
    assert session["command"] == "vidlex train fit --out 'a folder'"
    assert session["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert session["hardware"]["num_cpus"] == os.cpu_count() and session["hardware"]["memory_bytes"] > 1 << 28
    if (ROOT / ".git").exists():
        assert len(session["git"]["commit"]) == 40
    assert min(run["bf16"]["float32_seconds"], run["bf16"]["bfloat16_seconds"]) > 0
    assert run["settings"]["bf16"] == run["bf16"]["used"] == run["stages"]["joint"]["loop"]["bf16"]
    assert {stage: data["num_steps"] for stage, data in run["stages"].items()} == STEPS
    lines = read_log(tmp_path)
    first = lines[0]
    assert (first["stage"], first["step"]) == ("joint", 1)
    assert first["loss"] > 0 and first["learning_rate"] > 0 and first["gradient_norm"] > 0 and first["scale"] > 0
    evaluated = [line for line in lines if line.get("validation")]
    assert [line["step"] for line in evaluated if line["stage"] == "label"] == [1, 2, 3, 4]
    evaluated = [line for line in evaluated if line["stage"] == "joint"]
    assert [line["step"] for line in evaluated] == [2, 4, 6, 7]
    figures = [line["validation"]["micro_aupr"] for line in evaluated]
    assert run["stages"]["joint"]["best"] == max(figures)
    assert run["stages"]["joint"]["best_step"] == evaluated[figures.index(max(figures))]["step"]
    assert run["metrics"] == json.loads((tmp_path / "metrics.json").read_text())["validation"]
    for stage in STEPS:
        with Image.open(tmp_path / "curves" / f"{stage}.png") as picture:
            assert picture.width > 400 and len(picture.convert("L").getcolors() or []) > 10


@pytest.mark.usefixtures("without_curves")
def test_regularised_run_trains_more_labels_and_is_evaluated_on_the_same(
    backbones: Path, plain_run: Path, tmp_path: Path
) -> None:
    fit(backbones, tmp_path, **REGULARISED, **MORE_PAIRS)
    folders = plain_run, tmp_path
    trained = [json.loads((out / "checkpoint" / "config.json").read_text())["trained_labels"] for out in folders]
    assert trained[1][: len(trained[0])] == trained[0] and len(trained[1]) == len(trained[0]) + 5
    lines = [line for line in read_log(tmp_path) if "loss" in line]
    # the untrained branch returns CLIP's frame mean, up to rounding
    assert lines[0]["video_hold"] < 1e-9 < lines[0]["label_hold"]
    assert all(line["label_hold"] > 0 for line in lines)
    assert next(line for line in lines if line["step"] == STEPS["joint"])["video_hold"] > 0
    metrics = [json.loads((out / "metrics.json").read_text()) for out in folders]
    assert metrics[0]["validation"].keys() == metrics[1]["validation"].keys()
    assert metrics[0] != metrics[1]


def test_log_is_truncated_at_the_resumed_step(tmp_path: Path) -> None:
    for stage, num in (("first", 3), ("second", 4)):
        log = StageLog(tmp_path, stage, 0)
        for step in range(1, num + 1):
            log.add(step, {"loss": step / 3})
        log.close()
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"stage": "second", "st')
    log = StageLog(tmp_path, "second", 2)
    log.add(3, {"loss": 7.0})
    log.close()
    found = [(line["stage"], line["step"], line["loss"]) for line in read_log(tmp_path)]
    assert found == [*(("first", n, n / 3) for n in (1, 2, 3)), ("second", 1, 1 / 3), ("second", 2, 2 / 3),
                     ("second", 3, 7.0)]  # fmt: skip


def gradients(task: DivisibleTask, micro_batches: list[MicroBatch]) -> list[Tensor]:
    task.optimizer.zero_grad(set_to_none=True)
    for micro_batch in micro_batches:
        loss, _ = task.micro_batch_loss(3, micro_batch)
        (loss / micro_batch.count).backward()  # type: ignore[no-untyped-call]
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in optimized_parameters(task.optimizer)]


@pytest.mark.parametrize(
    "method, changes",
    [("ours", {}), ("ours", {**REGULARISED, **MORE_PAIRS}), ("coop", {}), ("dualcoop", {}), ("vificlip", {})],
)
def test_gradients_of_micro_batches_add_up(
    backbones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: Method, changes: dict[str, Any]
) -> None:
    """For every stage of every method, with micro-batches of equal and of unequal size."""
    seen = []

    def check(task: DivisibleTask, config: LoopConfig, out: Path, description: Any) -> None:
        whole = gradients(task, [WHOLE_BATCH])
        largest = max(float(g.abs().max()) for g in whole)
        assert largest > 0
        for num in (2, 3, 4):
            divided = gradients(task, [MicroBatch(0, 1, i, num) for i in range(num)])
            error = max(float((a - b).abs().max()) for a, b in zip(whole, divided, strict=True))
            assert error < 1e-5 * largest, (task.name, num, error, largest)
        seen.append(task.name)

    monkeypatch.setattr("vidlex.model.train.stages.run", check)
    monkeypatch.setattr("vidlex.model.train.run_baseline.run", check)
    fit(backbones, tmp_path, method=method, num_step_labels=20, **changes)
    assert seen == (["joint", "prefix", "label"] if method == "ours" else [method])


@pytest.mark.timeout(1200)  # starts three processes, slow on a busy machine
def test_two_processes_train_like_one(backbones: Path, plain_run: Path, tmp_path: Path) -> None:
    """Two processes of torchrun with two micro-batches each, against one process without accumulation."""
    command = [sys.executable, "-m", "support.tiny_fit", str(backbones), str(tmp_path), "2"]
    done = subprocess.run(command, cwd=TESTS, env=ONE_THREAD, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    ours, theirs = read_log(tmp_path), read_log(plain_run)
    assert [(a["stage"], a["step"], a.keys()) for a in ours] == [(a["stage"], a["step"], a.keys()) for a in theirs]
    for a, b in zip(ours, theirs, strict=True):
        for key in ("loss", "gradient_norm"):
            assert a.get(key, 0.0) == pytest.approx(b.get(key, 0.0), rel=1e-4), (a, b)
    weights = [load_file(out / "checkpoint" / "model.safetensors") for out in (tmp_path, plain_run)]
    assert weights[0].keys() == weights[1].keys()
    for key in weights[0]:
        assert torch.allclose(weights[0][key], weights[1][key], atol=1e-4), key
    run = json.loads((tmp_path / "run.json").read_text())
    assert [session["num_processes"] for session in run["sessions"]] == [2]


def test_micro_batches_cover_every_row_once() -> None:
    for num, num_processes, num_local in ((8, 2, 2), (7, 2, 3), (5, 1, 5)):
        rows = []
        for process in range(num_processes):
            micro_batches = [MicroBatch(process, num_processes, i, num_local) for i in range(num_local)]
            rows_of_process = [i for micro_batch in micro_batches for i in range(num)[micro_batch.rows(num)]]
            assert rows_of_process == list(range(num)[micro_batches[0].rows_of_process(num)])
            rows += rows_of_process
        assert rows == list(range(num))
    with pytest.raises(ValueError, match="3 rows cannot be divided into 4 micro-batches"):
        MicroBatch(0, 4).rows(3)


def test_bf16_is_measured_once_per_run(tmp_path: Path) -> None:
    module = torch.nn.Linear(4, 4)
    calls = []

    def forward() -> Tensor:
        calls.append(torch.is_autocast_enabled("cpu"))
        out: Tensor = module(torch.ones(2, 4))
        return out

    chosen = choose_bf16(None, module, forward, "cpu", tmp_path)
    assert set(calls) == {True, False} and module.weight.grad is None
    data = json.loads((tmp_path / "run.json").read_text())
    data["bf16"]["used"] = not chosen
    (tmp_path / "run.json").write_text(json.dumps(data))
    num_calls = len(calls)
    assert choose_bf16(None, module, forward, "cpu", tmp_path) is not chosen
    assert choose_bf16(True, module, forward, "cpu", tmp_path) is True
    assert len(calls) == num_calls


def test_settings_exclude_what_may_change_between_sessions() -> None:
    assert FitConfig(num_accumulation_steps=4, save_every_seconds=1).settings() == FitConfig().settings()
    assert FitConfig(ema_decay=0.9).settings() != FitConfig().settings()


@pytest.mark.parametrize("name", REGULARISED)
def test_negative_weight_or_number_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must not be negative"):
        FitConfig(**{name: -1})  # type: ignore[arg-type]
