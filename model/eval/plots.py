"""Reliability diagrams and precision-recall curves as PNG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from vidlex.model.eval.metrics import area, curve

MAX_POINTS = 2000
"""Points drawn per curve."""


def _axes() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Axes = figure.add_subplot(xlim=(0, 1), ylim=(0, 1))
    return figure, axes


def plot_reliability(rows: Sequence[Mapping[str, float]], path: Path, title: str = "") -> None:
    """``rows`` of ``calibration.reliability``; a bubble's area grows with the logarithm of its number of pairs."""
    figure, axes = _axes()
    axes.plot([0, 1], [0, 1], color="grey", linewidth=1, linestyle="--")
    x, y = [row["probability"] for row in rows], [row["frequency"] for row in rows]
    axes.plot(x, y, linewidth=1)
    axes.scatter(x, y, s=[8 * np.log2(1 + row["num_pairs"]) for row in rows])
    axes.set(xlabel="predicted probability", ylabel="frequency", title=title)
    figure.savefig(path, dpi=120)


def plot_precision_recall(curves: Mapping[str, tuple[ArrayLike, ArrayLike]], path: Path, title: str = "") -> None:
    """One curve per name from its scores and targets, with its micro AUPR."""
    figure, axes = _axes()
    for name, (scores, targets) in curves.items():
        precision, recall, _ = curve(scores, targets)
        keep = np.unique(np.linspace(0, len(recall) - 1, MAX_POINTS).astype(int))
        axes.step(recall[keep], precision[keep], where="pre", label=f"{name}: {area(precision, recall):.3f}")
    axes.set(xlabel="recall", ylabel="precision", title=title)
    axes.legend(loc="upper right", fontsize=8)
    figure.savefig(path, dpi=120)


def plot_points(curves: Mapping[str, Sequence[Sequence[float]]], path: Path, title: str = "") -> None:
    """Precision-recall curves that are points (recall, precision) already."""
    figure, axes = _axes()
    for name, points in curves.items():
        axes.step([x for x, _ in points], [y for _, y in points], where="pre", label=name)
    axes.set(xlabel="recall", ylabel="precision", title=title)
    axes.legend(loc="upper right", fontsize=7)
    figure.savefig(path, dpi=100)
