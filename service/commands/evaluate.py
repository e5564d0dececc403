"""`vidlex eval MANIFEST`: how well a model tags labelled videos, decoded and scored as the service does it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from service.commands.options import is_for_people
from service.commands.output import CommandError, JsonFlag, print_json, progress, stdout, use_json
from service.commands.serve import settings_or_error


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
    as_json: JsonFlag = False,
) -> None:
    """Measure a model on labelled videos: AUPR, peak F1, calibration; chance stated beside them."""
    use_json(as_json)
    settings = settings_or_error(model=model, device=device)
    if not manifest.is_file():
        raise CommandError(f"{manifest} is not a file")
    names = _names_and_kinds(labels or manifest.parent / "labels.json", required=labels is not None)
    figures = _measure(settings.model, settings.device, manifest, names, num_frames)
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
    model: str, device: str, manifest: Path, names: dict[str, str | None] | None, num_frames: int | None
) -> dict[str, Any]:
    from model.eval.evaluate import report, score
    from model.factory import load_classifier

    try:
        with progress("loading the model", total=None) as bar:
            classifier = load_classifier(model, device=device)
            bar.update(bar.task_ids[0], description="encoding the labels")
            scores = score(
                classifier,
                manifest,
                list(names) if names else None,
                num_frames=num_frames,
                progress=lambda done, total: bar.update(
                    bar.task_ids[0], description="scoring", completed=done, total=total
                ),
            )
    except Exception as error:
        if not is_for_people(error):
            raise
        raise CommandError(str(error)) from error
    kinds = {name: kind for name, kind in (names or {}).items() if kind is not None}
    return report(classifier, scores, kinds or None)


def _names_and_kinds(path: Path, *, required: bool) -> dict[str, str | None] | None:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if required:
            raise CommandError(f"{path} is not a file") from None
        return None
    except ValueError as error:
        raise CommandError(f"{path} is not JSON: {error}") from None
    if isinstance(document, list):
        return {str(name): None for name in document}
    if isinstance(document, dict):
        return {str(name): str(kind) for name, kind in document.items()}
    raise CommandError(f"{path} must hold a list of names, or an object of names and their kinds")


def _table(figures: dict[str, Any]) -> Table:
    table = Table("figure", "value")
    for key, value in figures.items():
        if isinstance(value, dict):
            for kind, inner in value.items():
                text = ", ".join(f"{name} {_number(number)}" for name, number in inner.items())
                table.add_row(escape(f"{key}: {kind}"), escape(text))
        else:
            table.add_row(escape(key), escape(_number(value)))
    return table


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
