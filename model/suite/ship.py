"""``vidlex train ship``: copy a trained checkpoint to the zoo, with metrics, a model card and sample videos."""

from __future__ import annotations

import json
import platform
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from vidlex.model.checkpoint import copy_checkpoint, load_checkpoint
from vidlex.model.data.manifest import read_manifest
from vidlex.model.emoji.build import build
from vidlex.model.eval.evaluate import report, score
from vidlex.model.factory import load_classifier
from vidlex.model.specs import zoo_dir
from vidlex.model.train.loop.run_log import describe_machine

MAX_ZOO_BYTES = 40 << 20
NUM_HELD_OUT = 20
NUM_SAMPLES = 4


def main(
    *,
    checkpoint: Path = Path("runs/fit/checkpoint"),
    art_cache: Path,
    name: str = "emoji-small",
    num_test_videos: int = 400,
) -> Path:
    """Evaluate ``checkpoint`` on held-out mp4 files, and copy it to the zoo as ``name``.

    The test sets are 20 videos with 3 to 16 labels each, and ``num_test_videos`` videos with any number of labels; the
    vocabulary is all trained labels. The card describes the training as the run's ``run.json`` records it.
    Raises ValueError if the checkpoint is too large for the repository.
    """
    size = (checkpoint / "model.safetensors").stat().st_size
    if size > MAX_ZOO_BYTES:
        raise ValueError(f"the weights have {size} bytes; the zoo takes at most {MAX_ZOO_BYTES}")
    out = zoo_dir() / name
    out.mkdir(parents=True, exist_ok=True)
    copy_checkpoint(checkpoint, out, id=name)
    work = checkpoint.parent / "test"
    classifier = load_classifier(str(out), device="cpu")
    config, _, _ = load_checkpoint(out)
    small = build(
        work / "held_out", art_cache, num_videos=NUM_HELD_OUT, split="test", seed=0, min_labels=3, max_labels=16
    )
    large = build(work / "large", art_cache, num_videos=num_test_videos, split="test", seed=1)
    kinds = json.loads((large.parent / "labels.json").read_text(encoding="utf-8"))
    metrics: dict[str, Any] = {
        "command": f"vidlex train ship --checkpoint {checkpoint} --name {name} --num-test-videos {num_test_videos}",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.system()} {platform.machine()}, torch {torch.__version__}",
        "held_out_20": report(classifier, score(classifier, small, config.trained_labels), kinds),
        "test": report(classifier, score(classifier, large, config.trained_labels), kinds),
    }
    (out / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
    _write_samples(small, out / "samples")
    shutil.copyfile(small.parent / "ART.json", out / "samples" / "ART.json")
    card = _card(name, size, metrics, kinds, training_of_card(checkpoint))
    (out / "CARD.md").write_text(card, encoding="utf-8")
    return out


def training_of_card(checkpoint: Path) -> str:
    """From the ``run.json`` of a run of ``vidlex train fit``, or of a row of the suite."""
    checkpoint = checkpoint.resolve()
    runs = (checkpoint.parent, checkpoint.parents[1] / "runs" / checkpoint.name)
    files = [run / "run.json" for run in runs if (run / "run.json").is_file()]
    if not files:
        return "not recorded"
    run = json.loads(files[0].read_text(encoding="utf-8"))
    stages = "; ".join(f"{name} {stage['num_steps']} steps" for name, stage in run["stages"].items())
    sessions = run["sessions"]
    machines = "; ".join(dict.fromkeys(describe_machine(session) for session in sessions))
    return f"`{sessions[-1]['command']}`, seed {run['seed']}, from {sessions[0]['started']}, on {machines}: {stages}"


def _write_samples(manifest: Path, folder: Path) -> None:
    # The first videos of the held-out set, not selected by score.
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir()
    truth = {}
    for entry in list(read_manifest(manifest))[:NUM_SAMPLES]:
        file = Path(entry.video).name
        shutil.copyfile(manifest.parent / entry.video, folder / file)
        truth[file] = list(entry.positives)
    (folder / "samples.json").write_text(json.dumps(truth, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _card(name: str, size: int, metrics: dict[str, Any], kinds: dict[str, str], training: str) -> str:
    by_kind: dict[str, list[str]] = {}
    for label, kind in kinds.items():
        by_kind.setdefault(kind, []).append(label)
    rows = []
    for title, key in (("20 held-out videos, 3 to 16 true labels each", "held_out_20"), ("test videos", "test")):
        figures = metrics[key]
        rows.append(
            f"| {title} ({figures['num_videos']} videos, {figures['num_labels']} labels) | all | "
            f"{figures['micro_aupr']:.3f} | {figures['chance']:.4f} | {figures['micro_peak_f1']:.3f} | "
            f"{figures['macro_aupr']:.3f} |"
        )
        for kind, part in figures["by_kind"].items():
            rows.append(
                f"| | {kind} | {part['micro_aupr']:.3f} | {part['chance']:.4f} | {part['micro_peak_f1']:.3f} | "
                f"{part['macro_aupr']:.3f} |"
            )
    test = metrics["test"]
    words = "\n".join(f"- **{kind}** ({len(names)}): {', '.join(names)}" for kind, names in by_kind.items())
    return f"""# {name}

A small checkpoint that demonstrates the complete method of Vidlex without downloading CLIP weights. It is trained on
**procedural emoji videos only**: cartoons of the objects below, moving over painted scenes. It cannot tag camera
footage; for that, serve a real backbone (see the README).

- Weights: {size / 1e6:.1f} MB (float16 safetensors): a small open_clip ViT (frozen after pretraining), three temporal
  branch blocks, two learned prefixes and the prompting transformer. The LLM, SmolLM2-135M-Instruct (Apache-2.0), is
  referenced, not included.
- Data: rendered from Noto Emoji (Google, Apache-2.0) and Twemoji (Twitter, Inc and other contributors, CC-BY-4.0), as
  packaged in emoji-datasource 16.0.0. Backgrounds and motions are generated by this repository. The sample videos
  contain that art under its licences (`samples/ART.json`).
- Training: {training}
- Licence of the weights: Apache-2.0.

## Measured

`{metrics["command"]}` on {metrics["date"]}, {metrics["machine"]}; all metrics are in `metrics.json`. The videos are
mp4 files that are not in the training data (separate seeds and backgrounds), in the two art styles of training. Every
video is scored against all {test["num_labels"]} trained labels. Chance is the prevalence.

| set | labels | micro AUPR | chance | micro Peak F1 | macro AUPR |
| --- | --- | --- | --- | --- | --- |
{chr(10).join(rows)}

F1 at the shipped threshold of {test["default_threshold"]}: {test["f1_at_default_threshold"]:.3f}. Expected calibration
error: {test["expected_calibration_error"]:.4f}.

## Labels and limits

{words}

Scenes are recognised nearly always, hypernyms and nouns mostly, and actions, keywords and pairs less reliably (see the
table; `suite/SUITE.md` has the metrics of labels that are not in the training data). Any other label can be registered
and gets a score, but only rewordings of the labels above are likely to work. Objects smaller than a fifth of the
picture are rarely recognised, and no training video has more than two objects.
"""
