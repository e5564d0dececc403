"""`vidlex jobs`: work that a running service does later."""

from __future__ import annotations

import json
import re
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape
from rich.table import Table

from vidlex.service.commands.classify import print_ranking
from vidlex.service.commands.connection import DEFAULT_URL, UrlOption, connected
from vidlex.service.commands.output import (
    EXIT_FAILED,
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

if TYPE_CHECKING:
    from rich.progress import Progress

    from vidlex.service.client.client import Client
    from vidlex.service.client.job_calls import JobEvent
    from vidlex.service.client.jobs import Job

app = typer.Typer(no_args_is_help=True, help="Submit and follow jobs: videos that a running service classifies later.")

JobIds = Annotated[list[str], typer.Argument(metavar="JOB...", help="Ids of jobs.")]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="Id of a job.")]
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://")


@app.command("submit")
def submit(
    source: Annotated[str, typer.Argument(help="A file, or an https:// or s3:// address that the service reads.")],
    *,
    url: UrlOption = DEFAULT_URL,
    batch: Annotated[
        bool, typer.Option("--batch", help="SOURCE is a JSONL file with a video in each line, not a video.")
    ] = False,
    label: Annotated[
        list[str] | None,
        typer.Option(help="Score this label, stored or not, in place of the stored labels; may be repeated."),
    ] = None,
    top_k: Annotated[int, typer.Option(min=0, help="Maximum number of labels; 0 for all.")] = 20,
    min_score: Annotated[float, typer.Option(min=0, max=1, help="Lowest score.")] = 0.0,
    aggregate_by: Annotated[
        Literal["video", "segments", "timestamps"],
        typer.Option(help="Score the whole video, each segment, or each frame."),
    ] = "video",
    segment_ms: Annotated[
        int | None, typer.Option(min=1, help="Length of a segment in milliseconds. Default: 4000.")
    ] = None,
    priority: Annotated[
        Literal["high", "normal", "low"], typer.Option(help="Among the jobs of this client.")
    ] = "normal",
    webhook: Annotated[str | None, typer.Option(help="Address at which the end of the job is reported.")] = None,
    metadata: Annotated[str | None, typer.Option(help="A JSON object that is kept with the job.")] = None,
    idempotency_key: Annotated[
        str | None, typer.Option(help="Makes one job, however often the command is repeated with this key.")
    ] = None,
    wait_for_end: Annotated[bool, typer.Option("--wait", help="Wait until the job is finished.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Submit a job and print its id. The service has stored it then."""
    use_json(as_json)
    options: dict[str, Any] = {"top_k": top_k, "min_score": min_score, "aggregate_by": aggregate_by}
    options |= {"candidate_labels": label} if label else {}
    options |= {"segment_ms": segment_ms} if segment_ms is not None else {}
    is_address = _ADDRESS.match(source) is not None
    with connected(url) as client:
        with progress("uploading", total=None) as bar:

            def show(num_sent: int, num_bytes: int | None) -> None:
                bar.update(bar.task_ids[0], completed=num_sent, total=num_bytes)

            job = client.jobs.submit(
                None if is_address else Path(source),
                url=source if is_address else None,
                kind="batch" if batch else "classify",
                priority=priority,
                webhook=webhook,
                metadata=parse_object(metadata),
                idempotency_key=idempotency_key,
                on_progress=show,
                **options,
            )
        if wait_for_end:
            follow(job)
            show_end(job, as_json=as_json)
        elif as_json:
            print_json(job.view.model_dump(mode="json"))
        else:
            print(job.id)


@app.command("list")
def list_jobs(
    *,
    url: UrlOption = DEFAULT_URL,
    state: Annotated[
        Literal["queued", "running", "succeeded", "failed", "cancelled", "expired"] | None,
        typer.Option(help="Only jobs in this state."),
    ] = None,
    kind: Annotated[
        Literal["classify", "batch", "backfill", "reencode"] | None, typer.Option(help="Only jobs of this kind.")
    ] = None,
    dead: Annotated[bool, typer.Option("--dead", help="Only jobs of which every attempt ended unexpectedly.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of jobs.")] = 100,
    as_json: JsonFlag = False,
) -> None:
    """List jobs, newest first. With --json one line per job."""
    use_json(as_json)
    table = Table("id", "kind", "state", "created", "progress", "error")
    with connected(url) as client:
        found = client.jobs.list(state=state, kind=kind, dead=dead or None, page_size=min(limit, 1000))
        for _, job in zip(range(limit), found, strict=False):
            view = job.view
            if as_json:
                print_json(view.model_dump(mode="json"))
                continue
            created = datetime.fromtimestamp(view.created_at_ms / 1000).isoformat(" ", "seconds")
            error = "" if view.error is None else f"{view.error.code}: {view.error.detail}"
            table.add_row(job.id, view.kind, _state(job), created, _progress_text(job), escape(error))
    if not as_json:
        stdout().print(table)


@app.command("show")
def show(job_id: JobId, url: UrlOption = DEFAULT_URL, as_json: JsonFlag = False) -> None:
    """Show a job, and its result once it has succeeded."""
    use_json(as_json)
    with connected(url) as client:
        job = client.jobs.get(job_id)
        if as_json:
            print_json(job.view.model_dump(mode="json"))
            return
        _print_job(job)
        if job.state == "succeeded" and job.view.kind == "classify":
            print_ranking(job.result().model_dump(mode="json"), title=job.id)


@app.command("wait")
def wait(
    job_ids: JobIds,
    url: UrlOption = DEFAULT_URL,
    timeout: Annotated[float | None, typer.Option(min=0, help="Seconds to wait. Default: without end.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Wait until the jobs are finished, and show their ends. With --json one line per job.

    Fails if a job did not succeed, or is not finished in time.
    """
    use_json(as_json)
    num_failed = 0
    ends_at = None if timeout is None else time.monotonic() + timeout
    with connected(url) as client:
        for job_id in job_ids:
            job = client.jobs.get(job_id)
            if ends_at is None:
                follow(job)
            job.wait(None if ends_at is None else max(0.0, ends_at - time.monotonic()))
            try:
                show_end(job, as_json=as_json)
            except CommandError as error:
                num_failed += 1
                print_error(error)
    if num_failed:
        raise typer.Exit(EXIT_FAILED)


@app.command("events")
def events(
    job_id: JobId,
    url: UrlOption = DEFAULT_URL,
    after: Annotated[str | None, typer.Option(help="Id of the last event that is known.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Print the events of a job as they happen, until it is finished. With --json one line per event."""
    use_json(as_json)
    with connected(url) as client:
        for event in client.jobs.get(job_id).events(after=after):
            if as_json:
                print_json({"id": event.id, "event": event.type, "data": dict(event.data)})
            else:
                print_text(f"[dim]{escape(event.id)}[/] {escape(event.type)} {escape(_event_text(event))}")


@app.command("cancel")
def cancel(job_ids: JobIds, url: UrlOption = DEFAULT_URL, as_json: JsonFlag = False) -> None:
    """Cancel jobs. Those that run end soon; those that are finished stay as they are."""
    _change(job_ids, url, "cancel", as_json=as_json)


@app.command("retry")
def retry(job_ids: JobIds, url: UrlOption = DEFAULT_URL, as_json: JsonFlag = False) -> None:
    """Queue jobs again that have failed, were cancelled or have expired."""
    _change(job_ids, url, "retry", as_json=as_json)


def _change(job_ids: list[str], url: str, action: Literal["cancel", "retry"], *, as_json: bool) -> None:
    use_json(as_json)
    with connected(url) as client:
        for job_id in job_ids:
            job = _changed(client, job_id, action)
            if as_json:
                print_json(job.view.model_dump(mode="json"))
            else:
                print_text(f"{escape(job.id)} {_state(job)}")


def _changed(client: Client, job_id: str, action: Literal["cancel", "retry"]) -> Job:
    return client.jobs.cancel(job_id) if action == "cancel" else client.jobs.retry(job_id)


def follow(job: Job) -> None:
    """Waits for the end, with a bar on a terminal."""
    with progress(job.state, total=None) as bar:
        if bar.disable:
            job.wait()
            return
        for event in job.events():
            _show_event(bar, event)
        job.wait()


def _show_event(bar: Progress, event: JobEvent) -> None:
    task, data = bar.task_ids[0], event.data
    if event.type == "state":
        bar.update(task, description=str(data.get("state")))
    elif event.type == "progress":
        stage, unit = data.get("stage"), data.get("unit")
        bar.update(task, description=f"{stage} ({unit})", completed=data.get("done"), total=data.get("total"))


def show_end(job: Job, *, as_json: bool) -> None:
    """Raises CommandError for a job that did not succeed."""
    view = job.view
    if as_json:
        print_json(view.model_dump(mode="json"))
    if job.state != "succeeded":
        why = "" if view.error is None else f": {view.error.detail} ({view.error.code})"
        problem = None if view.error is None else {"code": view.error.code, "detail": view.error.detail}
        raise CommandError(f"job {job.id} {job.state}{why}", problem=problem)
    if as_json:
        return
    if view.kind == "classify":
        print_ranking(job.result().model_dump(mode="json"), title=job.id)
    else:
        _print_job(job)


def _print_job(job: Job) -> None:
    view = job.view
    print_text(f"[bold]{escape(job.id)}[/] {view.kind} {_state(job)}, attempt {view.attempts} of {view.max_attempts}")
    if text := _progress_text(job):
        print_text(escape(text))
    if view.error is not None:
        print_text(f"[red]{escape(view.error.code)}[/]: {escape(view.error.detail)}")
    for path in (view.output_url, view.errors_url):
        if path is not None:
            print_text(f"[dim]{escape(path)}[/]")


def _state(job: Job) -> str:
    if job.view.cancelling:
        return "cancelling"
    return "dead" if job.view.dead else job.state


def _progress_text(job: Job) -> str:
    counts, found = job.view.request_counts, job.view.progress
    if counts is not None:
        total = "" if counts.total is None else f" of {counts.total}"
        return f"{counts.completed}{total} videos, {counts.failed} failed"
    if found is None or job.is_finished:
        return ""
    total = "" if found.total is None else f" of {found.total}"
    return f"{found.stage}: {found.done}{total} {found.unit}"


def _event_text(event: JobEvent) -> str:
    data = event.data
    if event.type == "labels":
        labels = data.get("labels") or ()
        return ", ".join(f"{label['name']} {label['score']:.3f}" for label in labels)
    if event.type == "progress":
        total = "" if data.get("total") is None else f" of {data['total']}"
        return f"{data.get('stage')}: {data.get('done')}{total} {data.get('unit')}"
    error = data.get("error")
    return str(data.get("state")) + (f": {error['detail']} ({error['code']})" if error else "")


def parse_object(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise CommandError("--metadata must be a JSON object", exit_code=EXIT_USAGE)
    return found
