"""`vidlex label-studio`: an ML backend that gives Label Studio predictions and takes its corrections."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from vidlex.service.commands.connection import DEFAULT_URL, UrlOption
from vidlex.service.commands.output import EXIT_USAGE, CommandError, JsonFlag, print_json, print_text, use_json

if TYPE_CHECKING:
    from vidlex.service.exports.corrections import Correction

DEFAULT_PORT = 9090
SOURCE = "label-studio"


def label_studio(
    server: Annotated[
        str, typer.Option("--label-studio-url", envvar="LABEL_STUDIO_URL", help="Address of Label Studio.")
    ],
    token: Annotated[
        str,
        typer.Option(
            "--label-studio-key",
            envvar="LABEL_STUDIO_API_KEY",
            help="An access token of Label Studio.",
            show_default=False,
        ),
    ],
    *,
    url: UrlOption = DEFAULT_URL,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port to listen on.")] = DEFAULT_PORT,
    feedback: Annotated[
        bool, typer.Option("--feedback", help="Send submitted annotations to the service as judgements.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Run an ML backend for Label Studio: predictions from a service, submitted annotations as its feedback.

    It has no access control of its own: only Label Studio should reach its port.
    """
    use_json(as_json)
    import uvicorn

    from vidlex.service.client.client import Client
    from vidlex.service.exports.ml_backend import Backend, LabelStudioServer, create_app
    from vidlex.service.schemas.feedback import MAX_JUDGEMENTS

    if not server.startswith(("http://", "https://")):
        raise CommandError("--label-studio-url must start with http:// or https://", exit_code=EXIT_USAGE)
    with Client(url) as client:

        def send(found: list[Correction]) -> None:
            for start in range(0, len(found), MAX_JUDGEMENTS):
                client.feedback.add([c.judgement(SOURCE) for c in found[start : start + MAX_JUDGEMENTS]])

        backend = Backend(client, LabelStudioServer(server, token))
        app = create_app(backend, on_corrections=send if feedback else None)
        if as_json:
            print_json({"url": f"http://{host}:{port}", "label_studio": server})
        else:
            print_text(f"ML backend for {server}: http://{host}:{port}")
        uvicorn.run(app, host=host, port=port, log_level="warning")
