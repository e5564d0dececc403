"""`vidlex calibrate SRC...`: makes the scores of a running service comparable, from unlabelled videos."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from vidlex.model.specs import DEFAULT_MODEL
from vidlex.service.commands.connection import DEFAULT_URL, UrlOption, connected
from vidlex.service.commands.experiments.dataclass_options import is_user_error
from vidlex.service.commands.extras import require
from vidlex.service.commands.output import (
    EXIT_USAGE,
    CommandError,
    JsonFlag,
    print_error,
    print_json,
    print_text,
    progress,
    stdout,
    use_json,
)
from vidlex.service.commands.preflight import require_model, settings_or_error

if TYPE_CHECKING:
    from vidlex.model.calibration.statistics import DomainStatistics
    from vidlex.model.classifier import Classifier
    from vidlex.service.schemas.classify import ModelView


def calibrate(
    sources: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="SRC...",
            help="Folders, files, or lists of files (.txt, or manifest .jsonl): videos, also pictures.",
        ),
    ] = None,
    *,
    url: UrlOption = DEFAULT_URL,
    namespace: Annotated[
        str | None, typer.Option(help="Namespace to calibrate. Default: VIDLEX_NAMESPACE, else the API key's.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help=f"The model that the service serves. Default: VIDLEX_MODEL, else {DEFAULT_MODEL}."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda or cuda:N. Default: VIDLEX_DEVICE, else auto.")
    ] = None,
    num_frames: Annotated[int | None, typer.Option(min=1, help="Frames per video. Default: of the model.")] = None,
    labelled: Annotated[
        Path | None,
        typer.Option(help="A manifest.jsonl of labelled videos, by which the scores become frequencies."),
    ] = None,
    recent: Annotated[
        bool, typer.Option("--recent", help="Use the videos that the service has classified, in place of SRC.")
    ] = False,
    show: Annotated[bool, typer.Option("--show", help="Print the stored calibration.")] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Remove the stored calibration.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would change, and store nothing.")] = False,
    limit: Annotated[int, typer.Option(min=0, max=1000, help="Labels to print, largest change first.")] = 20,
    as_json: JsonFlag = False,
) -> None:
    """Make the scores of all labels comparable on one's own videos, which need no labels: 16 help, hundreds are better.

    Each label's mean similarity over the videos is taken as "nothing to see". The videos are decoded and encoded here;
    only their mean and covariance are sent. The calibration applies to the model and the namespace until it is removed.
    """
    use_json(as_json)
    if sum((bool(sources), recent, show, remove)) != 1:
        raise CommandError("give videos, --recent, --show or --remove", exit_code=EXIT_USAGE)
    if labelled is not None and not sources:
        raise CommandError("--labelled needs SRC", exit_code=EXIT_USAGE)
    with connected(url, namespace=namespace) as client:
        if remove:
            client.delete_calibration()
            view = client.calibration(limit=0)
        elif show:
            view = client.calibration(limit=limit)
        else:
            if sources:
                served = client.calibration(limit=0).model
                body = _statistics(sources, labelled, served, model=model, device=device, num_frames=num_frames)
            else:
                body = {"source": "recent"}
            body["dry_run"] = dry_run
            view = client.calibrate(body, limit=limit)
    found = view.model_dump(mode="json")
    if as_json:
        print_json(found)
    else:
        _show(found)


def _statistics(
    sources: list[Path],
    labelled: Path | None,
    served: ModelView,
    *,
    model: str | None,
    device: str | None,
    num_frames: int | None,
) -> dict[str, Any]:
    """The body of PUT /calibration."""
    require("torch", *(("scipy",) if labelled is not None else ()))
    settings = settings_or_error(model=model, device=device)
    require_model(settings.model)
    from vidlex.model.calibration.fit import check_num_videos
    from vidlex.model.calibration.statistics import DomainStatistics
    from vidlex.model.eval.encode_files import encode_files, find_files
    from vidlex.model.factory import list_devices, load_classifier

    try:
        files = find_files(sources)
        if not files:
            raise CommandError(f"no videos in {', '.join(map(str, sources))}")
        check_num_videos(len(files))
        with progress("loading the model", total=None) as bar:
            classifier = load_classifier(settings.model, device=list_devices(settings.device)[0])
            if classifier.fingerprint != served.fingerprint:
                raise CommandError(
                    f"the service serves {served.id} ({served.fingerprint}), not {settings.model} "
                    f"({classifier.fingerprint}): name it with --model"
                )
            bar.update(bar.task_ids[0], description="encoding", total=len(files))
            encoded = encode_files(
                classifier, files, num_frames=num_frames, progress=lambda n: bar.update(bar.task_ids[0], completed=n)
            )
        for path, reason in encoded.skipped:
            print_error(CommandError(f"{path}: {reason} (skipped)"))
        if not len(encoded.features):
            raise CommandError("none of the files could be decoded")
        statistics = DomainStatistics.of(encoded.features)
        platt = None if labelled is None else _platt(classifier, statistics, labelled, num_frames)
    except Exception as error:
        if isinstance(error, CommandError) or not is_user_error(error):
            raise
        raise CommandError(str(error)) from error
    return {
        "source": "statistics",
        "statistics": {"model": classifier.fingerprint, **statistics.to_dict()},
        "platt": platt,
    }


def _platt(
    classifier: Classifier, statistics: DomainStatistics, manifest: Path, num_frames: int | None
) -> dict[str, float]:

    from vidlex.model.calibration.bank import BANK
    from vidlex.model.calibration.fit import fit_domain
    from vidlex.model.data.dataset import read_dataset_info, read_labels
    from vidlex.model.eval.calibration import fit_scorer
    from vidlex.model.eval.evaluate import score

    path = manifest.parent / "labels.json"
    texts = read_labels(path) if path.is_file() else {}
    bank = classifier.encode_labels(BANK)
    calibration = fit_domain(statistics, bank, classifier.scorer, classifier.calibration)
    with progress("scoring the labelled videos", total=None) as bar:
        scores = score(
            classifier,
            manifest,
            list(texts) or None,
            prompts={name: text.prompt for name, text in texts.items()},
            unlabelled=read_dataset_info(manifest.parent).unlabelled,
            split="all",
            num_frames=num_frames,
            calibration=calibration,
            progress=lambda done, total: bar.update(bar.task_ids[0], completed=done, total=total),
        )
    known = scores.known
    fitted = fit_scorer(calibration, scores.similarities[known], scores.targets[known], classifier.scorer)
    assert fitted.scorer is not None
    return {"slope": fitted.scorer.calibration.slope, "intercept": fitted.scorer.calibration.intercept}


def _show(found: dict[str, Any]) -> None:
    model = f"{escape(found['model']['id'])} ({found['model']['fingerprint']})"
    if found["fingerprint"] is None:
        print_text(f"no calibration of {model}; {found['num_recent_videos']} recent videos")
        return
    state = "stored" if found["stored"] else "not stored"
    labelled = ", scores fitted to labelled videos" if found["has_platt"] else ""
    print_text(f"calibration {found['fingerprint']} of {model}: {found['num_videos']} videos{labelled}; {state}")
    if not found["labels"]:
        return
    hubs = ["close to every video"] if any(row["hub"] for row in found["labels"]) else []
    table = Table("label", "mean similarity", "videos that match, before", "after", *hubs)
    for row in found["labels"]:
        table.add_row(
            escape(row["name"]),
            f"{row['mean_similarity']:.3f}",
            f"{100 * row['share_before']:.1f} %",
            f"{100 * row['share_after']:.1f} %",
            *(["yes" if row["hub"] else ""] if hubs else []),
        )
    stdout().print(table)
