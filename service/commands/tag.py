"""`vidlex tag SRC... --out OUT`: tags folders, lists and buckets into a table."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from vidlex.service.bulk.engine import EngineUnavailable
from vidlex.service.bulk.fetch import Fetcher
from vidlex.service.bulk.options import FramePolicyName, TagOptions
from vidlex.service.bulk.progress import Reporter, RunCounts, reporter
from vidlex.service.commands.connection import DEFAULT_URL, UrlOption
from vidlex.service.commands.extras import require
from vidlex.service.commands.output import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_UNREACHABLE,
    EXIT_USAGE,
    CommandError,
    JsonFlag,
    print_error,
    print_json,
    print_text,
    progress,
    use_json,
)
from vidlex.service.commands.tag_engines import EngineChoice, EngineName, open_engine

if TYPE_CHECKING:
    from vidlex.service.bulk.output import TagOutput
    from vidlex.service.bulk.run import Tagged


def tag(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SRC...",
            help="Files, folders, patterns, lists (.txt, .csv, .jsonl, .parquet with a column uri, path or video), and "
            "s3://, gs://, az:// or https:// addresses of these.",
        ),
    ],
    *,
    out: Annotated[
        str,
        typer.Option(
            metavar="OUT",
            help="A .parquet, .jsonl, .csv or .lance file, or a folder of Parquet files (ends in /); also s3:// ...",
        ),
    ],
    labels: Annotated[
        Path | None, typer.Option(help="File of labels: .txt, .csv, .json or .jsonl, as for `vidlex labels import`.")
    ] = None,
    label: Annotated[list[str] | None, typer.Option(help="A label, in place of a file; may be repeated.")] = None,
    namespace: Annotated[
        str | None,
        typer.Option(help="Namespace of stored labels. Default, without --labels: VIDLEX_NAMESPACE, else default."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model name or checkpoint folder. Default: VIDLEX_MODEL.")] = None,
    engine: Annotated[
        EngineName,
        typer.Option(help="local: in this process; service: a running service; ray: a Ray cluster."),
    ] = "local",
    url: UrlOption = DEFAULT_URL,
    jobs: Annotated[int, typer.Option(min=1, max=256, help="Concurrent requests with --engine service.")] = 4,
    address: Annotated[
        str | None, typer.Option(help="Address of the Ray cluster, or auto. Default: one on this machine.")
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="auto, cpu, cuda, cuda:all or a list. Default: VIDLEX_DEVICE, else auto. ray: auto, cpu or cuda."
        ),
    ] = None,
    decode_workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Decode processes. Default: VIDLEX_DECODE_WORKERS, else one per CPU. ray: most workers.",
        ),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder of the label store, for --namespace. Default: VIDLEX_DATA_DIR.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue a run that was interrupted, or add new videos to OUT.")
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="As --resume, and try again what failed.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first videos.")] = None,
    segments: Annotated[
        bool, typer.Option("--segments", help="Scores of each segment too, and a second table of them.")
    ] = False,
    segment_ms: Annotated[int, typer.Option(min=1, help="Length of a segment in milliseconds.")] = 4000,
    features: Annotated[bool, typer.Option("--features", help="The vector of each segment too.")] = False,
    keep: Annotated[
        bool,
        typer.Option("--keep", help="The service keeps the features, so that later labels need no decoding."),
    ] = False,
    top_k: Annotated[int, typer.Option(min=0, help="Labels per video; 0 for all.")] = 20,
    min_score: Annotated[float, typer.Option(min=0, max=1, help="Lowest score.")] = 0.0,
    num_frames: Annotated[
        int | None, typer.Option(min=1, help="Frames per video or segment. Default: of the model.")
    ] = None,
    frame_policy: Annotated[
        FramePolicyName | None,
        typer.Option(help="uniform: evenly spaced; keyframes: nearby keyframes, faster; shots: some of each shot."),
    ] = None,
    start_ms: Annotated[int | None, typer.Option(min=0, help="Start of the tagged range in milliseconds.")] = None,
    end_ms: Annotated[int | None, typer.Option(min=0, help="End of the tagged range in milliseconds.")] = None,
    max_file_bytes: Annotated[int, typer.Option(min=1, help="Larger files fail.")] = 16 << 30,
    checkpoint_seconds: Annotated[
        float | None,
        typer.Option(min=0, help="Work that is lost at most if the run is killed. Default: 5; 30 for a bucket."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Tag many videos: one row per video, in the order of the sources; a video that fails is a row with its error.

    What is done is kept if the run is interrupted or killed: repeat the command with --resume. Videos of equal content
    are tagged once. The exit code is 1 if a video failed.
    """
    use_json(as_json)
    require("fsspec", "pyarrow")
    options = TagOptions(
        top_k=top_k,
        min_score=min_score,
        num_frames=num_frames,
        frame_policy=frame_policy,
        start_ms=start_ms,
        end_ms=end_ms,
        segments=segments,
        segment_ms=segment_ms,
        features=features,
        keep=keep,
    )
    choice = EngineChoice(
        name=engine,
        labels=tuple(label) if label else None,
        labels_file=labels,
        namespace=namespace,
        model=model,
        device=device,
        decode_workers=decode_workers,
        data_dir=data_dir,
        url=url,
        jobs=jobs,
        address=address,
    )
    choice.check(options)
    with _errors_as_lines(out), ExitStack() as stack:
        from vidlex.service.bulk.output import TagOutput
        from vidlex.service.bulk.sources import Sources

        _check(options)
        found = Sources(sources)
        output = TagOutput(
            out, resume=resume or retry_failed, overwrite=overwrite, checkpoint_seconds=checkpoint_seconds
        )
        stack.callback(output.close)
        stack.enter_context(_terminated_as_interrupted())
        opened = open_engine(choice)
        stack.callback(opened.close)
        with progress("counting the videos", total=None):
            total = found.count()
            output.start(opened.identity, options, retry_failed=retry_failed)
        if limit is not None:
            total = limit if total is None else min(limit, total)
        counts = RunCounts(total, opened.busy)
        report = reporter(counts, as_json=as_json)
        with closing(Fetcher(max_file_bytes=max_file_bytes)) as fetcher, closing(report):
            _run(opened.run(islice(found, limit), options, output, fetcher), output, report)
        summary = counts.summary()
        summary = {"out": output.finish(), **summary}
    _show(summary, as_json)
    if summary["num_failed"]:
        raise typer.Exit(EXIT_FAILED)


