"""`vidlex serve`: runs the service in this process until SIGINT or SIGTERM."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from vidlex.model.specs import DEFAULT_MODEL, is_checkpoint_spec, list_zoo
from vidlex.service.commands.output import EXIT_USAGE, CommandError, JsonFlag, print_json, stderr, use_json
from vidlex.service.commands.preflight import check_service, settings_or_error
from vidlex.service.commands.weights import fetch_model_weights

if TYPE_CHECKING:
    from vidlex.service.settings import Settings

BACKLOG = 2048


def serve(
    *,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on. Default: VIDLEX_HOST, else 127.0.0.1.")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 for any free one. Default: VIDLEX_PORT, else 8000.")] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Folder of the label store. Default: VIDLEX_DATA_DIR, else ~/.local/share/vidlex."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help=f"Zoo name ({', '.join(list_zoo())}), checkpoint folder, clip (SigLIP 2, downloaded: 1.5 GB), "
            "open_clip:NAME/WEIGHTS, open_clip:local-dir:FOLDER, transformers:ORG/NAME or transformers:FOLDER. "
            f"Default: VIDLEX_MODEL, else {DEFAULT_MODEL}."
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, mps, cuda, cuda:N or cuda:all. Default: VIDLEX_DEVICE, else auto.")
    ] = None,
    insecure: Annotated[
        bool | None,
        typer.Option("--insecure", help="Accept requests without an API key. Default: VIDLEX_INSECURE, else off."),
    ] = None,
    allow_volatile_store: Annotated[
        bool | None,
        typer.Option(
            "--allow-volatile-store",
            help="Accept a store that evicts labels or keeps no append-only file. "
            "Default: VIDLEX_ALLOW_VOLATILE_STORE, else off.",
        ),
    ] = None,
    fd: Annotated[int | None, typer.Option(help="Serve on this inherited listening socket.", hidden=True)] = None,
    parent: Annotated[int | None, typer.Option(help="Stop when this parent process exits.", hidden=True)] = None,
    as_json: JsonFlag = False,
) -> None:
    """Run the service until Ctrl-C.

    All settings are environment variables VIDLEX_*; options override them.
    """
    started = time.monotonic()
    use_json(as_json)
    if parent is not None:
        terminate_with(parent)
    settings = settings_or_error(
        host=host,
        port=port,
        data_dir=data_dir,
        model=model,
        device=device,
        insecure=insecure,
        allow_volatile_store=allow_volatile_store,
    )
    check_service(settings)
    listener = _listener(settings, fd)
    bound_host, bound_port = listener.getsockname()[:2]
    address = f"http://{f'[{bound_host}]' if ':' in bound_host else bound_host}:{bound_port}"
    from vidlex.service.telemetry.logs import choose_format

    is_console = choose_format(settings.log_format) == "console"
    if as_json:
        print_json({"url": address, "model": settings.model, "data_dir": str(settings.data_dir)})
    if is_console:
        stderr().print(f"Starting Vidlex on {address} with the model {escape(settings.model)}", soft_wrap=True)

    def on_ready(model: str, labels: str) -> None:
        if is_console:
            seconds = time.monotonic() - started
            text = f"[bold green]Ready[/] on [bold]{address}[/] after {seconds:.1f} s: {escape(model)}; {labels}"
            stderr().print(f"{text}. Press Ctrl-C to stop.", soft_wrap=True)

    if not is_checkpoint_spec(settings.model):  # from the hub, for minutes: with a progress bar, unlike in the server
        os.environ.setdefault("TQDM_DISABLE", "1")  # before libraries import tqdm, as the server does
        fetch_model_weights(settings.model, as_json=as_json)

    from vidlex.service.server import serve as run_server

    reason = run_server(settings, sockets=[listener], on_ready=on_ready)
    if reason is not None:
        raise CommandError(f"the service could not start: {reason}")


def terminate_with(parent: int) -> None:
    """Have the kernel send SIGTERM when the parent exits, even by SIGKILL. Linux only."""
    if sys.platform != "linux":
        return
    pr_set_pdeathsig = 1
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # it exited before the call
        raise CommandError(f"the parent process {parent} has exited")


def _listener(settings: Settings, fd: int | None) -> socket.socket:
    """Bind before the model is loaded, so that a port in use is reported at once."""
    if fd is not None:
        try:
            return socket.socket(fileno=fd)
        except OSError as error:
            raise CommandError(f"--fd {fd} is not a socket: {error.strerror}", exit_code=EXIT_USAGE) from None
    try:
        return socket.create_server(
            (settings.host, settings.port),
            family=socket.AF_INET6 if ":" in settings.host else socket.AF_INET,
            backlog=BACKLOG,
        )
    except OSError as error:
        reason = (
            os.strerror(error.errno) if error.errno is not None and error.errno > 0 else error.strerror or str(error)
        )
        raise CommandError(
            f"cannot listen on {settings.host}:{settings.port}: {reason}; set --port or --host"
        ) from None
