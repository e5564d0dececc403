"""``vidlex train fit`` on manifests of real video files, up to a checkpoint that is evaluated and served."""

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
from safetensors.torch import load_file
from torch import Tensor

from support.clips import COLOURS, LABELS, MOTION, write_clips, write_dataset
from support.manifest_fit import SHORT, SHORT_STEPS, fit_manifest
from support.paths import TESTS
from support.serving import add, classify, serving
from support.tiny_fit import PLACES, write_backbones
from vidlex.model.config import Method
from vidlex.model.data.manifest import Entry, read_manifest, write_manifest
from vidlex.model.eval.evaluate import report, score
from vidlex.model.factory import load_classifier
from vidlex.model.sources.config import DataConfig
from vidlex.model.sources.decode_pool import DecodePool
from vidlex.model.train.fit import JointTask
from vidlex.model.train.loop.processes import WHOLE_BATCH
from vidlex.model.train.loop.run_log import read_log
from vidlex.model.train.network import OpenVocabularyNetwork

ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
pytestmark = pytest.mark.usefixtures("without_curves")


@pytest.fixture(scope="module")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CLIP, LLM and, in ``data``, 60 videos of four containers: one is damaged, one is missing."""
    folder = write_backbones(tmp_path_factory.mktemp("backbones"))
    manifest = write_dataset(folder / "data", num_train=44, num_validation=16)
    (folder / "data" / "003.mov").write_bytes((folder / "data" / "003.mov").read_bytes()[:900])
    entries = [*read_manifest(manifest), Entry("gone.mp4", ("red",), closed=True, split="train")]
    write_manifest(manifest, entries)
    return folder


def losses(out: Path, stage: str = "joint") -> list[float]:
    return [line["loss"] for line in read_log(out) if line["stage"] == stage and "loss" in line]


def test_checkpoint_of_a_manifest_is_evaluated_and_served(
    backbones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = backbones / "data" / "manifest.jsonl"
    data = DataConfig(train=(str(manifest),), kind_weight=("motion=2",), crop_scale=0.7)
    steps = {"num_joint_steps": 160, "num_prefix_steps": 3, "num_label_steps": 10}
    folder = fit_manifest(backbones, tmp_path / "run", data, **steps)
    found = losses(tmp_path / "run")
    assert sum(found[-10:]) < 0.5 * sum(found[:10])
    listed = [
        Path(line.split("\t")[0]).name for line in (tmp_path / "run" / "broken_videos.txt").read_text().splitlines()
    ]
    assert sorted(listed) == ["003.mov", "gone.mp4"]
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert 0 <= run["stages"]["joint"]["waiting_share"] <= 1
    assert set(run["metrics"]) == {"micro_aupr", "aupr_colour", "aupr_motion"}

    def refuse(*arguments: Any, **named: Any) -> None:
        raise AssertionError("a run that is resumed after its joint stage should decode nothing")

    monkeypatch.setattr(DecodePool, "read", refuse)
    fit_manifest(backbones, tmp_path / "run", data, **steps)
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["validation"] == run["metrics"]

    classifier = load_classifier(str(folder), device="cpu")
    scores = score(classifier, manifest, LABELS, split="val")
    metrics = report(classifier, scores, {MOTION: "motion", **dict.fromkeys(COLOURS, "colour")})
    assert metrics["num_videos"] == 16 and metrics["chance"] == pytest.approx(scores.targets.mean())
    assert metrics["micro_aupr"] > 2 * metrics["chance"], metrics
    assert metrics["by_kind"]["colour"]["micro_aupr"] > 2 * metrics["by_kind"]["colour"]["chance"], metrics
    assert metrics["by_kind"]["motion"]["micro_aupr"] > 1.25 * metrics["by_kind"]["motion"]["chance"], metrics
    # float16 in the cache and in the checkpoint: the run's own metrics are close
    assert run["metrics"]["micro_aupr"] == pytest.approx(metrics["micro_aupr"], abs=0.03)

    red = next(entry for entry in read_manifest(manifest) if entry.split == "val" and "red" in entry.positives)
    with serving(tmp_path / "service", classifier=classifier) as client:
        add(client, *LABELS)
        answer = classify(client, manifest.parent / red.video, top_k=8)
        assert answer.status_code == 200, answer.text
        scored = {label["name"]: label["score"] for label in answer.json()["labels"]}
        assert max(COLOURS, key=lambda name: scored[name]) == "red"


@pytest.mark.timeout(1200)  # several runs, slow on a busy machine
def test_run_killed_at_random_steps_equals_an_uninterrupted_one(backbones: Path, tmp_path: Path) -> None:
    draw = random.Random(5)
    kills = [
        (place, stage, draw.randint(1, SHORT_STEPS[stage])) for place, stage in zip(PLACES, SHORT_STEPS, strict=True)
    ]
    command = [sys.executable, "-m", "support.manifest_fit", str(backbones), str(tmp_path), json.dumps(kills)]
    done = subprocess.run(command, cwd=TESTS, env=ONE_THREAD, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [0, *[-signal.SIGKILL] * len(kills), 0], (kills, done.stderr)
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    assert len(losses(unbroken)) == SHORT_STEPS["joint"]
    for name in ("log.jsonl", "metrics.json", "checkpoint/config.json"):
        assert (broken / name).read_bytes() == (unbroken / name).read_bytes(), (name, kills)
    for name in ("checkpoint/model.safetensors", *(f"{stage}.state.safetensors" for stage in SHORT_STEPS)):
        ours, theirs = (load_file(out / name) for out in (broken, unbroken))
        assert ours.keys() == theirs.keys() and len(ours) > 10
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), (name, kills)
    listed = [sorted((out / "broken_videos.txt").read_text().splitlines()) for out in (unbroken, broken)]
    assert listed[0] == listed[1] and len(listed[0]) == 2


@pytest.mark.timeout(1200)  # starts three processes, slow on a busy machine
def test_two_processes_train_like_one(backbones: Path, tmp_path: Path) -> None:
    """Rows, replacements and the cache are shared: the batches are those of one process."""
    data = DataConfig(train=(str(backbones / "data" / "manifest.jsonl"),))
    fit_manifest(backbones, tmp_path / "one", data, **SHORT)
    command = [sys.executable, "-m", "support.manifest_fit", str(backbones), str(tmp_path / "two"), "2"]
    done = subprocess.run(command, cwd=TESTS, env=ONE_THREAD, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    for stage in SHORT_STEPS:
        ours, theirs = losses(tmp_path / "two", stage), losses(tmp_path / "one", stage)
        assert ours == pytest.approx(theirs, rel=1e-3) and len(ours) == SHORT_STEPS[stage]


@pytest.mark.parametrize("method", ["coop", "vificlip"])
def test_baselines_train_on_a_manifest(backbones: Path, tmp_path: Path, method: Method) -> None:
    data = DataConfig(train=(str(backbones / "data" / "manifest.jsonl"),))
    folder = fit_manifest(backbones, tmp_path, data, method=method, **{**SHORT, "num_joint_steps": 3})
    assert len(losses(tmp_path, method)) == 3
    assert load_classifier(str(folder), device="cpu").encode_labels(["red"]).shape == (1, 24)


def test_validation_without_positives_is_refused_before_the_first_step(backbones: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    entries = write_clips(folder, 4)
    for positives, num in (((), 0), (("red",), 4)):
        write_manifest(
            folder / "m.jsonl", [Entry(entry.video, positives, ("blue", "green", "large")) for entry in entries]
        )
        data = DataConfig(train=(str(backbones / "data" / "manifest.jsonl"),), validation=(str(folder / "m.jsonl"),))
        with pytest.raises(ValueError, match=f"4 validation videos have {num} known positive labels .* at least 10"):
            fit_manifest(backbones, tmp_path / "run", data, **SHORT)
    assert not read_log(tmp_path / "run") and not list(tmp_path.rglob("*.npy"))


def test_unknown_pairs_have_exactly_zero_gradient(
    backbones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two manifests with different vocabularies and verified negatives: in the joint stage of a run, the gradient of
    the loss by the logits is zero for every unknown pair, and not for the others.
    """
    folder = tmp_path / "data"
    videos = write_clips(folder, 12)
    colours = [Entry(e.video, tuple(n for n in e.positives if n in COLOURS), closed=True) for e in videos[:6]]
    others = [
        Entry(e.video, tuple(n for n in e.positives if n not in COLOURS), ("framed",))
        for e in videos[6:]
        if "framed" not in e.positives
    ]
    write_manifest(folder / "colours.jsonl", colours)
    write_manifest(folder / "others.jsonl", others)
    seen: list[tuple[Tensor, Tensor]] = []
    original_logits, original_draw = OpenVocabularyNetwork.logits, JointTask.micro_batch_loss

    def logits(self: OpenVocabularyNetwork, videos: Tensor, labels: Tensor) -> Tensor:
        out = original_logits(self, videos, labels)
        if out.requires_grad and self.video.training:
            out.retain_grad()
            kept.append(out)
        return out

    kept: list[Tensor] = []

    def micro_batch_loss(self: JointTask, step: int, micro_batch: Any) -> Any:
        if kept:
            check()
        result = original_draw(self, step, micro_batch)
        targets = self.source.draw(step, WHOLE_BATCH).targets
        seen.append((kept[-1], targets))
        return result

    def check() -> None:
        found, targets = seen[-1]
        targets = targets[:, (targets != -1).any(dim=0)]  # the labels of the step
        assert found.grad is not None and found.shape == targets.shape
        unknown = targets == -1
        assert found.grad[unknown].eq(0).all() and found.grad[~unknown].ne(0).all()
        counts.append((int(unknown.sum()), int((targets == 0).sum()), int((targets == 1).sum())))

    counts: list[tuple[int, int, int]] = []
    monkeypatch.setattr(OpenVocabularyNetwork, "logits", logits)
    monkeypatch.setattr(JointTask, "micro_batch_loss", micro_batch_loss)
    data = DataConfig(
        train=(str(folder / "colours.jsonl"), f"{folder / 'others.jsonl'}:2"),
        validation=(str(backbones / "data" / "manifest.jsonl"),), num_cached_views=1,
    )  # fmt: skip
    fit_manifest(backbones, tmp_path / "run", data, **SHORT)
    assert len(counts) == SHORT_STEPS["joint"] - 1
    assert all(min(count) > 0 for count in counts), counts
