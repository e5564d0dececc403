"""Reliability diagrams and precision-recall curves as PNG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from vidlex.model.eval.metrics import precision_recall_curve, step_auc

MAX_POINTS = 2000  # per curve


def _axes() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Axes = figure.add_subplot(xlim=(0, 1), ylim=(0, 1))
    return figure, axes


def plot_reliability(rows: Sequence[Mapping[str, float]], path: Path, title: str = "") -> None:
    figure, axes = _axes()
    axes.plot([0, 1], [0, 1], color="grey", linewidth=1, linestyle="--")
    x, y = [row["probability"] for row in rows], [row["frequency"] for row in rows]
    axes.plot(x, y, linewidth=1)
    axes.scatter(x, y, s=[8 * np.log2(1 + row["num_pairs"]) for row in rows])
    axes.set(xlabel="predicted probability", ylabel="frequency", title=title)
    figure.savefig(path, dpi=120)


def plot_precision_recall(curves: Mapping[str, tuple[ArrayLike, ArrayLike]], path: Path, title: str = "") -> None:
    figure, axes = _axes()
    for name, (scores, targets) in curves.items():
        precision, recall, _ = precision_recall_curve(scores, targets)
        shown = np.unique(np.linspace(0, len(recall) - 1, MAX_POINTS).astype(int))
        axes.step(recall[shown], precision[shown], where="pre", label=f"{name}: {step_auc(precision, recall):.3f}")
    axes.set(xlabel="recall", ylabel="precision", title=title)
    axes.legend(loc="upper right", fontsize=8)
    figure.savefig(path, dpi=120)


def plot_points(curves: Mapping[str, Sequence[Sequence[float]]], path: Path, title: str = "") -> None:
    figure, axes = _axes()
    for name, points in curves.items():  # (recall, precision)
        axes.step([x for x, _ in points], [y for _, y in points], where="pre", label=name)
    axes.set(xlabel="recall", ylabel="precision", title=title)
    axes.legend(loc="upper right", fontsize=7)
    figure.savefig(path, dpi=100)
