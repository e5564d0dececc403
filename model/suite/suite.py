"""``vidlex eval suite``: our method, what the paper compares with and its ablations, on the five columns of the world.

Every row is trained by the same loop on the same pool of videos, judged on the same held-out videos and labels, and
kept as one JSON file under ``out/rows``: a run that was stopped goes on with the rows that are missing, and the same
command started several times shares them (one process hardly fills a GPU). The prefixes are learned once, before the
rows, on CLIP's frame means (stage *prefix*); all rows of ours read them. Then the report is written: Markdown, curves
and diagrams. What rows of ours learned that are trained in full can be served: ``out/checkpoints``; their labels may
settle after that (``num_settling_steps``).
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from vidlex.model.emoji.assets import SpriteSheet
from vidlex.model.suite.bench import Bench, Row, SuiteConfig, figures_of
from vidlex.model.suite.report import write_report
from vidlex.model.suite.rows import METHODS, ablations, longer, train_baseline, train_ours, without_llm
from vidlex.model.suite.settling import SETTLED, settle, settled, starts_from
from vidlex.model.train.loop import console


def main(
    config: SuiteConfig,
    *,
    clip_name: str,
    out: Path,
    art_cache: Path,
    report: Path | None = None,
    command: str = "",
    report_only: bool = False,
    sheet: SpriteSheet | None = None,
) -> Path:
    """Train and judge every row that is not there yet, then write ``report`` (default: ``out/report``).

    ``report_only`` trains nothing: the report tells of the rows that are there.
    """
    started = time.monotonic()
    bench = Bench(config, clip_name=clip_name, out=out, art_cache=art_cache, sheet=sheet)
    if not report_only:
        for waits in (False, True):  # first what nobody works at, then what others have not finished
            for row, train in _plan(bench):
                _finish(bench, row, train, waits=waits)
    facts = {
        "command": command,
        "clip": Path(clip_name).name,
        "settings": asdict(config),
        "machine": f"{platform.system()} {platform.machine()}, {config.device}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "minutes": round((time.monotonic() - started) / 60, 1),
        "unseen": bench.protocol.unseen_texts(),
        "num_training_texts": len(bench.protocol.training_texts(config.num_more_pairs if config.held else 0)),
        "num_more_pairs": len(bench.protocol.more_pairs(config.num_more_pairs)),
        "one_frame": bench.one_frame_probe(),
    }
    folder = report or out / "report"
    write_report(out / "rows", facts, folder)
    console.print(f"wrote {folder}")
    return folder


def _plan(bench: Bench) -> list[tuple[Row, Callable[[Row], dict[str, Any]]]]:
    """All rows, the most important first: a run that is cut short has the main table."""
    config = bench.config
    skipped = {name.strip() for name in config.skipped.split(",")}
    compared = [name for name in METHODS if name not in skipped]
    first = [Row("ours", 0), *(Row(name, 0) for name in compared)]
    more = [Row("ours", seed) for seed in range(1, config.num_seeds)]
    more += [Row(name, seed) for seed in range(1, config.num_seeds) for name in compared if METHODS[name].is_trained]
    rows: list[tuple[Row, Callable[[Row], dict[str, Any]]]] = [
        (row, (lambda row: train_ours(bench, row)) if row.method == "ours" else lambda row: train_baseline(bench, row))
        for row in (*first, *more)
    ]
    rows += [(row, lambda row: settle(bench, row)) for row in settled(config, [row for row, _ in rows])]
    bare = without_llm(config) if config.with_ablations else []
    others = [*bare, *longer(config), *(ablations(config, bench.tower_depth) if config.with_ablations else ())]
    rows += [(row, lambda row: train_ours(bench, row)) for row in others]
    return rows + [(row, lambda row: settle(bench, row)) for row in settled(config, bare)]


def _finish(bench: Bench, row: Row, train: Callable[[Row], dict[str, Any]], *, waits: bool) -> None:
    path = figures_of(bench.out, row)
    if row.method == SETTLED and not waits and not figures_of(bench.out, starts_from(row)).exists():
        return
    locks = bench.out / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(locks / row.key, blocking=waits):  # the system lets go of it when a process dies
            if not path.exists():
                _train_and_judge(path, row, train)
    except Timeout:
        return


def _train_and_judge(path: Path, row: Row, train: Callable[[Row], dict[str, Any]]) -> None:
    began = time.monotonic()
    console.print(f"row {row.key}")
    result = {**asdict(row), **train(row), "minutes": round((time.monotonic() - began) / 60, 2)}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
