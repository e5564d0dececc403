"""`vidlex keys`: API keys, managed through the HTTP interface or directly in the label store."""

from __future__ import annotations

import getpass
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape
from rich.table import Table

from vidlex.service.client.errors import VidlexClientError
from vidlex.service.commands.connection import DEFAULT_URL, UrlOption, connected
from vidlex.service.commands.output import (
    EXIT_USAGE,
    CommandError,
    JsonFlag,
    print_json,
    print_text,
    stderr,
    stdout,
    use_json,
)
from vidlex.service.errors import VidlexError

if TYPE_CHECKING:
    import redis

    from vidlex.service.access.key_store import KeyStore
    from vidlex.service.settings import Settings

app = typer.Typer(no_args_is_help=True, help="Create, list and revoke API keys.")

DirectFlag = Annotated[
    bool,
    typer.Option(
        "--direct",
        help="Access the label store (VIDLEX_REDIS_URL or --data-dir) instead of the service: for the first key.",
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        help="With --direct: the data folder of the service, if it has an embedded store. "
        "Default: VIDLEX_DATA_DIR, else ~/.local/share/vidlex."
    ),
]


@app.command("create")
def create(
    *,
    url: UrlOption = DEFAULT_URL,
    direct: DirectFlag = False,
    data_dir: DataDir = None,
    scope: Annotated[
        Literal["read", "write", "admin"],
        typer.Option(help="read: list and classify; write: also change labels; admin: everything."),
    ] = "read",
    namespace: Annotated[str, typer.Option(help="Namespace that the key can access; * for all.")] = "*",
    name: Annotated[str, typer.Option(help="Name shown in the list.")] = "",
    expires_in_days: Annotated[
        float | None, typer.Option(min=0.0001, max=3650, help="Lifetime in days. Default: unlimited.")
    ] = None,
    requests_per_second: Annotated[
        float | None,
        typer.Option(min=0, help="Rate limit in requests per second; 0: unlimited. Default: of the service."),
    ] = None,
    burst: Annotated[
        int | None, typer.Option(min=1, help="Requests allowed at once by the rate limit. Default: of the service.")
    ] = None,
    max_labels: Annotated[
        int | None, typer.Option(min=0, help="Maximum number of labels in a namespace. Default: of the service.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Create a key and print its secret. The secret is shown only once."""
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
    settings = _direct_settings(direct, data_dir)
    if settings is not None:
        created = _create_in_store(settings, body, url)
    else:
        with connected(url) as client:
            created = client.create_key(**body).model_dump(mode="json")
    if as_json:
        print_json(created)
    else:
        if settings is not None:
            stderr().print(f"in {escape(created['store'])}", soft_wrap=True)
            if created["service_uses_it"] is False:
                stderr().print(
                    f"[bold yellow]The service at {escape(url)} uses another store: this key is not for it.[/] Name "
                    "its folder with --data-dir, or its server with VIDLEX_REDIS_URL.",
                    soft_wrap=True,
                )
        facts = f"{created['scope']}, namespace {escape(created['namespace'])}"
        stderr().print(f"created key {created['id']} ({facts}). The secret is shown only once:", soft_wrap=True)
        print(created["key"])


@app.command("list")
def list_keys(
    url: UrlOption = DEFAULT_URL, direct: DirectFlag = False, data_dir: DataDir = None, as_json: JsonFlag = False
) -> None:
    """List the keys, oldest first. With --json one key per line."""
    use_json(as_json)
    settings = _direct_settings(direct, data_dir)
    if settings is not None:
        with _key_store(settings) as store:
            rows = [{**vars(record), "digest": None, "last_used_at_ms": used} for record, used in store.list()]
            for row in rows:
                row["namespace"] = row["namespace"] or "*"
                del row["digest"]
    else:
        with connected(url) as client:
            rows = [key.model_dump(mode="json") for key in client.list_keys()]
    if as_json:
        for row in rows:
            print_json(row)
        return
    table = Table("id", "scope", "namespace", "name", "expires", "last used")
    for row in rows:
        times = (_format_time(row.get("expires_at_ms")), _format_time(row.get("last_used_at_ms")))
        table.add_row(row["id"], row["scope"], escape(row["namespace"]), escape(row["name"]), *times)
    stdout().print(table if rows else "no keys")


@app.command("revoke")
def revoke(
    key_ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Ids of keys; see `vidlex keys list`.")],
    url: UrlOption = DEFAULT_URL,
    direct: DirectFlag = False,
    data_dir: DataDir = None,
    as_json: JsonFlag = False,
) -> None:
    """Revoke keys. All replicas reject them within one second."""
    use_json(as_json)
    settings = _direct_settings(direct, data_dir)
    if settings is not None:
        with _key_store(settings) as store:
            for key_id in key_ids:
                store.revoke(key_id)
    else:
        with connected(url) as client:
            for key_id in key_ids:
                client.revoke_key(key_id)
    if as_json:
        print_json({"revoked": key_ids})
    else:
        print_text(f"revoked {escape(', '.join(key_ids))}")


def _direct_settings(direct: bool, data_dir: Path | None) -> Settings | None:
    """Of the store to access; None: over HTTP."""
    from vidlex.service.commands.preflight import settings_or_error

    if not direct:
        if data_dir is not None:
            raise CommandError("--data-dir is for --direct", exit_code=EXIT_USAGE)
        return None
    settings = settings_or_error(data_dir=data_dir)
    if data_dir is not None and settings.redis_url is not None:
        raise CommandError("--data-dir is not used: VIDLEX_REDIS_URL names the store", exit_code=EXIT_USAGE)
    return settings


def _create_in_store(settings: Settings, body: dict[str, Any], url: str) -> dict[str, Any]:
    from vidlex.service.access.access_control import create_key_record
    from vidlex.service.access.key_store import KeyStore
    from vidlex.service.commands.stores import shown_store
    from vidlex.service.labels.store.identity import read_store_id
    from vidlex.service.labels.store.redis_keys import Keys

    seconds = body.pop("expires_in_seconds", None)
    namespace = None if body["namespace"] == "*" else body["namespace"]
    try:
        if namespace is not None:
            Keys(namespace)
    except ValueError as error:
        raise CommandError(str(error), exit_code=EXIT_USAGE) from None
    expires_at_ms = None if seconds is None else time.time_ns() // 1_000_000 + seconds * 1000
    record, secret = create_key_record(**{**body, "namespace": namespace, "expires_at_ms": expires_at_ms})
    shown = shown_store(settings)
    with _opened(settings) as client:
        KeyStore(client).add(record)
        service_uses_it = _uses_store(url, read_store_id(client))
    facts = {"id": record.id, "scope": record.scope, "namespace": namespace or "*", "name": record.name}
    return facts | {"key": secret, "store": shown, "service_uses_it": service_uses_it}


def _uses_store(url: str, store_id: str | None) -> bool | None:
    """Whether the service at ``url`` uses this store; None if there is no service."""
    from vidlex.service.client.client import Client
    from vidlex.service.client.config import NO_WAIT
    from vidlex.service.labels.store.identity import SHOWN_ID_CHARS

    try:
        with Client(url, timeout_seconds=2.0, connect_seconds=2.0, retries=NO_WAIT) as client:
            used = re.search(r"store ([0-9a-f]+)$", client.ready().checks["store"].detail)
    except (VidlexClientError, LookupError):
        return None
    return None if used is None else used[1] == (store_id or "")[:SHOWN_ID_CHARS]


@contextmanager
def _key_store(settings: Settings) -> Iterator[KeyStore]:
    from vidlex.service.access.key_store import KeyStore

    with _opened(settings) as client:
        yield KeyStore(client)


@contextmanager
def _opened(settings: Settings) -> Iterator[redis.Redis]:
    from vidlex.service.audit import AuditLog, recording
    from vidlex.service.commands.stores import shared_store

    audit = AuditLog(settings.audit_log, settings.data_dir, stdout=sys.stderr)  # the key is on standard output
    with recording() as changes:
        try:
            with shared_store(settings) as client:
                yield client
        except VidlexError as error:
            raise CommandError(str(error)) from None
        finally:
            audit.write_changes(changes, {"command": "vidlex keys", "user": _user()})
            audit.close()


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no name for the number
        return str(os.getuid())


def _format_time(time_ms: int | None) -> str:
    return "" if time_ms is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(time_ms / 1000))
