"""`vidlex feedback import`: corrections from other programs."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vidlex.service.commands.connection import DEFAULT_URL, UrlOption, connected
from vidlex.service.commands.output import CommandError, JsonFlag, print_json, print_text, use_json

if TYPE_CHECKING:
    from vidlex.service.exports.corrections import Correction

CorrectionFormat = Literal["label-studio", "fiftyone", "csv"]


def import_corrections(
    path: Annotated[
        Path,
        typer.Argument(
            help="Annotations that Label Studio exported as JSON, a folder that FiftyOne exported, or a CSV file of "
            "`vidlex export` with a column right."
        ),
    ],
    kind: Annotated[CorrectionFormat, typer.Option("--format", help="What the file is.")],
    *,
    url: UrlOption = DEFAULT_URL,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count; send nothing.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Store what people corrected in results of `vidlex export` as judgements."""
    use_json(as_json)
    from vidlex.service.schemas.feedback import MAX_JUDGEMENTS

    found = _read(path, kind)
    if not dry_run and found:
        with connected(url) as client:
            for start in range(0, len(found), MAX_JUDGEMENTS):
                client.feedback.add([c.judgement(kind) for c in found[start : start + MAX_JUDGEMENTS]])
    counts = Counter(correction.right for correction in found)
    if as_json:
        print_json({"judgements": len(found), "right": counts[True], "wrong": counts[False], "stored": not dry_run})
    else:
        print_text(f"{len(found)} judgements, {counts[True]} right and {counts[False]} wrong")


def _read(path: Path, kind: CorrectionFormat) -> list[Correction]:
    """Raises CommandError."""
    from vidlex.service.exports import fiftyone, label_studio, stretch_rows
    from vidlex.service.exports.corrections import NotCorrections

    try:
        if kind == "fiftyone":
            return list(fiftyone.read_corrections(path))
        with path.open(encoding="utf-8", newline="") as file:
            if kind == "csv":
                return list(stretch_rows.read_corrections(file))
            return list(label_studio.read_corrections(json.load(file)))
    except NotCorrections as error:
        raise CommandError(f"{path}: {error}") from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise CommandError(f"{path}: this is no file of this format: {type(error).__name__}") from None
    except OSError as error:
        raise CommandError(f"{error.filename or path}: {error.strerror}") from None
