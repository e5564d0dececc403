"""`vidlex classify FILE...`: classify video files with a running service."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape
from rich.table import Table

from vidlex.service.client.errors import VidlexClientError
from vidlex.service.commands.connection import DEFAULT_URL, UrlOption, command_error, connected
from vidlex.service.commands.output import (
    EXIT_USAGE,
    CommandError,
    JsonFlag,
    print_error,
    print_json,
    print_text,
    print_warning,
    progress,
    stdout,
    use_json,
)

if TYPE_CHECKING:
    from vidlex.service.client.client import Client

BAR_WIDTH = 24
MAX_STRETCHES = 3  # per label


def classify(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Video files.")],
    *,
    url: UrlOption = DEFAULT_URL,
    label: Annotated[
        list[str] | None,
        typer.Option(help="Score this label, stored or not, in place of the stored labels; may be repeated."),
    ] = None,
    include_category: Annotated[
        list[str] | None, typer.Option(help="Only labels of this category; may be repeated.")
    ] = None,
    exclude_category: Annotated[
        list[str] | None, typer.Option(help="No labels of this category; may be repeated.")
    ] = None,
    top_k: Annotated[int, typer.Option(min=0, help="Maximum number of labels; 0 for all.")] = 20,
    min_score: Annotated[float, typer.Option(min=0, max=1, help="Lowest score.")] = 0.0,
    num_frames: Annotated[
        int | None,
        typer.Option(
            min=1, help="Frames per video, or per segment. Default: of the model; more for videos over 20 seconds."
        ),
    ] = None,
    frame_policy: Annotated[
        Literal["uniform", "keyframes", "shots"] | None,
        typer.Option(
            help="uniform: evenly spaced; keyframes: nearby keyframes, faster; shots: some of each shot. Default: "
            "shots for whole videos without --num-frames, else uniform."
        ),
    ] = None,
    aggregate_by: Annotated[
        Literal["video", "segments", "timestamps"],
        typer.Option(help="Score the whole video, each segment, or each frame."),
    ] = "video",
    segment_ms: Annotated[
        int | None, typer.Option(min=1, help="Length of a segment in milliseconds. Default: 4000.")
    ] = None,
    start_ms: Annotated[
        int | None, typer.Option(min=0, help="Start of the classified range in milliseconds. Default: 0.")
    ] = None,
    end_ms: Annotated[
        int | None, typer.Option(min=0, help="End of the classified range in milliseconds. Default: end of the video.")
    ] = None,
    deadline_ms: Annotated[
        int | None, typer.Option(min=1, help="Time limit per file in milliseconds. Default: none.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, max=64, help="Concurrent requests.")] = 2,
    as_json: JsonFlag = False,
) -> None:
    """Rank the labels of a running service for each video file. With --json one line per file.

    If a file fails, the others are still classified, and the exit code is that of the failure.
    """
    use_json(as_json)
    _refuse_many(files)
    given: dict[str, Any] = {
        "candidate_labels": label,
        "include_categories": include_category,
        "exclude_categories": exclude_category,
        "num_frames": num_frames,
        "frame_policy": frame_policy,
        "segment_ms": segment_ms,
        "start_ms": start_ms,
        "end_ms": end_ms,
        "deadline_ms": deadline_ms,
    }
    params: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    params |= {"top_k": top_k, "min_score": min_score, "aggregate_by": aggregate_by}
    num_failed, exit_code = 0, 0
    with connected(url) as client:
        for path, answer in _answers(client, files, params, jobs):
            if isinstance(answer, CommandError):
                num_failed, exit_code = num_failed + 1, max(exit_code, answer.exit_code)
                if as_json:
                    print_json({"file": str(path), **answer.document()})
                else:
                    print_error(_with_file(answer, path))
            elif as_json:
                print_json({"file": str(path), **answer})
            else:
                print_ranking(answer, title=str(path))
    if num_failed:
        if len(files) > 1:
            print_error(CommandError(f"{num_failed} of {len(files)} files could not be classified"))
        raise typer.Exit(exit_code)


def print_ranking(answer: dict[str, Any], *, title: str, truth: frozenset[str] = frozenset()) -> None:
    """Print a table of the ranked labels of an answer, and its warnings on stderr.

    Labels in ``truth`` are marked as true. When each label applies is shown if one does only part of the time.
    """
    duration_ms = answer["video"]["duration_ms"]
    whens = [_when(found.get("stretches") or (), duration_ms) for found in answer["labels"]]
    columns = ["label", "score", ""] + (["in the video"] if truth else []) + (["when"] if any(whens) else [])
    table = Table(*columns)
    for found, when in zip(answer["labels"], whens, strict=True):
        name = escape(found["name"])
        bar = "█" * round(found["score"] * BAR_WIDTH)
        row = [f"[bold green]{name}[/]" if found["matched"] else name, f"{found['score']:.3f}", f"[cyan]{bar}[/]"]
        row += ["✓" if found["name"] in truth else ""] if truth else []
        row += [when] if any(whens) else []
        table.add_row(*row)
        for segment in found.get("segments") or ():
            table.add_row(
                f"  [dim]{segment['start_ms'] / 1000:.1f} to {segment['end_ms'] / 1000:.1f} s[/]",
                f"[dim]{segment['score']:.3f}[/]",
                *([""] * (len(columns) - 2)),
            )
    print_text(f"[bold]{escape(title)}[/]{'' if answer['labels'] else ': no labels'}")
    if answer["labels"]:
        stdout().print(table)
    print_text(f"[dim]{_summary(answer)}[/]")
    for warning in answer.get("warnings") or ():
        print_warning(f"{title}: {warning['detail']} ({warning['code']})")


def _when(stretches: Sequence[dict[str, Any]], duration_ms: int) -> str:
    """Such as "0:12 to 0:15, 1:02 to 1:40 and 4 more"; empty for the whole video. The best ones, in order of time."""
    if all(stretch["end_ms"] - stretch["start_ms"] >= duration_ms for stretch in stretches):
        return ""
    best = sorted(stretches, key=lambda stretch: -stretch["score"])[:MAX_STRETCHES]
    best.sort(key=lambda stretch: stretch["start_ms"])
    shown = ", ".join(f"{_clock(stretch['start_ms'])} to {_clock(stretch['end_ms'])}" for stretch in best)
    return shown + (f" and {len(stretches) - len(best)} more" if len(stretches) > len(best) else "")


def _clock(milliseconds: int) -> str:
    """As players show it, with tenths: 0:07.5, 12:30.0, 1:02:03.0."""
    tenths = milliseconds // 100
    minutes, seconds = divmod(tenths / 10, 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}:{minutes:02}:{seconds:04.1f}" if hours else f"{minutes}:{seconds:04.1f}"


def _summary(answer: dict[str, Any]) -> str:
    video, usage, coverage = answer["video"], answer["usage"], answer["coverage"]
    size = f"{video['width']}x{video['height']}, {video['duration_ms'] / 1000:.1f} s, {video['codec']}"
    if video.get("start_ms"):
        size += f", first frame at {video['start_ms'] / 1000:.1f} s"
    frames = f"{coverage['frames_decoded']} frames"
    if coverage.get("frame_policy", "uniform") != "uniform":
        frames += f" ({coverage['frame_policy']})"
    times = ", ".join(f"{key.removesuffix('_ms')} {value} ms" for key, value in usage.items() if key.endswith("_ms"))
    if usage.get("cached"):
        times += ", cached features"
    return f"{size}; {frames}; {escape(str(answer['model']['id']))}; {times}"


def _answers(
    client: Client, files: Sequence[Path], params: dict[str, Any], jobs: int
) -> Iterator[tuple[Path, dict[str, Any] | CommandError]]:
    """Answers in the order of the files, from at most ``jobs`` concurrent requests."""

    def classify_file(path: Path) -> dict[str, Any] | CommandError:
        try:
            return client.classify(path, **params).model_dump(mode="json")
        except VidlexClientError as error:
            return command_error(error)

    with progress("classifying", total=len(files)) as bar, ThreadPoolExecutor(min(jobs, len(files))) as pool:
        try:
            for path, answer in zip(files, pool.map(classify_file, files), strict=True):
                bar.advance(bar.task_ids[0])
                bar.stop()
                yield path, answer
                bar.start()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _refuse_many(files: Sequence[Path]) -> None:
    """Raises CommandError for a folder and for an address, which `vidlex tag` reads."""
    for path in files:
        address = re.match(r"[a-z][a-z0-9+.-]*:/", str(path))
        if address or path.is_dir():
            what = "an address" if address else "a folder"
            raise CommandError(f"{path} is {what}: use `vidlex tag SRC... --out tags.parquet`", exit_code=EXIT_USAGE)


def _with_file(error: CommandError, path: Path) -> CommandError:
    text = str(error)
    return error if text.startswith(str(path)) else CommandError(f"{path}: {text}", exit_code=error.exit_code)
