"""`vidlex feedback`: judgements of labels, and thresholds that are fitted to them."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from vidlex.service.commands.connection import DEFAULT_URL, UrlOption, connected
from vidlex.service.commands.output import (
    EXIT_USAGE,
    CommandError,
    JsonFlag,
    print_json,
    print_text,
    stdout,
    use_json,
)

if TYPE_CHECKING:
    from vidlex.service.schemas.feedback import FitView, QualityView, RateView, ThresholdVersionView

app = typer.Typer(no_args_is_help=True, help="Judge labels of videos, and fit labels' thresholds to the judgements.")

LabelReference = Annotated[str, typer.Argument(metavar="LABEL", help="Id, name or alias of the label.")]
TargetPrecision = Annotated[
    float | None,
    typer.Option(min=0.01, max=0.999, help="Precision to reach. Default: the fewest expected errors."),
]
_BATCH = 1000


@app.command("add")
def add(
    label: Annotated[str | None, typer.Argument(help="Id, name or alias of the label.")] = None,
    *,
    url: UrlOption = DEFAULT_URL,
    right: Annotated[
        bool | None, typer.Option("--right/--wrong", help="Whether the label applies.", show_default=False)
    ] = None,
    video: Annotated[str | None, typer.Option(help="Id of a kept video, or the SHA-256 of any.")] = None,
    start_ms: Annotated[int | None, typer.Option(min=0, help="Start of the judged segment.")] = None,
    end_ms: Annotated[int | None, typer.Option(min=0, help="Its end.")] = None,
    score: Annotated[
        float | None, typer.Option(min=0, max=1, help="The judged score, of a video that is not kept.")
    ] = None,
    fingerprint: Annotated[str | None, typer.Option(help="Model of the score.")] = None,
    calibration: Annotated[str | None, typer.Option(help="Calibration of the score, if it has one.")] = None,
    note: Annotated[str, typer.Option(help="A remark for people.")] = "",
    source: Annotated[str, typer.Option(help="Where it comes from.")] = "",
    file: Annotated[
        Path | None,
        typer.Option("--file", help="A JSONL file with a judgement in each line, as POST /feedback takes it."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Store a judgement, or those of a file."""
    use_json(as_json)
    if file is not None:
        if label is not None or video is not None or right is not None:
            raise CommandError("give a judgement or --file", exit_code=EXIT_USAGE)
        judgements = _read(file)
    else:
        if label is None or video is None or right is None:
            raise CommandError("give LABEL, --video and --right or --wrong, or --file", exit_code=EXIT_USAGE)
        given = {
            "label_id" if label.startswith("lbl_") else "label": label,
            "video_id" if video.startswith("vid_") else "sha256": video,
            "right": right,
            "start_ms": start_ms,
            "end_ms": end_ms,
            "score": score,
            "fingerprint": fingerprint,
            "calibration": calibration,
            "note": note,
            "source": source,
        }
        judgements = [{name: value for name, value in given.items() if value not in (None, "")}]
    with connected(url) as client:
        for start in range(0, len(judgements), _BATCH):
            stored = client.feedback.add(judgements[start : start + _BATCH])
            if as_json:
                print_json(stored.model_dump(mode="json"))
                continue
            for judged in stored.labels:
                print_text(
                    f"{escape(judged.label)}: {judged.num_judgements} judgements, "
                    f"fitted from {judged.min_judgements} usable ones on"
                )
            for version in stored.applied:
                print_text(_change(version))


@app.command("list")
def list_judgements(
    label: Annotated[
        str | None, typer.Argument(help="Id, name or alias of a label. Default: the judged labels.")
    ] = None,
    *,
    url: UrlOption = DEFAULT_URL,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of lines.")] = 100,
    as_json: JsonFlag = False,
) -> None:
    """List the judgements of a label, newest first, or the labels that have some. With --json one line each."""
    use_json(as_json)
    with connected(url) as client:
        if label is None:
            table = Table("label", "id", "judgements")
            for _, judged in zip(range(limit), client.feedback.labels(page_size=min(limit, 1000)), strict=False):
                if as_json:
                    print_json(judged.model_dump(mode="json"))
                else:
                    table.add_row(escape(judged.label), judged.label_id, str(judged.num_judgements))
        else:
            table = Table("id", "video", "segment", "judged", "score", "note")
            found = client.feedback.list(client.find_label(label).id, page_size=min(limit, 1000))
            for _, item in zip(range(limit), found, strict=False):
                if as_json:
                    print_json(item.model_dump(mode="json"))
                    continue
                segment = "" if item.start_ms is None else f"{item.start_ms}-{item.end_ms} ms"
                table.add_row(
                    item.id,
                    item.video_id or item.sha256[:16],
                    segment,
                    "right" if item.right else "wrong",
                    "" if item.score is None else f"{item.score:.3f}",
                    escape(item.note),
                )
    if not as_json:
        stdout().print(table)


