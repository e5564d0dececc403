"""`vidlex eval MANIFEST`: measures a model on labelled videos, decoded and scored as in the service."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from vidlex.model.specs import DEFAULT_MODEL
from vidlex.service.commands.experiments.dataclass_options import is_user_error
from vidlex.service.commands.extras import require
from vidlex.service.commands.output import CommandError, JsonFlag, print_json, progress, stdout, use_json
from vidlex.service.commands.preflight import require_model, settings_or_error


def evaluate(
    manifest: Annotated[Path, typer.Argument(help="A manifest.jsonl, as written by `vidlex data build`.")],
    *,
    model: Annotated[
        str | None,
        typer.Option(help=f"Model, as for `vidlex serve --model`. Default: VIDLEX_MODEL, else {DEFAULT_MODEL}."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda or cuda:N. Default: VIDLEX_DEVICE, else auto.")
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="JSON file of labels: names, or names with kinds. Default: labels.json in the manifest's folder."
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="Split to measure on, such as test; all: every entry. Needed if the manifest has several."),
    ] = None,
    num_frames: Annotated[int | None, typer.Option(min=1, help="Frames per video. Default: of the model.")] = None,
    calibrate_on: Annotated[
        list[Path] | None,
        typer.Option(help="Calibrate on these unlabelled videos first, as `vidlex calibrate` does; may be repeated."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the metrics to this JSON file.")] = None,
    tables: Annotated[
        Path | None, typer.Option(help="Also write labels.csv, reliability.png and curves.png to this folder.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Measure a model on labelled videos: AUPR, peak F1 and calibration, with the values of chance.

    For a dataset of `vidlex data build`, also report the metrics of its official protocol.
    """
    use_json(as_json)
    require("scipy", "matplotlib")
    settings = settings_or_error(model=model, device=device)
    if not manifest.is_file():
        raise CommandError(f"{manifest} is not a file")
    require_model(settings.model)
    metrics = _measure(
        settings.model, settings.device, manifest, labels, split=split, num_frames=num_frames, tables=tables,
        calibrate_on=calibrate_on or [],
    )  # fmt: skip
    if out is not None:
        try:
            out.write_text(json.dumps(metrics, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        except OSError as error:
            raise CommandError(f"{out}: {error.strerror or error}") from None
    if as_json:
        print_json(metrics)
    else:
        stdout().print(_table(metrics))


def _measure(
    model: str,
    device: str,
    manifest: Path,
    labels: Path | None,
    *,
    split: str | None,
    num_frames: int | None,
    tables: Path | None,
    calibrate_on: list[Path],
) -> dict[str, Any]:
    from vidlex.model.data.dataset import read_dataset_info, read_labels
    from vidlex.model.eval.encode_files import calibrate
    from vidlex.model.eval.evaluate import (
        check_vocabulary,
        label_table,
        protocol_metrics,
        read_entries,
        report,
        score,
    )
    from vidlex.model.factory import list_devices, load_classifier

    try:
        path = labels or manifest.parent / "labels.json"
        texts = read_labels(path) if path.is_file() else {}
        if labels is not None and not texts:
            raise CommandError(f"{labels} is not a file")
        entries = read_entries(manifest, split)  # errors before the model is loaded
        if labels is None and texts:
            check_vocabulary(entries, texts, path)
        info = read_dataset_info(manifest.parent)
        kinds = {name: text.kind for name, text in texts.items() if text.kind is not None}
        with progress("loading the model", total=None) as bar:
            classifier = load_classifier(model, device=list_devices(device)[0])
            calibration = None
            if calibrate_on:
                bar.update(bar.task_ids[0], description="calibrating")
                calibration = calibrate(classifier, calibrate_on, num_frames=num_frames)
            bar.update(bar.task_ids[0], description="encoding the labels")
            scores = score(
                classifier,
                manifest,
                list(texts) or None,
                prompts={name: text.prompt for name, text in texts.items()},
                unlabelled=info.unlabelled,
                split=split,
                num_frames=num_frames,
                calibration=calibration,
                progress=lambda done, total: bar.update(
                    bar.task_ids[0], description="scoring", completed=done, total=total
                ),
            )
            metrics = report(classifier, scores, kinds or None)
            if info.protocol is not None:
                metrics[f"official_{info.protocol}"] = protocol_metrics(scores, manifest.parent, info.protocol)
        if tables is not None:
            tables.mkdir(parents=True, exist_ok=True)
            _write_csv(tables / "labels.csv", label_table(scores, kinds))
            _write_plots(tables, scores.scorer.logit(scores.similarities), scores, metrics)
    except Exception as error:
        if isinstance(error, CommandError) or not is_user_error(error):
            raise
        raise CommandError(str(error)) from error
    return metrics


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _write_plots(folder: Path, logits: Any, scores: Any, metrics: dict[str, Any]) -> None:
    from vidlex.model.eval.plots import plot_precision_recall, plot_reliability

    plot_reliability(metrics["reliability"], folder / "reliability.png", metrics["model"])
    known = scores.known
    plot_precision_recall({metrics["model"]: (logits[known], scores.targets[known])}, folder / "curves.png")


def _table(metrics: dict[str, Any]) -> Table:
    table = Table("metric", "value")
    for key, value in metrics.items():
        if key == "reliability":
            continue  # written by --json and --tables
        if isinstance(value, dict):
            for kind, inner in value.items():
                if not isinstance(inner, dict):
                    table.add_row(escape(f"{key}: {kind}"), escape(_format(inner)))
                    continue
                text = ", ".join(f"{name} {_format(number)}" for name, number in inner.items())
                table.add_row(escape(f"{key}: {kind}"), escape(text))
        else:
            table.add_row(escape(key), escape(_format(value)))
    return table


def _format(value: Any) -> str:
    if isinstance(value, tuple):
        return " to ".join(_format(part) for part in value)
    return f"{value:.4f}" if isinstance(value, float) else str(value)
