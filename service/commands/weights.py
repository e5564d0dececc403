"""`vidlex weights`: weights that are downloaded once and cached."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.markup import escape

from vidlex.model.specs import ALIASES, ModelNotFound, check_spec, is_checkpoint_spec, list_zoo
from vidlex.service.commands.output import (
    EXIT_USAGE,
    CommandError,
    JsonFlag,
    print_json,
    print_text,
    progress,
    use_json,
)

T = TypeVar("T")

app = typer.Typer(no_args_is_help=True, help="Download weights into the cache.")


@app.command("fetch")
def fetch(
    name: Annotated[
        str,
        typer.Argument(
            help=f"A model ({', '.join((*list_zoo(), *ALIASES))} or another one of `vidlex serve --model`), or an LLM: "
            "a name on the model hub or a local folder. Default: the LLM and the image tower of the shipped models."
        ),
    ] = "",
    as_json: JsonFlag = False,
) -> None:
    """Download weights into the cache, so that the first start needs no network. With --json one line per folder."""
    use_json(as_json)
    for shown, path in _fetch(name, as_json=as_json):
        if as_json:
            print_json({"name": shown, "path": str(path)})
        else:
            print_text(f"{escape(shown)}: {escape(str(path))}")


def _fetch(name: str, *, as_json: bool) -> list[tuple[str, Path]]:
    from vidlex.model.weights.llm import DEFAULT_LLM, fetch_llm
    from vidlex.model.weights.tower import DEFAULT_TOWER, fetch_tower

    if name and _is_model(name):
        return [(name, path) for path in fetch_model_weights(name, as_json=as_json)]
    llm = name or DEFAULT_LLM
    found = [(llm, with_progress("language model", lambda report: fetch_llm(llm, report)))]
    if not name:
        found.append((DEFAULT_TOWER, with_progress("image tower", lambda report: fetch_tower(DEFAULT_TOWER, report))))
    return found


def _is_model(name: str) -> bool:
    try:
        check_spec(name)
    except ModelNotFound:
        return not is_checkpoint_spec(name)
    return True


def fetch_model_weights(spec: str, *, as_json: bool = False) -> list[Path]:
    """What ``spec`` needs and Vidlex does not contain, with a progress bar on a terminal. Raises CommandError."""
    from vidlex.model.weights.model import fetch_model

    if is_checkpoint_spec(spec):
        return with_progress("weights", lambda report: fetch_model(spec, report))
    show_bar = not as_json and sys.stderr.isatty()  # the hub's, in bytes
    return _or_error(lambda: fetch_model(spec, show_bar=show_bar))


def with_progress(description: str, fetch: Callable[[Callable[[str], None]], T]) -> T:
    """What ``fetch`` returns; its messages are shown on a terminal. Raises CommandError."""
    with progress(description, total=None) as bar:
        return _or_error(lambda: fetch(lambda message: bar.update(bar.task_ids[0], description=message)))


def _or_error(fetch: Callable[[], T]) -> T:
    from vidlex.model.weights.cache import WeightsError

    try:
        return fetch()
    except ModelNotFound as error:
        raise CommandError(str(error), exit_code=EXIT_USAGE) from None
    except WeightsError as error:
        raise CommandError(str(error)) from None
