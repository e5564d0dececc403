"""`vidlex webhooks`: secrets and deliveries of webhooks."""

from __future__ import annotations

import time
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape
from rich.table import Table

from vidlex.service.commands.connection import DEFAULT_URL, UrlOption, connected
from vidlex.service.commands.output import (
    EXIT_FAILED,
    EXIT_USAGE,
    CommandError,
    JsonFlag,
    print_json,
    print_text,
    stderr,
    stdout,
    use_json,
)

if TYPE_CHECKING:
    from vidlex.service.client.client import Client
    from vidlex.service.schemas.webhooks import DeliveryDetailsView

app = typer.Typer(no_args_is_help=True, help="Secrets that sign webhooks, and what became of their deliveries.")
secrets_app = typer.Typer(no_args_is_help=True, help="Create, list and delete secrets. All of them sign.")
app.add_typer(secrets_app, name="secrets")

Address = Annotated[str, typer.Argument(metavar="ADDRESS", help="https:// address that webhooks are sent to.")]
_TEST_SECONDS = 20.0
_POLL_SECONDS = 0.3


@secrets_app.command("create")
def create_secret(url: UrlOption = DEFAULT_URL, as_json: JsonFlag = False) -> None:
    """Create a secret and print it. It is shown only once."""
    use_json(as_json)
    with connected(url) as client:
        made = client.webhooks.create_secret()
    if as_json:
        print_json(made.model_dump(mode="json"))
        return
    stderr().print(f"created {made.id}. The secret is shown only once:")
    print(made.secret)


@secrets_app.command("list")
def list_secrets(url: UrlOption = DEFAULT_URL, as_json: JsonFlag = False) -> None:
    """List the secrets without their text, oldest first. With --json one line each."""
    use_json(as_json)
    with connected(url) as client:
        found = client.webhooks.secrets()
    table = Table("id", "created")
    for secret in found:
        if as_json:
            print_json(secret.model_dump(mode="json"))
        table.add_row(secret.id, _time(secret.created_at_ms))
    if not as_json:
        stdout().print(table if found else "no secrets")


@secrets_app.command("delete")
def delete_secret(
    secret_id: Annotated[str, typer.Argument(metavar="ID", help="Id of the secret.")],
    url: UrlOption = DEFAULT_URL,
    as_json: JsonFlag = False,
) -> None:
    """Delete a secret. It signs nothing any more."""
    use_json(as_json)
    with connected(url) as client:
        client.webhooks.delete_secret(secret_id)
    print_json({"deleted": secret_id}) if as_json else print_text(f"deleted {escape(secret_id)}")


