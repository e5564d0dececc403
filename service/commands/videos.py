"""`vidlex videos`: what a running service keeps of videos, for new labels, new models and searches."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Column, Table

from vidlex.service.client.errors import VidlexClientError
from vidlex.service.commands.connection import DEFAULT_URL, UrlOption, command_error, connected
from vidlex.service.commands.jobs import follow, parse_object, show_end
from vidlex.service.commands.output import (
    EXIT_USAGE,
    CommandError,
    JsonFlag,
    print_json,
    print_text,
    raise_last,
    stdout,
    use_json,
)

if TYPE_CHECKING:
    from vidlex.service.client.jobs import Job

app = typer.Typer(
    no_args_is_help=True, help="Kept videos of a running service: search them, apply new labels, re-encode them."
)

VideoId = Annotated[str, typer.Argument(metavar="VIDEO", help="Id of a kept video.")]
VideoIds = Annotated[list[str], typer.Argument(metavar="VIDEO...", help="Ids of kept videos.")]
WebhookOption = Annotated[str | None, typer.Option(help="Address at which changes and the job's end are reported.")]
WaitFlag = Annotated[bool, typer.Option("--wait", help="Wait until the job is finished, and show its result.")]


@app.command("list")
def list_videos(
    *,
    url: UrlOption = DEFAULT_URL,
    client_id: Annotated[str | None, typer.Option(help="Only videos with your own id.")] = None,
    sha256: Annotated[str | None, typer.Option(help="Only videos with this content.")] = None,
    label: Annotated[
        str | None, typer.Option(help="Only videos that this label matches, as of its last backfill (id or name).")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of videos.")] = 100,
    as_json: JsonFlag = False,
) -> None:
    """List kept videos, newest first. With --json one line per video."""
    use_json(as_json)
    with connected(url) as client:
        if label is not None:
            matched = client.videos.of_label(client.find_label(label).id, page_size=min(limit, 1000))
            found = [video.model_dump(mode="json") for _, video in zip(range(limit), matched, strict=False)]
            _print_matched(found, as_json=as_json)
            return
        table = Table(Column("id", no_wrap=True, min_width=28), "your id", "seconds", "models", "kept", "uri")
        videos = client.videos.list(client_id=client_id, sha256=sha256, page_size=min(limit, 1000))
        for _, video in zip(range(limit), videos, strict=False):
            if as_json:
                print_json(video.model_dump(mode="json"))
                continue
            kept = datetime.fromtimestamp(video.created_at_ms / 1000).isoformat(" ", "seconds")
            models = ", ".join(generation.fingerprint for generation in video.generations)
            seconds = f"{video.facts.duration_ms / 1000:.1f}"
            texts = [escape(text or "") for text in (video.client_id, models, video.uri)]
            table.add_row(video.id, texts[0], seconds, texts[1], kept, texts[2])
    if not as_json:
        stdout().print(table)


@app.command("show")
def show(video_id: VideoId, url: UrlOption = DEFAULT_URL, as_json: JsonFlag = False) -> None:
    """Show what is kept of a video."""
    use_json(as_json)
    with connected(url) as client:
        found = client.videos.get(video_id).model_dump(mode="json")
    if as_json:
        print_json(found)
        return
    segments = found.pop("segments")
    for key, value in found.items():
        print_text(f"[bold]{key}[/]: {escape(str(value))}")
    print_text(f"[bold]segments[/]: {'unknown' if segments is None else len(segments)}")


@app.command("remove")
def remove(video_ids: VideoIds, url: UrlOption = DEFAULT_URL, as_json: JsonFlag = False) -> None:
    """Remove kept videos. If one does not exist, the others are still removed."""
    use_json(as_json)
    failures: list[CommandError] = []
    with connected(url) as client:
        for video_id in video_ids:
            try:
                client.videos.remove(video_id)
            except VidlexClientError as error:
                failures.append(command_error(error, about=video_id))
                continue
            if as_json:
                print_json({"id": video_id, "deleted": True})
            else:
                print_text(f"removed {escape(video_id)}")
    raise_last(failures)


@app.command("search")
def search(
    text: Annotated[str | None, typer.Argument(help="Any words; they are encoded as a label.")] = None,
    *,
    url: UrlOption = DEFAULT_URL,
    label: Annotated[str | None, typer.Option(help="Id or name of a stored label, in place of TEXT.")] = None,
    like: Annotated[str | None, typer.Option(metavar="VIDEO", help="Id of a kept video, in place of TEXT.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100, help="Maximum number of videos.")] = 10,
    min_score: Annotated[float, typer.Option(min=0, max=1, help="Lowest score.")] = 0.0,
    client_id: Annotated[str | None, typer.Option(help="Only videos with your own id.")] = None,
    metadata: Annotated[str | None, typer.Option(help="Only videos with these members, a JSON object.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Find kept videos, and where in them."""
    use_json(as_json)
    if sum(given is not None for given in (text, label, like)) != 1:
        raise CommandError("give TEXT, --label or --like", exit_code=EXIT_USAGE)
    filters: dict[str, Any] = {"metadata": parse_object(metadata) or {}}
    filters |= {} if client_id is None else {"client_id": client_id}
    options: dict[str, Any] = {"limit": limit, "min_score": min_score, "segments": True, "filters": filters}
    with connected(url) as client:
        if label is not None:
            options["label_id"] = client.find_label(label).id
        elif like is not None:
            options["video_id"] = like
        else:
            options["text"] = text
        found = client.videos.search(**options)
    if as_json:
        print_json(found.model_dump(mode="json"))
        return
    table = Table("score", Column("id", no_wrap=True, min_width=28), "your id", "best segment", "uri")
    for hit in found.data:
        best = max(hit.segments, key=lambda segment: segment.score)
        when = f"{best.start_ms / 1000:.1f} to {best.end_ms / 1000:.1f} s"
        table.add_row(f"{hit.score:.3f}", hit.video_id, escape(hit.client_id or ""), when, escape(hit.uri or ""))
    stdout().print(table)
    missing = f"; {found.num_missing} need `vidlex videos reencode`" if found.num_missing else ""
    print_text(f"{found.num_videos} videos searched by {found.scores}{missing}")


