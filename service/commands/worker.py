"""`vidlex worker`: works on jobs in this process until SIGINT or SIGTERM."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from vidlex.model.specs import is_checkpoint_spec
from vidlex.service.commands.output import EXIT_USAGE, CommandError, JsonFlag, print_json, stderr, use_json
from vidlex.service.commands.preflight import check_worker, settings_or_error
from vidlex.service.commands.serve import terminate_with
from vidlex.service.commands.stores import shown_store
from vidlex.service.commands.weights import fetch_model_weights


def worker(
    *,
    data_dir: Annotated[
        Path | None,
        typer.Option(help="As of `vidlex serve`, which runs on it unless VIDLEX_REDIS_URL is set."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="As of `vidlex serve`.")] = None,
    device: Annotated[str | None, typer.Option(help="As of `vidlex serve`.")] = None,
    jobs: Annotated[
        int | None, typer.Option(help="Jobs at a time. Default: VIDLEX_JOB_WORKERS, else VIDLEX_DECODE_WORKERS.")
    ] = None,
    allow_volatile_store: Annotated[
        bool | None, typer.Option("--allow-volatile-store", help="As of `vidlex serve`.")
    ] = None,
    parent: Annotated[int | None, typer.Option(help="Stop when this parent process exits.", hidden=True)] = None,
    as_json: JsonFlag = False,
) -> None:
    """Work on jobs that services have accepted, until Ctrl-C. It listens on no address.

    It needs the store of the services and, for uploaded files, their folder of jobs (VIDLEX_JOBS_DIR). Jobs that are
    not finished when it stops are done by another worker.
    """
    started = time.monotonic()
    use_json(as_json)
    if parent is not None:
        terminate_with(parent)
    settings = settings_or_error(
        host="127.0.0.1",  # nothing listens: no API key is needed
        data_dir=data_dir,
        model=model,
        device=device,
        job_workers=jobs,
        allow_volatile_store=allow_volatile_store,
    )
    if settings.job_workers == 0:
        raise CommandError("a worker with 0 jobs at a time does nothing", exit_code=EXIT_USAGE)
    check_worker(settings)
    num_jobs = settings.job_workers or settings.decode_workers
    from vidlex.service.telemetry.logs import choose_format

    is_console = choose_format(settings.log_format) == "console"
    if is_console:
        text = f"Starting a worker with the model {escape(settings.model)} on {escape(shown_store(settings))}"
        stderr().print(text, soft_wrap=True)

    def on_ready() -> None:
        if as_json:
            print_json({"model": settings.model, "jobs": num_jobs, "data_dir": str(settings.data_dir)})
        if is_console:
            seconds = time.monotonic() - started
            text = f"[bold green]Ready[/] after {seconds:.1f} s for {num_jobs} jobs at a time. Press Ctrl-C to stop."
            stderr().print(text, soft_wrap=True)

    if not is_checkpoint_spec(settings.model):
        os.environ.setdefault("TQDM_DISABLE", "1")  # before libraries import tqdm
        fetch_model_weights(settings.model, as_json=as_json)

    from vidlex.service.worker import work

    reason = work(settings, on_ready=on_ready)
    if reason is not None:
        raise CommandError(f"the worker could not start: {reason}")
