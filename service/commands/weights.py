"""`vidlex weights`: weights that are downloaded once and cached."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from vidlex.service.commands.output import CommandError, JsonFlag, print_json, print_text, progress, use_json

app = typer.Typer(no_args_is_help=True, help="Download weights into the cache.")


@app.command("fetch")
def fetch(
    name: Annotated[
        str, typer.Argument(help="An LLM: a name on the model hub or a local folder. Default: that of emoji-small.")
    ] = "",
    as_json: JsonFlag = False,
) -> None:
    """Download an LLM into the cache, so that the first start needs no network."""
    use_json(as_json)
    folder = fetch_llm_with_progress(name)
    if as_json:
        print_json({"name": name or _default_llm(), "path": str(folder)})
    else:
        print_text(f"{escape(name or _default_llm())}: {escape(str(folder))}")


def fetch_llm_with_progress(name: str = "") -> Path:
    """The folder of an LLM, by default DEFAULT_LLM, which is downloaded unless it is cached. Raises CommandError."""
    from vidlex.model.weights import WeightsError, fetch_llm

    with progress("language model", total=None) as bar:
        try:
            return fetch_llm(
                name or _default_llm(), progress=lambda message: bar.update(bar.task_ids[0], description=message)
            )
        except WeightsError as error:
            raise CommandError(str(error)) from None


def _default_llm() -> str:
    from vidlex.model.weights import DEFAULT_LLM

    return DEFAULT_LLM