@app.command("remove")
def remove(
    judgement_ids: Annotated[list[str], typer.Argument(metavar="JUDGEMENT...", help="Ids of judgements.")],
    url: UrlOption = DEFAULT_URL,
    as_json: JsonFlag = False,
) -> None:
    """Remove judgements. Thresholds that were fitted with them stay."""
    use_json(as_json)
    with connected(url) as client:
        for judgement_id in judgement_ids:
            client.feedback.remove(judgement_id)
    if as_json:
        print_json({"removed": judgement_ids})


@app.command("fit")
def fit(
    label: LabelReference,
    *,
    url: UrlOption = DEFAULT_URL,
    target_precision: TargetPrecision = None,
    apply: Annotated[bool, typer.Option("--apply", help="Make the fitted threshold that of the label.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Show the threshold that the judgements propose, with precision and recall before and after."""
    use_json(as_json)
    with connected(url) as client:
        label_id = client.find_label(label).id
        found = client.feedback.fit(label_id, target_precision=target_precision)
        version = None
        if apply:
            version = client.feedback.apply(label_id, proposal=found.proposal, target_precision=target_precision)
    if as_json:
        print_json((found if version is None else version).model_dump(mode="json"))
        return
    _show(found)
    if version is not None:
        print_text(_change(version))


@app.command("revert")
def revert(label: LabelReference, url: UrlOption = DEFAULT_URL, as_json: JsonFlag = False) -> None:
    """Restore the threshold from before the newest applied fit; repeated, go back further."""
    use_json(as_json)
    with connected(url) as client:
        version = client.feedback.revert(client.find_label(label).id)
    if as_json:
        print_json(version.model_dump(mode="json"))
    else:
        print_text(_change(version))


@app.command("versions")
def versions(label: LabelReference, url: UrlOption = DEFAULT_URL, as_json: JsonFlag = False) -> None:
    """List what feedback has changed of a label's threshold, newest first. With --json one line each."""
    use_json(as_json)
    table = Table("at", "kind", "before", "threshold", "judgements", "model", "by")
    with connected(url) as client:
        for version in client.feedback.versions(client.find_label(label).id):
            if as_json:
                print_json(version.model_dump(mode="json"))
                continue
            at = datetime.fromtimestamp(version.created_at_ms / 1000).isoformat(" ", "seconds")
            number = "" if version.fit is None else str(version.fit.num_judgements)
            before, now = _threshold(version.threshold_before), _threshold(version.threshold)
            table.add_row(at, version.kind, before, now, number, version.fingerprint, escape(version.client))
    if not as_json:
        stdout().print(table)


def _read(path: Path) -> list[dict[str, Any]]:
    judgements: list[dict[str, Any]] = []
    try:
        with path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    item = json.loads(line)
                    if not isinstance(item, dict):
                        raise CommandError(f"{path}:{number}: no JSON object")
                    judgements.append(item)
    except (OSError, ValueError) as error:
        raise CommandError(f"{path}: {error}") from error
    if not judgements:
        raise CommandError(f"{path}: no judgements")
    return judgements


def _show(found: FitView) -> None:
    number = f"{found.num_right} right, {found.num_wrong} wrong of {found.num_judgements} judgements"
    print_text(f"{escape(found.label)}: {found.status}; {number}, fitted from {found.min_judgements} usable ones on")
    if found.threshold is not None:
        interval = "" if found.low is None else f" ({found.low:.3f} to {found.high:.3f})"
        print_text(f"threshold {found.threshold_before:.3f} -> {found.threshold:.3f}{interval}")
    table = Table("on the judged videos", "threshold", "precision", "recall")
    rows = (("now", found.before), ("fitted", found.after), ("fitted, on other videos", found.cross_validated))
    for name, quality in rows:
        if quality is not None:
            table.add_row(name, *_cells(quality))
    if table.row_count:
        stdout().print(table)
    for warning in found.warnings:
        print_text(escape(warning.detail))


def _cells(quality: QualityView) -> tuple[str, str, str]:
    threshold = "" if quality.threshold is None else f"{quality.threshold:.3f}"
    return threshold, _rate(quality.precision), _rate(quality.recall)


def _rate(rate: RateView) -> str:
    return "" if rate.value is None else f"{rate.value:.2f} ({rate.low:.2f} to {rate.high:.2f})"


def _change(version: ThresholdVersionView) -> str:
    name = escape(version.label)
    return f"{name}: threshold {_threshold(version.threshold_before)} -> {_threshold(version.threshold)}"


def _threshold(value: float | None) -> str:
    return "of the model" if value is None else f"{value:.3f}"
