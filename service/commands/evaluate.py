"""`vidlex eval MANIFEST`: how well a model tags labelled videos, decoded and scored as the service does it."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from vidlex.service.commands.options import is_for_people
from vidlex.service.commands.output import CommandError, JsonFlag, print_json, progress, stdout, use_json
from vidlex.service.commands.serve import settings_or_error


def evaluate(
    manifest: Annotated[Path, typer.Argument(help="A manifest.jsonl, such as `vidlex data build emoji` writes.")],
    *,
    model: Annotated[str | None, typer.Option(help="What `vidlex serve --model` takes (VIDLEX_MODEL).")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1 ... (VIDLEX_DEVICE, auto).")] = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="JSON: a list of names, or names and their kinds. Default: labels.json beside the manifest."),
    ] = None,
    num_frames: Annotated[int | None, typer.Option(min=1, help="Frames per video; default: the model's own.")] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the figures to this JSON file.")] = None,
    tables: Annotated[
        Path | None, typer.Option(help="Also write labels.csv, reliability.png and curves.png into this folder.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Measure a model on labelled videos: AUPR, peak F1, calibration; chance stated beside them.

    A dataset built by `vidlex data build` is judged by its own protocol too, and its unlabelled pairs as it says.
    """
    use_json(as_json)
    settings = settings_or_error(model=model, device=device)
    if not manifest.is_file():
        raise CommandError(f"{manifest} is not a file")
    figures = _measure(settings.model, settings.device, manifest, labels, num_frames=num_frames, tables=tables)
    if out is not None:
        try:
            out.write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        except OSError as error:
            raise CommandError(f"{out}: {error.strerror or error}") from None
    if as_json:
        print_json(figures)
    else:
        stdout().print(_table(figures))


def _measure(
    model: str, device: str, manifest: Path, labels: Path | None, *, num_frames: int | None, tables: Path | None
) -> dict[str, Any]:
    from vidlex.model.data.dataset import read_facts, read_labels
    from vidlex.model.eval.evaluate import label_table, official, report, score
    from vidlex.model.factory import list_devices, load_classifier

    try:
        path = labels or manifest.parent / "labels.json"
        texts = read_labels(path) if path.is_file() else {}
        if labels is not None and not texts:
            raise CommandError(f"{labels} is not a file")
        facts = read_facts(manifest.parent)
        kinds = {name: text.kind for name, text in texts.items() if text.kind is not None}
        with progress("loading the model", total=None) as bar:
            classifier = load_classifier(model, device=list_devices(device)[0])
            bar.update(bar.task_ids[0], description="encoding the labels")
            scores = score(
                classifier,
                manifest,
                list(texts) or None,
                prompts={name: text.prompt for name, text in texts.items()},
                unlabelled=facts.unlabelled,
                num_frames=num_frames,
                progress=lambda done, total: bar.update(
                    bar.task_ids[0], description="scoring", completed=done, total=total
                ),
            )
            figures = report(classifier, scores, kinds or None)
            if facts.protocol is not None:
                figures[f"official_{facts.protocol}"] = official(classifier, scores, manifest.parent, facts.protocol)
        if tables is not None:
            tables.mkdir(parents=True, exist_ok=True)
            _write_csv(tables / "labels.csv", label_table(classifier, scores, kinds))
            _write_plots(tables, classifier.scorer.logit(scores.similarities), scores, figures)
    except Exception as error:
        if isinstance(error, CommandError) or not is_for_people(error):
            raise
        raise CommandError(str(error)) from error
    return figures


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _write_plots(folder: Path, logits: Any, scores: Any, figures: dict[str, Any]) -> None:
    from vidlex.model.eval.plots import plot_precision_recall, plot_reliability

    plot_reliability(figures["reliability"], folder / "reliability.png", figures["model"])
    known = scores.known
    plot_precision_recall({figures["model"]: (logits[known], scores.targets[known])}, folder / "curves.png")


def _table(figures: dict[str, Any]) -> Table:
    table = Table("figure", "value")
    for key, value in figures.items():
        if key == "reliability":
            continue  # a diagram, not a figure: --json and --tables have it
        if isinstance(value, dict):
            for kind, inner in value.items():
                if not isinstance(inner, dict):
                    table.add_row(escape(f"{key}: {kind}"), escape(_number(inner)))
                    continue
                text = ", ".join(f"{name} {_number(number)}" for name, number in inner.items())
                table.add_row(escape(f"{key}: {kind}"), escape(text))
        else:
            table.add_row(escape(key), escape(_number(value)))
    return table


def _number(value: Any) -> str:
    if isinstance(value, tuple):
        return " to ".join(_number(part) for part in value)
    return f"{value:.4f}" if isinstance(value, float) else str(value)
