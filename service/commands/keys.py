"""`vidlex keys ...`: the API keys of a service, through its HTTP interface or straight in its store."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape
from rich.table import Table

from vidlex.service.commands.client import DEFAULT_URL, ServiceClient, UrlOption
from vidlex.service.commands.output import EXIT_USAGE, CommandError, JsonFlag, print_json, stderr, stdout, use_json
from vidlex.service.errors import VidlexError

if TYPE_CHECKING:
    from vidlex.service.access.key_store import KeyStore

app = typer.Typer(no_args_is_help=True, help="Make, list and revoke API keys.")

DirectFlag = Annotated[
    bool,
    typer.Option(
        help="Go to the store itself (VIDLEX_REDIS_URL or the data folder): for the first key, or a lost one."
    ),
]


@app.command("create")
def create(
    *,
    url: UrlOption = DEFAULT_URL,
    direct: DirectFlag = False,
    scope: Annotated[Literal["read", "write", "admin"], typer.Option(help="Each includes those before it.")] = "read",
    namespace: Annotated[str, typer.Option(help="The only namespace it reaches; * for any.")] = "*",
    name: Annotated[str, typer.Option(help="Who or what uses it.")] = "",
    expires_in_days: Annotated[float | None, typer.Option(min=0.0001, max=3650, help="Default: never.")] = None,
    requests_per_second: Annotated[float | None, typer.Option(min=0, help="Its own rate limit; 0: none.")] = None,
    burst: Annotated[int | None, typer.Option(min=1, help="Requests at once.")] = None,
    max_labels: Annotated[int | None, typer.Option(min=0, help="Its own quota on labels.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a key and print it: this once, nothing can show it again."""
    use_json(as_json)
    body: dict[str, Any] = {"scope": scope, "namespace": namespace, "name": name}
    seconds = None if expires_in_days is None else max(1, round(expires_in_days * 86_400))
    given = {
        "expires_in_seconds": seconds,
        "requests_per_second": requests_per_second,
        "burst": burst,
        "max_labels": max_labels,
    }
    body |= {key: value for key, value in given.items() if value is not None}
    if direct:
        made = _create_directly(body)
    else:
        with ServiceClient(url) as client:
            made = client.call("POST", "/keys", json=body)
    if as_json:
        print_json(made)
    else:
        stderr().print(f"key {made['id']} ({made['scope']}, namespace {escape(made['namespace'])}), shown this once:")
        print(made["key"])


@app.command("list")
def list_keys(url: UrlOption = DEFAULT_URL, direct: DirectFlag = False, as_json: JsonFlag = False) -> None:
    """Show the keys, oldest first. With --json one key a line."""
    use_json(as_json)
    if direct:
        with _key_store() as store:
            rows = [{**vars(record), "digest": None, "last_used_at_ms": used} for record, used in store.list()]
            for row in rows:
                row["namespace"] = row["namespace"] or "*"
                del row["digest"]
    else:
        with ServiceClient(url) as client:
            rows = client.call("GET", "/keys")["data"]
    if as_json:
        for row in rows:
            print_json(row)
        return
    table = Table("id", "scope", "namespace", "name", "expires", "last used")
    for row in rows:
        times = (_when(row.get("expires_at_ms")), _when(row.get("last_used_at_ms")))
        table.add_row(row["id"], row["scope"], escape(row["namespace"]), escape(row["name"]), *times)
    stdout().print(table if rows else "no keys")


@app.command("revoke")
def revoke(
    key_ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Ids, as `vidlex keys list` shows them.")],
    url: UrlOption = DEFAULT_URL,
    direct: DirectFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Revoke keys. Every replica refuses them within a second."""
    use_json(as_json)
    if direct:
        with _key_store() as store:
            for key_id in key_ids:
                store.revoke(key_id)
    else:
        with ServiceClient(url) as client:
            for key_id in key_ids:
                client.call("DELETE", f"/keys/{key_id}")
    if as_json:
        print_json({"revoked": key_ids})
    else:
        stdout().print(f"revoked {escape(', '.join(key_ids))}")


def _create_directly(body: dict[str, Any]) -> dict[str, Any]:
    from vidlex.service.access.gate import make_record
    from vidlex.service.labels.store.redis_keys import Keys

    seconds = body.pop("expires_in_seconds", None)
    namespace = None if body["namespace"] == "*" else body["namespace"]
    try:
        if namespace is not None:
            Keys(namespace)
    except ValueError as error:
        raise CommandError(str(error), exit_code=EXIT_USAGE) from None
    expires_at_ms = None if seconds is None else time.time_ns() // 1_000_000 + seconds * 1000
    record, text = make_record(**{**body, "namespace": namespace, "expires_at_ms": expires_at_ms})
    with _key_store() as store:
        store.add(record)
    return {"id": record.id, "scope": record.scope, "namespace": namespace or "*", "name": record.name, "key": text}


@contextmanager
def _key_store() -> Iterator[KeyStore]:
    """The configured server's keys, or the embedded one's: of the running service, else started for this command."""
    from vidlex.service.access.key_store import KeyStore
    from vidlex.service.commands.serve import settings_or_error
    from vidlex.service.commands.stores import reached_store

    try:
        with reached_store(settings_or_error()) as client:
            yield KeyStore(client)
    except VidlexError as error:
        raise CommandError(str(error)) from None


def _when(time_ms: int | None) -> str:
    return "" if time_ms is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(time_ms / 1000))
