"""`vidlex export`: results of `vidlex tag` and `vidlex classify` in the formats of other programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TextIO

import typer
from rich.markup import escape

from vidlex.service.commands.output import EXIT_USAGE, CommandError, JsonFlag, print_json, print_text, use_json

if TYPE_CHECKING:
    from vidlex.service.exports.tagged import TaggedVideo

ExportFormat = Literal["label-studio", "label-studio-config", "fiftyone", "csv", "webvtt"]

_STANDARD = Path("-")
_PARQUET_ROWS = 1000


def export(
    kind: Annotated[
        ExportFormat,
        typer.Argument(
            metavar="FORMAT",
            help="label-studio: tasks with predictions; label-studio-config: the labelling interface of their project; "
            "fiftyone: a folder for FiftyOneTemporalDetectionDataset; csv: a row per stretch; webvtt: subtitles of one "
            "video.",
        ),
    ],
    results: Annotated[
        Path,
        typer.Argument(
            help="A .jsonl or .parquet file of `vidlex tag`, or the JSON of `vidlex classify --json`; -: stdin."
        ),
    ],
    *,
    out: Annotated[Path, typer.Option("--out", help="File, or folder of fiftyone; -: stdout.")] = _STANDARD,
    uri: Annotated[
        str | None, typer.Option("--uri", help="Name of the video of an answer of the service, which has none.")
    ] = None,
    prefix: Annotated[
        str | None,
        typer.Option("--url-prefix", help="label-studio: where it plays the videos; the file's name is appended."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Write results in the format of another program."""
    use_json(as_json)
    if kind == "fiftyone" and out == _STANDARD:
        raise CommandError("fiftyone needs --out FOLDER", exit_code=EXIT_USAGE)
    from vidlex.service.exports.tagged import NotAResult

    try:
        with _videos(results, uri) as videos:
            count = _write(kind, list(videos), out, prefix)
    except NotAResult as error:
        raise CommandError(f"{results}: {error}") from None
    except OSError as error:
        raise CommandError(f"{error.filename or results}: {error.strerror}") from None
    if out != _STANDARD:
        if as_json:
            print_json({"videos": count, "path": str(out)})
        else:
            print_text(f"{escape(str(out))}: {count} videos")


def _write(kind: ExportFormat, videos: list[TaggedVideo], out: Path, prefix: str | None) -> int:
    from vidlex.service.exports import fiftyone, label_studio, stretch_rows, webvtt

    if kind == "fiftyone":
        fiftyone.write_dataset(out, videos)
        return len(videos)
    if kind == "webvtt" and len(videos) != 1:
        raise CommandError(f"webvtt is of one video; there are {len(videos)}", exit_code=EXIT_USAGE)
    with _opened(out) as file:
        if kind == "csv":
            stretch_rows.write_rows(file, videos)
        elif kind == "webvtt":
            file.writelines(webvtt.webvtt(videos[0]))
        elif kind == "label-studio":
            json.dump([label_studio.task(video, _url(video, prefix)) for video in videos], file, ensure_ascii=False)
            file.write("\n")
        else:
            file.write(label_studio.labelling_config(label.name for video in videos for label in video.labels))
    return len(videos)


def _url(video: TaggedVideo, prefix: str | None) -> str | None:
    return None if prefix is None else f"{prefix}{video.uri.rpartition('/')[2]}"


@contextmanager
def _videos(path: Path, uri: str | None) -> Iterator[Iterator[TaggedVideo]]:
    from vidlex.service.exports.tagged import read_results

    if path.suffix == ".parquet":
        yield _parquet(path)
    elif path == _STANDARD:
        yield read_results(sys.stdin, uri)
    else:
        with path.open(encoding="utf-8") as file:
            yield read_results(file, uri)


def _parquet(path: Path) -> Iterator[TaggedVideo]:
    from vidlex.service.bulk.formats import read
    from vidlex.service.bulk.rows import rows_of
    from vidlex.service.exports.tagged import NotAResult, from_json

    try:
        for table in read("parquet", path):
            yield from (from_json(row) for row in rows_of(table) if not row["error_code"])
    except ValueError as error:
        raise NotAResult(str(error)) from error


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    if path == _STANDARD:
        yield sys.stdout
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            yield file