@app.command("backfill")
def backfill(
    labels: Annotated[
        list[str] | None, typer.Argument(metavar="[LABEL]...", help="Ids, names or aliases of labels.")
    ] = None,
    *,
    url: UrlOption = DEFAULT_URL,
    since_revision: Annotated[
        int | None, typer.Option(min=0, help="All labels that were created or changed after this revision; 0: all.")
    ] = None,
    min_score: Annotated[
        float | None, typer.Option(min=0, max=1, help="Lowest score of a match, in place of the labels' thresholds.")
    ] = None,
    webhook: WebhookOption = None,
    wait_for_end: WaitFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Apply labels to all kept videos, as a job, and print its id, or with --wait what the labels gained and lost."""
    use_json(as_json)
    if bool(labels) == (since_revision is not None):
        raise CommandError("give LABELs or --since-revision", exit_code=EXIT_USAGE)
    options: dict[str, Any] = {"min_score": min_score, "webhook": webhook}
    with connected(url) as client:
        if since_revision is not None:
            options["since_revision"] = since_revision
        else:
            options["label_ids"] = [client.find_label(label).id for label in labels or ()]
        job = client.videos.backfill(**options)
        if not _waited(job, wait_for_end=wait_for_end, as_json=as_json):
            return
        result = client.videos.backfill_result(job.id)
    if as_json:
        print_json(result.model_dump(mode="json"))
        return
    table = Table("label", "threshold", "matched", "gained", "lost")
    for entry in result.labels:
        numbers = (entry.num_matched, entry.num_gained, entry.num_lost)
        table.add_row(escape(entry.name), f"{entry.threshold:g}", *map(str, numbers))
    stdout().print(table)
    missing = f"; {result.num_missing} need `vidlex videos reencode`" if result.num_missing else ""
    print_text(f"{result.num_videos} videos in {result.seconds:.1f} s{missing}")


@app.command("reencode")
def reencode(
    video_ids: Annotated[
        list[str] | None, typer.Argument(metavar="[VIDEO]...", help="Ids of kept videos. Default: all that need it.")
    ] = None,
    *,
    url: UrlOption = DEFAULT_URL,
    webhook: WebhookOption = None,
    wait_for_end: WaitFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Read kept videos again from their URIs for the served model, as a job, and print its id."""
    use_json(as_json)
    with connected(url) as client:
        job = client.videos.reencode(video_ids=video_ids or None, webhook=webhook)
        if not _waited(job, wait_for_end=wait_for_end, as_json=as_json):
            return
        result = client.videos.reencode_result(job.id)
    if as_json:
        print_json(result.model_dump(mode="json"))
        return
    print_text(f"{result.num_reencoded} re-encoded, {result.num_failed} failed, {result.num_without_uri} without a URI")
    for failure in result.failures:
        print_text(f"{escape(failure.video_id)}: {escape(failure.detail)} ({escape(failure.code)})")


def _waited(job: Job, *, wait_for_end: bool, as_json: bool) -> bool:
    """Whether the job has succeeded. Raises CommandError if it ended otherwise."""
    if wait_for_end:
        follow(job)
        if job.state != "succeeded":
            show_end(job, as_json=as_json)
        return True
    if as_json:
        print_json(job.view.model_dump(mode="json"))
    else:
        print_text(escape(job.id))
    return False


def _print_matched(videos: list[dict[str, Any]], *, as_json: bool) -> None:
    table = Table(Column("id", no_wrap=True, min_width=28), "score", "best stretch", "change")
    for video in videos:
        if as_json:
            print_json(video)
            continue
        when = f"{video['start_ms'] / 1000:.1f} to {video['end_ms'] / 1000:.1f} s"
        table.add_row(video["video_id"], f"{video['score']:.3f}", when, video["change"] or "")
    if not as_json:
        stdout().print(table)
