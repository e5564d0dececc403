"""How commands reach a running service: by `vidlex.Client`, whose errors end a command with a line and an exit code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vidlex.service.client.errors import ConfigurationInvalid, ConnectionFailed, NoAnswer, VidlexClientError
from vidlex.service.commands.output import EXIT_FAILED, EXIT_UNREACHABLE, EXIT_USAGE, CommandError

if TYPE_CHECKING:
    from vidlex.service.client.client import Client

DEFAULT_URL = "http://127.0.0.1:8000"

UrlOption = Annotated[str, typer.Option("--url", envvar="VIDLEX_URL", help="Address of the service.")]


@contextmanager
def connected(url: str, *, namespace: str | None = None) -> Iterator[Client]:
    """Raises CommandError for the client's errors."""
    from vidlex.service.client.client import Client  # with httpx and pydantic, which commands without a service spare
    from vidlex.service.client.config import RetryPolicy

    try:
        with Client(url, namespace=namespace, retries=RetryPolicy(connect_seconds=0.0)) as client:
            yield client
    except VidlexClientError as error:
        raise command_error(error) from None


def command_error(error: VidlexClientError, *, about: str = "") -> CommandError:
    """``about``: of what the service's problem is, such as a label."""
    if error.problem is not None:
        text = describe(error.problem)
        return CommandError(f"{about}: {text}" if about else text, problem=dict(error.problem))
    if isinstance(error, ConfigurationInvalid):
        return CommandError(error.detail, exit_code=EXIT_USAGE)
    text = error.detail
    if isinstance(error, ConnectionFailed) and not error.was_connected:
        text += "; start it with `vidlex serve`, or set --url or VIDLEX_URL"
    return CommandError(text, exit_code=EXIT_UNREACHABLE if isinstance(error, NoAnswer) else EXIT_FAILED)


def describe(problem: Mapping[str, Any]) -> str:
    text = str(problem.get("detail") or problem.get("title"))
    if problem.get("code") == "unauthorized":
        text += "; set VIDLEX_API_KEY to a valid key"
    return f"{text} ({problem['code']})" if problem.get("code") else text
