"""`vidlex models`: replaces the model of a running service."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from vidlex.service.commands.connection import DEFAULT_URL, UrlOption, connected
from vidlex.service.commands.output import CommandError, JsonFlag, print_json, print_text, progress, stdout, use_json

if TYPE_CHECKING:
    from vidlex.service.client.client import Client
    from vidlex.service.schemas.models import ModelsView

POLL_SECONDS = 0.5

app = typer.Typer(no_args_is_help=True, help="Replace the model of a running service without a restart.")


@app.command("list")
def list_models(url: UrlOption = DEFAULT_URL, as_json: JsonFlag = False) -> None:
    """List the loaded models and the number of labels that each has encoded."""
    _change(lambda client: client.models(), url, as_json=as_json)


@app.command("reembed")
def reembed(
    model: Annotated[str, typer.Argument(help="A zoo name, or a model in VIDLEX_ALLOWED_MODELS of the service.")],
    url: UrlOption = DEFAULT_URL,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until every label is encoded.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Load MODEL and encode all labels with it, while the served model keeps serving.

    Safe to interrupt and repeat: encoding continues where it stopped.
    """
    use_json(as_json)
    with connected(url) as client:
        state = client.prepare_model(model)
        if wait:
            state = _wait(client, model)
        _show(state, as_json=as_json)


@app.command("diff")
def diff(
    url: UrlOption = DEFAULT_URL,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Maximum number of labels, largest change first.")] = 20,
    as_json: JsonFlag = False,
) -> None:
    """Compare the prepared model (or the previous one) with the served one on recently classified videos."""
    use_json(as_json)
    with connected(url) as client:
        found = client.diff_models(limit=limit).model_dump(mode="json")
    if as_json:
        print_json(found)
        return
    table = Table("label", "old score", "new score", "change", "gained", "lost", "rank change")
    for row in found["labels"]:
        scores = [f"{row['mean_score_old']:.3f}", f"{row['mean_score_new']:.3f}", f"{row['mean_shift']:+.3f}"]
        counts = [str(row["num_gained"]), str(row["num_lost"]), f"{row['mean_rank_move']:+.1f}"]
        table.add_row(escape(row["name"]), *scores, *counts)
    stdout().print(table)
    known = [value for value in found["rank_correlation"] if value is not None]
    mean = f"{sum(known) / len(known):.3f}" if known else "unknown"
    videos, labels = found["num_videos"], found["num_labels"]
    print_text(f"{videos} videos, {labels} labels; mean rank correlation {mean}")


@app.command("activate")
def activate(url: UrlOption = DEFAULT_URL, as_json: JsonFlag = False) -> None:
    """Serve the prepared model. Fails until all labels are encoded."""
    _change(lambda client: client.activate_model(), url, as_json=as_json)


@app.command("rollback")
def rollback(url: UrlOption = DEFAULT_URL, as_json: JsonFlag = False) -> None:
    """Serve the previous model again."""
    _change(lambda client: client.rollback_model(), url, as_json=as_json)


@app.command("drop")
def drop(
    fingerprint: Annotated[str, typer.Argument(help="Fingerprint of the model; see `vidlex models list`.")],
    url: UrlOption = DEFAULT_URL,
    as_json: JsonFlag = False,
) -> None:
    """Unload a model that is not served, and delete its vectors."""
    _change(lambda client: client.drop_model(fingerprint), url, as_json=as_json)


def _change(request: Callable[[Client], ModelsView], url: str, *, as_json: bool) -> None:
    use_json(as_json)
    with connected(url) as client:
        _show(request(client), as_json=as_json)


def _wait(client: Client, model: str) -> ModelsView:
    with progress("encoding labels", total=None) as bar:
        while True:
            state = client.models()
            if state.problem is not None:
                raise CommandError(f"{model}: {state.problem}")
            prepared = state.prepared
            if prepared is not None:
                bar.update(bar.task_ids[0], completed=prepared.num_encoded, total=state.num_labels)
                if prepared.complete:
                    return state
            elif state.loading is None:
                raise CommandError(f"{model} is no longer being prepared")
            time.sleep(POLL_SECONDS)


def _show(state: ModelsView, *, as_json: bool) -> None:
    if as_json:
        print_json(state.model_dump(mode="json"))
        return
    table = Table("", "model", "fingerprint", "labels encoded")
    for role, model in (("served", state.served), ("previous", state.previous), ("prepared", state.prepared)):
        if model is not None:
            encoded = f"{model.num_encoded} of {state.num_labels}"
            if model.num_refused:
                encoded += f", {model.num_refused} failed"
            table.add_row(role, escape(model.model), model.fingerprint, encoded)
    stdout().print(table)
    if state.loading:
        print_text(f"loading {escape(state.loading)}")
