"""``vidlex eval suite``: our method, the baselines and the ablations, on the five columns of the procedural world.

Every row is trained by the same loop on the same pool of videos, evaluated on the same test videos and labels, and
stored as a JSON file in ``out/rows``. A resumed command trains the missing rows, and several processes with the same
command share the rows. Rows that are trained in full leave servable checkpoints in ``out/checkpoints``. When no row is
missing, the report is written.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from vidlex.model.emoji.assets import SpriteSheet
from vidlex.model.files import replace_atomically
from vidlex.model.suite.config import SuiteConfig
from vidlex.model.suite.context import SuiteContext
from vidlex.model.suite.probes import one_frame_probe
from vidlex.model.suite.report import write_report
from vidlex.model.suite.row import Row, row_file
from vidlex.model.suite.rows import BASELINES, ablations, longer_runs, train_baseline, train_ours, without_llm
from vidlex.model.suite.settled_rows import SETTLED, base_row, settled_rows, train_settled
from vidlex.model.train.loop.loop import console
from vidlex.model.train.loop.run_log import session_record

Train = Callable[[SuiteContext, Row], dict[str, Any]]


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
    """Train and evaluate the missing rows, then write ``report`` (default: ``out/report``).

    ``report_only`` writes the report of the existing rows without training. ``clip_name`` is an open_clip model
    (``local-dir:<folder>`` or ``NAME/PRETRAINED``). ``sheet`` replaces the downloaded sprites.
    """
    started = time.monotonic()
    context = SuiteContext(config, clip_name=clip_name, out=out, art_cache=art_cache, sheet=sheet)
    if not report_only:
        for waits in (False, True):  # first the rows that no process is training, then those of other processes
            for row in _planned_rows(context):
                _ensure_row(context, row, _train, waits=waits)
    facts = {
        "command": command,
        "clip": Path(clip_name).name,
        "settings": asdict(config),
        "minutes": round((time.monotonic() - started) / 60, 1),
        "unseen": context.protocol.unseen_texts(),
        "num_training_texts": len(context.protocol.training_texts(config.num_more_pairs if config.held else 0)),
        "num_more_pairs": len(context.protocol.more_pairs(config.num_more_pairs)),
        "one_frame": one_frame_probe(context),
    }
    folder = report or out / "report"
    write_report(out / "rows", facts, folder)
    console.print(f"wrote {folder}")
    return folder


def _planned_rows(context: SuiteContext) -> list[Row]:
    # The main table is first.
    config = context.config
    skipped = {name.strip() for name in config.skipped.split(",")}
    baselines = [name for name in BASELINES if name not in skipped]
    rows = [Row("ours", 0), *(Row(name, 0) for name in baselines)]
    rows += [Row("ours", seed) for seed in range(1, config.num_seeds)]
    rows += [Row(name, seed) for seed in range(1, config.num_seeds) for name in baselines if BASELINES[name].is_trained]
    rows += settled_rows(config, rows)
    bare = without_llm(config) if config.with_ablations else []
    rows += [*bare, *longer_runs(config), *(ablations(config, context.tower_depth) if config.with_ablations else ())]
    return rows + settled_rows(config, bare)


def _train(context: SuiteContext, row: Row) -> dict[str, Any]:
    if row.method == SETTLED:
        return train_settled(context, row)
    return (train_ours if row.method == "ours" else train_baseline)(context, row)


def _ensure_row(context: SuiteContext, row: Row, train: Train, *, waits: bool) -> None:
    """Without ``waits``, skips a row that another process is training or whose base row is missing."""
    path = row_file(context.out, row)
    if row.method == SETTLED and not waits and not row_file(context.out, base_row(row)).exists():
        return
    locks = context.out / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(locks / row.key, blocking=waits):  # the system releases it when the process dies
            if not path.exists():
                _train_row(context, path, row, train)
    except Timeout:
        return


def _train_row(context: SuiteContext, path: Path, row: Row, train: Train) -> None:
    started = time.monotonic()
    console.print(f"row {row.key}")
    trained = train(context, row)
    minutes = round((time.monotonic() - started) / 60, 2)
    result = {**asdict(row), **trained, "minutes": minutes, "session": session_record()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_atomically(path) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
