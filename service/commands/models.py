"""`vidlex models`: replaces the model of a running service."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from vidlex.service.commands.client import DEFAULT_URL, ServiceClient, UrlOption
from vidlex.service.commands.output import CommandError, JsonFlag, print_json, print_text, progress, stdout, use_json

POLL_SECONDS = 0.5
ROLES = ("served", "previous", "prepared")

app = typer.Typer(no_args_is_help=True, help="Replace the model of a running service without a restart.")


@app.command("list")
def list_models(url: UrlOption = DEFAULT_URL, as_json: JsonFlag = False) -> None:
    """List the loaded models and the number of labels that each has encoded."""
    use_json(as_json)
    with ServiceClient(url) as client:
        _show(client.call("GET", "/models"), as_json=as_json)


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
    with ServiceClient(url) as client:
        state = client.call("POST", "/models:prepare", json={"model": model})
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
    with ServiceClient(url) as client:
        found = client.call("GET", "/models:diff", params={"limit": limit})
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
    _post("/models:activate", url, as_json=as_json)


@app.command("rollback")
def rollback(url: UrlOption = DEFAULT_URL, as_json: JsonFlag = False) -> None:
    """Serve the previous model again."""
    _post("/models:rollback", url, as_json=as_json)


@app.command("drop")
def drop(
    fingerprint: Annotated[str, typer.Argument(help="Fingerprint of the model; see `vidlex models list`.")],
    url: UrlOption = DEFAULT_URL,
    as_json: JsonFlag = False,
) -> None:
    """Unload a model that is not served, and delete its vectors."""
    _post("/models:drop", url, as_json=as_json, json={"fingerprint": fingerprint})


def _post(path: str, url: str, *, as_json: bool, **options: Any) -> None:
    use_json(as_json)
    with ServiceClient(url) as client:
        _show(client.call("POST", path, **options), as_json=as_json)


def _wait(client: ServiceClient, model: str) -> dict[str, Any]:
    with progress("encoding labels", total=None) as bar:
        while True:
            state: dict[str, Any] = client.call("GET", "/models")
            if state["problem"] is not None:
                raise CommandError(f"{model}: {state['problem']}")
            prepared = state["prepared"]
            if prepared is not None:
                bar.update(bar.task_ids[0], completed=prepared["num_encoded"], total=state["num_labels"])
                if prepared["complete"]:
                    return state
            elif state["loading"] is None:
                raise CommandError(f"{model} is no longer being prepared")
            time.sleep(POLL_SECONDS)


def _show(state: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(state)
        return
    table = Table("", "model", "fingerprint", "labels encoded")
    for role in ROLES:
        model = state[role]
        if model is not None:
            encoded = f"{model['num_encoded']} of {state['num_labels']}"
            if model["num_refused"]:
                encoded += f", {model['num_refused']} failed"
            table.add_row(role, escape(model["model"]), model["fingerprint"], encoded)
    stdout().print(table)
    if state["loading"]:
        print_text(f"loading {escape(state['loading'])}")