def _run(results: Iterator[Tagged], output: TagOutput, report: Reporter) -> None:
    try:
        with closing(results):  # type: ignore[type-var]  # a generator
            for tagged in results:
                output.add(tagged)
                report.add(tagged)
    except (KeyboardInterrupt, EngineUnavailable) as error:
        output.checkpoint()
        kept = f"{output.num_rows} results are kept; repeat the command with --resume"
        if isinstance(error, KeyboardInterrupt):
            raise CommandError(f"interrupted; {kept}", exit_code=EXIT_INTERRUPTED) from None
        raise CommandError(f"{error}; {kept}", exit_code=EXIT_UNREACHABLE) from None


def _check(options: TagOptions) -> None:
    from vidlex.service.errors import InvalidParameter

    try:
        options.check()
    except InvalidParameter as error:
        raise CommandError(str(error), exit_code=EXIT_USAGE) from None


def _show(summary: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(summary)
    else:
        words = [f"{summary['num_tagged']} tagged"]
        words += [f"{summary['num_reused']} reused"] if summary["num_reused"] else []
        words += [f"{summary['num_failed']} failed"] if summary["num_failed"] else []
        rate = f"{summary['seconds']:.1f} s, {summary['videos_per_second']:.1f} videos per second"
        print_text(f"[bold]{escape(', '.join(summary['out']))}[/]: {', '.join(words)}; {rate}")
        shares = [(name, summary[f"{name}_busy"]) for name in ("decode", "device")]
        known = [f"{name} {100 * share:.0f} %" for name, share in shares if share is not None]
        if known:
            advice = f"; {summary['bottleneck']}" if summary["bottleneck"] else ""
            print_text(f"[dim]busy: {', '.join(known)}{advice}[/]")
    if summary["num_failed"]:
        codes = ", ".join(f"{code} {count}" for code, count in summary["failures"].items())
        print_error(
            CommandError(f"{summary['num_failed']} of {summary['num_videos']} videos could not be tagged: {codes}")
        )


@contextmanager
def _errors_as_lines(out: str) -> Iterator[None]:
    """What a user can mend ends the command with one line."""
    from vidlex.service.bulk.lists import SourceError
    from vidlex.service.bulk.remote import MissingPackage
    from vidlex.service.bulk.storage import StorageError
    from vidlex.service.bulk.target import OutputError
    from vidlex.service.errors import FULL_DISK_ERRORS, VidlexError

    try:
        yield
    except (SourceError, OutputError) as error:
        raise CommandError(str(error), exit_code=EXIT_USAGE) from None
    except MissingPackage as error:
        raise CommandError(str(error)) from None
    except EngineUnavailable as error:
        raise CommandError(str(error), exit_code=EXIT_UNREACHABLE) from None
    except VidlexError as error:
        raise CommandError(str(error)) from None
    except StorageError as error:
        raise CommandError(f"{out}: {error}") from None
    except OSError as error:
        if error.errno not in FULL_DISK_ERRORS:
            raise
        raise CommandError(f"{out}: no space left; what is done is kept, repeat the command with --resume") from None


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM ends the run as Ctrl-C does: cleanly, with all that is done kept."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