@app.command("test")
def test(
    address: Address,
    url: UrlOption = DEFAULT_URL,
    cloud_events: Annotated[bool, typer.Option("--cloud-events", help="As an envelope of CloudEvents 1.0.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Send a test event and show the answer of its first try. Fails unless that is 2xx."""
    use_json(as_json)
    with connected(url) as client:
        delivery = _first_try(client, client.webhooks.test(address, cloud_events=cloud_events).id)
    if as_json:
        print_json(delivery.model_dump(mode="json"))
    else:
        _print_attempts(delivery)
    if delivery.state != "succeeded":
        raise CommandError(f"delivery {delivery.id} has not succeeded yet", exit_code=EXIT_FAILED)


@app.command("list")
def list_deliveries(
    url: UrlOption = DEFAULT_URL,
    state: Annotated[
        Literal["pending", "succeeded", "failed"] | None, typer.Option(help="Only deliveries in this state.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of deliveries.")] = 50,
    as_json: JsonFlag = False,
) -> None:
    """List the deliveries of the last seven days, newest first. With --json one line each."""
    use_json(as_json)
    table = Table("id", "created", "type", "state", "tries", "status", "address")
    with connected(url) as client:
        found = client.webhooks.deliveries(state=state, page_size=min(limit, 200))
        for _, item in zip(range(limit), found, strict=False):
            if as_json:
                print_json(item.model_dump(mode="json"))
                continue
            status = "-" if item.last_status is None else str(item.last_status)
            row = (item.id, _time(item.created_at_ms), item.type, item.state, str(item.num_attempts), status)
            table.add_row(*row, escape(item.url))
    if not as_json:
        stdout().print(table if table.row_count else "no deliveries")


@app.command("show")
def show(
    delivery_id: Annotated[str, typer.Argument(metavar="ID", help="Id of the delivery.")],
    url: UrlOption = DEFAULT_URL,
    as_json: JsonFlag = False,
) -> None:
    """Show a delivery: its body, and its tries with their answers."""
    use_json(as_json)
    with connected(url) as client:
        delivery = client.webhooks.delivery(delivery_id)
    if as_json:
        print_json(delivery.model_dump(mode="json"))
        return
    print_text(f"{delivery.id} {delivery.type}: {delivery.state}", markup=False)
    print_text(delivery.url, markup=False)
    print_text(delivery.body, markup=False)
    _print_attempts(delivery)


@app.command("replay")
def replay(
    delivery_ids: Annotated[list[str] | None, typer.Argument(metavar="[ID...]", help="Ids of deliveries.")] = None,
    *,
    failed_hours: Annotated[
        float | None, typer.Option(min=0, max=168, help="Instead of ids: all that failed in the last hours.")
    ] = None,
    url: UrlOption = DEFAULT_URL,
    as_json: JsonFlag = False,
) -> None:
    """Send deliveries again, with the same ids."""
    use_json(as_json)
    if bool(delivery_ids) == (failed_hours is not None):
        raise CommandError("give ids or --failed-hours", exit_code=EXIT_USAGE)
    num_queued = 0
    with connected(url) as client:
        for delivery_id in delivery_ids or ():
            client.webhooks.replay(delivery_id)
            num_queued += 1
        if failed_hours is not None:
            since_ms = max(0, int((time.time() - failed_hours * 3600) * 1000))
            while True:
                replayed = client.webhooks.replay_failed(since_ms)
                num_queued += replayed.num_queued
                if not replayed.has_more or not replayed.num_queued:
                    break
    print_json({"num_queued": num_queued}) if as_json else print_text(f"{num_queued} deliveries are due")


@app.command("endpoints")
def endpoints(url: UrlOption = DEFAULT_URL, as_json: JsonFlag = False) -> None:
    """List the addresses that deliveries were sent to, and those that are disabled. With --json one line each."""
    use_json(as_json)
    with connected(url) as client:
        found = client.webhooks.endpoints()
    table = Table("address", "last try", "last success", "failures since", "disabled")
    for item in found:
        if as_json:
            print_json(item.model_dump(mode="json"))
        times = (_time(item.last_attempt_at_ms), _time(item.last_success_at_ms))
        table.add_row(escape(item.url), *times, str(item.num_failures), _time(item.disabled_at_ms))
    if not as_json:
        stdout().print(table if found else "no endpoints")


@app.command("enable")
def enable(address: Address, url: UrlOption = DEFAULT_URL, as_json: JsonFlag = False) -> None:
    """Enable an address that is disabled because it answered 410."""
    use_json(as_json)
    with connected(url) as client:
        client.webhooks.enable(address)
    print_json({"enabled": address}) if as_json else print_text(f"enabled {escape(address)}")


def _first_try(client: Client, delivery_id: str) -> DeliveryDetailsView:
    end = time.monotonic() + _TEST_SECONDS
    while True:
        delivery = client.webhooks.delivery(delivery_id)
        if delivery.attempts or time.monotonic() > end:
            return delivery
        time.sleep(_POLL_SECONDS)


def _print_attempts(delivery: DeliveryDetailsView) -> None:
    for attempt in delivery.attempts:
        said = attempt.error or " ".join((attempt.answer or "").split())
        said = "".join(character if character.isprintable() else "?" for character in said)
        status = "no answer" if attempt.status is None else str(attempt.status)
        print_text(f"{_time(attempt.at_ms)} {status} {attempt.duration_ms} ms {said}", markup=False)
    if delivery.next_attempt_at_ms is not None:
        print_text(f"next try: {_time(delivery.next_attempt_at_ms)}", markup=False)


def _time(at_ms: int | None) -> str:
    if at_ms is None:
        return "-"
    return datetime.fromtimestamp(at_ms / 1000).astimezone().isoformat(" ", "seconds")
