"""`vidlex serve`: the service in this process, until Ctrl-C or SIGTERM."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from vidlex.service.commands.output import EXIT_USAGE, CommandError, JsonFlag, print_json, stderr, use_json
from vidlex.service.settings import Settings, SettingsError, load_settings

BACKLOG = 2048


def serve(
    *,
    host: Annotated[str | None, typer.Option(help="Address to listen on (VIDLEX_HOST, 127.0.0.1).")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes any free one (VIDLEX_PORT, 8000).")] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder of the label store (VIDLEX_DATA_DIR, ~/.local/share/vidlex).")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Zoo name, checkpoint folder or open_clip:NAME/WEIGHTS (VIDLEX_MODEL, emoji-small)."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda, cuda:1, cuda:all ... (VIDLEX_DEVICE, auto).")
    ] = None,
    insecure: Annotated[
        bool | None, typer.Option("--insecure", help="No API keys: let everybody in (VIDLEX_INSECURE).")
    ] = None,
    fd: Annotated[int | None, typer.Option(help="Serve on this inherited listening socket.", hidden=True)] = None,
    parent: Annotated[int | None, typer.Option(help="Stop when this (parent) process ends.", hidden=True)] = None,
    as_json: JsonFlag = False,
) -> None:
    """Run the service until Ctrl-C.

    Every setting is an environment variable VIDLEX_*; these flags win over them.
    """
    use_json(as_json)
    if parent is not None:
        _end_with(parent)
    settings = settings_or_error(host=host, port=port, data_dir=data_dir, model=model, device=device, insecure=insecure)
    listener = _listener(settings, fd)
    bound_host, bound_port = listener.getsockname()[:2]
    address = f"http://{f'[{bound_host}]' if ':' in bound_host else bound_host}:{bound_port}"
    if as_json:
        print_json({"url": address, "model": settings.model, "data_dir": str(settings.data_dir)})
    else:
        stderr().print(f"[bold]Vidlex[/] on {address} with the model {escape(settings.model)}; Ctrl-C stops it")
    reason = _run(settings, listener)
    if reason is not None:
        raise CommandError(f"the service could not start: {reason}")


def _end_with(parent: int) -> None:
    """Have the kernel send SIGTERM when the parent is gone, even after kill -9. Linux only; elsewhere nothing."""
    if sys.platform != "linux":
        return
    pr_set_pdeathsig = 1
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # it went before the request
        raise CommandError("the starting process has ended")


def settings_or_error(**overrides: object) -> Settings:
    """The settings, or a CommandError that names the wrong variables."""
    try:
        return load_settings(**overrides)
    except SettingsError as error:
        raise CommandError(str(error), exit_code=EXIT_USAGE) from None


def _listener(settings: Settings, fd: int | None) -> socket.socket:
    """A bound socket before anything heavy is loaded: a port in use is told at once."""
    if fd is not None:
        try:
            return socket.socket(fileno=fd)
        except OSError as error:
            raise CommandError(f"--fd {fd} is no socket: {error.strerror}", exit_code=EXIT_USAGE) from None
    try:
        return socket.create_server(
            (settings.host, settings.port),
            family=socket.AF_INET6 if ":" in settings.host else socket.AF_INET,
            backlog=BACKLOG,
        )
    except OSError as error:
        reason = error.strerror or str(error)
        raise CommandError(
            f"cannot listen on {settings.host}:{settings.port}: {reason}; choose another with --port or --host"
        ) from None


def _run(settings: Settings, listener: socket.socket) -> str | None:
    from vidlex.service.server import serve as run_server

    return run_server(settings, sockets=[listener])
