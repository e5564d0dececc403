"""Whole runs of ``vidlex train fit``: killed and restarted, divided into parts and processes, and what they leave."""

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
from vidlex.model.train.fit_config import FitConfig
from vidlex.model.train.loop import DividedTask, LoopConfig, Task
from vidlex.model.train.optim import learned
from vidlex.model.train.precision import choose_bf16
from vidlex.model.train.processes import Part
from vidlex.model.train.run_log import Log, read_log

ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_backbones(tmp_path_factory.mktemp("backbones"))


@pytest.mark.timeout(1200)  # many starts of the program: slow where others work too
def test_killed_at_random_steps_and_restarted_equals_unbroken(backbones: Path, tmp_path: Path) -> None:
    """SIGKILL at each place of a step, at a random step of each stage in turn; one thread: equal to the last bit."""
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


def test_a_run_is_a_folder(backbones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_run_held_to_clip_names_more_and_is_judged_on_the_same_labels(backbones: Path, tmp_path: Path) -> None:
    plain, held = (fit(backbones, tmp_path / name, **changes) for name, changes in (("plain", {}), ("held", HELD)))
    trained = [json.loads((folder / "config.json").read_text())["trained_labels"] for folder in (plain, held)]
    assert trained[1][: len(trained[0])] == trained[0] and len(trained[1]) == len(trained[0]) + 5
    lines = [line for line in read_log(tmp_path / "held") if "loss" in line]
    # the branch begins as the frame mean of CLIP, but for rounding
    assert lines[0]["video_hold"] < 1e-9 < lines[0]["label_hold"]
    assert all(line["label_hold"] > 0 for line in lines)
    assert next(line for line in lines if line["step"] == STEPS["joint"])["video_hold"] > 0
    figures = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("plain", "held")]
    assert figures[0]["validation"].keys() == figures[1]["validation"].keys()
    assert figures[0] != figures[1]


def test_the_log_is_cut_where_the_state_is(tmp_path: Path) -> None:
    for stage, num in (("first", 3), ("second", 4)):
        log = Log(tmp_path, stage, 0)
        for step in range(1, num + 1):
            log.add(step, {"loss": step / 3})
        log.close()
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"stage": "second", "st')
    log = Log(tmp_path, "second", 2)
    log.add(3, {"loss": 7.0})
    log.close()
    found = [(line["stage"], line["step"], line["loss"]) for line in read_log(tmp_path)]
    assert found == [*(("first", n, n / 3) for n in (1, 2, 3)), ("second", 1, 1 / 3), ("second", 2, 2 / 3),
                     ("second", 3, 7.0)]  # fmt: skip


def gradients(task: Task, parts: list[Part]) -> list[Tensor]:
    task.optimizer.zero_grad(set_to_none=True)
    for part in parts:
        if part.count == 1:
            loss, _ = task.training_step(3)
        else:
            assert isinstance(task, DividedTask)
            loss, _ = task.training_part(3, part)
        (loss / part.count).backward()  # type: ignore[no-untyped-call]
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in learned(task.optimizer)]


HELD = {"video_hold": 0.5, "label_hold": 2.0, "num_more_pairs": 5, "state_noise": 0.5}


@pytest.mark.parametrize(
    "method, changes", [("ours", {}), ("ours", HELD), ("coop", {}), ("dualcoop", {}), ("vificlip", {})]
)
def test_the_gradients_of_the_parts_are_those_of_the_whole(
    backbones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: Method, changes: dict[str, Any]
) -> None:
    """Every stage of every method, over equal parts and unequal ones: weights, labels and positives are the step's."""
    seen = []

    def check(task: Task, config: LoopConfig, out: Path, description: Any) -> None:
        whole = gradients(task, [Part()])
        largest = max(float(g.abs().max()) for g in whole)
        assert largest > 0
        for num in (2, 3, 4):
            divided = gradients(task, [Part(0, 1, micro, num) for micro in range(num)])
            off = max(float((a - b).abs().max()) for a, b in zip(whole, divided, strict=True))
            assert off < 1e-5 * largest, (task.name, num, off, largest)
        seen.append(task.name)

    monkeypatch.setattr("vidlex.model.train.run_fit.run", check)
    monkeypatch.setattr("vidlex.model.train.run_baseline.run", check)
    fit(backbones, tmp_path, method=method, num_step_labels=20, **changes)
    assert seen == (["joint", "prefix", "label"] if method == "ours" else [method])


@pytest.mark.timeout(1200)  # many starts of the program: slow where others work too
def test_two_processes_train_as_one(backbones: Path, tmp_path: Path) -> None:
    """Started by torchrun over gloo, two micro-batches each, against one process that takes each step whole."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--module",
               "support.tiny_fit", str(backbones), str(tmp_path / "two")]  # fmt: skip
    done = subprocess.run(command, cwd=TESTS, env=ONE_THREAD, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    fit(backbones, tmp_path / "one", num_accumulation_steps=1)
    ours, theirs = read_log(tmp_path / "two"), read_log(tmp_path / "one")
    assert [(a["stage"], a["step"], a.keys()) for a in ours] == [(a["stage"], a["step"], a.keys()) for a in theirs]
    for a, b in zip(ours, theirs, strict=True):
        for key in ("loss", "gradient_norm"):
            assert a.get(key, 0.0) == pytest.approx(b.get(key, 0.0), rel=1e-4), (a, b)
    weights = [load_file(tmp_path / name / "checkpoint" / "model.safetensors") for name in ("two", "one")]
    assert weights[0].keys() == weights[1].keys()
    for key in weights[0]:
        assert torch.allclose(weights[0][key], weights[1][key], atol=1e-4), key
    run = json.loads((tmp_path / "two" / "run.json").read_text())
    assert [session["num_processes"] for session in run["sessions"]] == [2]


def test_parts_cover_every_row_once() -> None:
    for num, processes, micros in ((8, 2, 2), (7, 2, 3), (5, 1, 5)):
        rows = []
        for process in range(processes):
            parts = [Part(process, processes, micro, micros) for micro in range(micros)]
            own = [i for part in parts for i in range(num)[part.rows(num)]]
            assert own == list(range(num)[parts[0].rows_of_process(num)])
            rows += own
        assert rows == list(range(num))
    with pytest.raises(ValueError, match="3 rows cannot be divided into 4 parts"):
        Part(0, 4).rows(3)


def test_bf16_stays_what_the_run_began_with(tmp_path: Path) -> None:
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


def test_what_may_change_when_a_run_goes_on_is_no_setting() -> None:
    assert FitConfig(num_accumulation_steps=4, save_every_seconds=1).settings() == FitConfig().settings()
    assert FitConfig(ema_decay=0.9).settings() != FitConfig().settings()


@pytest.mark.parametrize("name", HELD)
def test_a_negative_hold_or_number_of_pairs_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must not be negative"):
        FitConfig(**{name: -1})  # type: ignore[arg-type]
