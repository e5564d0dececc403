from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vidlex.model.train.loop.run_log import read_log

MAX_POINTS = 4000


def plot_stage(out: Path, stage: str) -> Path | None:
    lines = [line for line in read_log(out) if line["stage"] == stage]
    steps = [line for line in lines if "loss" in line]
    evaluations = [line for line in lines if line.get("validation")]
    if not steps:
        return None
    figure = Figure(figsize=(7, 6.5 if evaluations else 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2 if evaluations else 1, 1, squeeze=False)[:, 0]
    x, loss = np.array([line["step"] for line in steps]), np.array([line["loss"] for line in steps])
    shown = np.unique(np.linspace(0, len(x) - 1, MAX_POINTS).astype(int))
    panels[0].plot(x[shown], loss[shown], linewidth=0.6, alpha=0.4, label="each step")
    panels[0].plot(x[shown], _running_mean(loss, max(1, len(loss) // 50))[shown], linewidth=1.4, label="running mean")
    panels[0].set(ylabel="loss", title=stage)
    if loss.min() > 0:
        panels[0].set_yscale("log")
    if evaluations:
        names = sorted({name for line in evaluations for name in line["validation"]})
        for name in names:
            points = [(line["step"], line["validation"][name]) for line in evaluations if name in line["validation"]]
            panels[1].plot(*zip(*points, strict=True), marker=".", label=name)
        panels[1].set(ylabel="validation")
    for panel in panels:
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    panels[-1].set(xlabel="step")
    path = out / "curves" / f"{stage}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path


def _running_mean(values: np.ndarray, window: int) -> np.ndarray:
    total = np.cumsum(np.concatenate(([0.0], values)))
    end = np.arange(1, len(values) + 1)
    start = np.maximum(0, end - window)
    mean: np.ndarray = (total[end] - total[start]) / (end - start)
    return mean
