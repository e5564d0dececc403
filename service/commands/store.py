"""`vidlex store`: checks, repairs and accepts the label store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vidlex.service.commands.output import EXIT_USAGE, CommandError, JsonFlag, print_json, print_text, use_json
from vidlex.service.commands.preflight import settings_or_error
from vidlex.service.commands.stores import opened_store, shared_store, shown_store, uses_running_store
from vidlex.service.errors import StoreUnavailable, VidlexError

if TYPE_CHECKING:
    import redis

    from vidlex.service.labels.embedded.log_repair import LogReport
    from vidlex.service.labels.embedded.server_files import ServerFiles
    from vidlex.service.settings import Settings

app = typer.Typer(no_args_is_help=True, help="Check, repair or accept the label store.")

DataDir = Annotated[
    Path | None,
    typer.Option(help="Folder of the embedded store. Default: VIDLEX_DATA_DIR, else ~/.local/share/vidlex."),
]


@app.command("check")
def check(data_dir: DataDir = None, as_json: JsonFlag = False) -> None:
    """Whether the store keeps what it acknowledges, is the one used before, and has whole files. Repairs nothing."""
    use_json(as_json)
    settings = settings_or_error(data_dir=data_dir)
    found: dict[str, Any] = {"store": shown_store(settings), "problems": [], "notes": []}
    is_new = False
    if settings.redis_url is None and not uses_running_store(settings):
        from vidlex.service.labels.embedded.log_repair import LOG_FOLDER, check_log

        with _locked_files(settings) as files:
            is_new = not (files.has_started or (files.folder / LOG_FOLDER).exists())
            if is_new:
                found["notes"].append("no service has stored anything here yet")
            else:
                report = check_log(files.folder)
                found["files"] = {"count": report.num_files, "bytes": report.num_bytes}
                found["problems"] += [*report.problems, *report.lost]
    if not (is_new or found["problems"]):
        with shared_store(settings) as client:
            _check_server(settings, client, found)
    if as_json:
        print_json(found | {"healthy": not found["problems"]})
    else:
        print_text(str(found["store"]), markup=False)
        for kind in ("problems", "notes"):
            for line in found[kind]:
                print_text(f"{kind[:-1]}: {line}", markup=False)
    if found["problems"]:
        raise CommandError("the label store is not healthy")


@app.command("repair")
def repair(data_dir: DataDir = None, as_json: JsonFlag = False) -> None:
    """Repair the embedded store's append-only files, then the labels. The service must be stopped.

    Only damaged transactions are left out; a copy of the files as they were is kept. Lost files, and a
    damaged snapshot, need a backup (`vidlex restore`) or `vidlex store accept --start-empty`. The labels of a Redis
    server are repaired by `vidlex labels verify --repair`.
    """
    use_json(as_json)
    settings = settings_or_error(data_dir=data_dir)
    if settings.redis_url is not None:
        raise CommandError(
            "this repairs the embedded store; of a server, run `redis-check-aof` or `valkey-check-aof` on its files, "
            "then `vidlex labels verify --repair`",
            exit_code=EXIT_USAGE,
        )
    from vidlex.service.labels.embedded.log_repair import repair_log
    from vidlex.service.labels.store.namespaces import list_namespaces
    from vidlex.service.labels.store.verify import repair_namespace

    with _locked_files(settings) as files:
        report = repair_log(files.folder)
    if report.lost:
        _print_report(report, {}, as_json=as_json)
        raise CommandError(
            f"{'; '.join(report.lost)}: restore a backup, or begin without labels: `vidlex store accept --start-empty`"
        )
    done: dict[str, list[str]] = {}
    try:
        with opened_store(settings) as client:
            if report.dropped:
                done = {namespace: repair_namespace(client, namespace) for namespace in list_namespaces(client)}
    except (VidlexError, CommandError) as error:
        raise CommandError(
            f"the repaired files still cannot be read ({error}): the snapshot is damaged. Restore a backup, or begin "
            "without labels: `vidlex store accept --start-empty`"
        ) from None
    _print_report(report, done, as_json=as_json)


@app.command("accept")
def accept(
    data_dir: DataDir = None,
    start_empty: Annotated[
        bool,
        typer.Option(
            "--start-empty", help="Put unreadable files of the embedded store aside and begin without labels."
        ),
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Use the store as it is, although it lost its data or is another one than before. Then restart every service.

    A service refuses such a store, because it would need no API key any more and clients would see no labels.
    """
    use_json(as_json)
    settings = settings_or_error(data_dir=data_dir)
    from vidlex.migrations.runner import MigrationError
    from vidlex.migrations.runner import migrate as apply
    from vidlex.service.access.key_store import KeyStore
    from vidlex.service.labels.store.identity import KnownStores, accept_store, ensure_store_id, location_of

    aside = _put_aside(settings) if start_empty else None
    location = location_of(settings.redis_url.get_secret_value() if settings.redis_url else None)
    known = KnownStores(settings.data_dir)
    with shared_store(settings) as client:
        try:
            accept_store(client, known.get(location))
            apply(client)
            store_id = ensure_store_id(client)
            num_keys = len(KeyStore(client).load()[1])
            known.put(location, store_id)
        except (VidlexError, MigrationError, OSError) as error:
            raise CommandError(str(error)) from None
    shown = shown_store(settings)
    if as_json:
        print_json({"store": shown, "id": store_id, "api_keys": num_keys, "set_aside": aside and str(aside)})
        return
    print_text(f"accepted {shown}; restart every service that uses it", markup=False)
    if aside is not None:
        print_text(f"the unreadable files are in {aside}", markup=False)
    if not num_keys:
        print_text(
            "it has no API keys: create one with `vidlex keys create --direct --scope admin` before you start the "
            "service",
            markup=False,
        )


def _check_server(settings: Settings, client: redis.Redis, found: dict[str, Any]) -> None:
    from vidlex.service.labels.store.durability import check_durability, probe_write
    from vidlex.service.labels.store.identity import HOW_TO_RETURN, KnownStores, is_expected_store, location_of

    location = location_of(settings.redis_url.get_secret_value() if settings.redis_url else None)
    try:
        durability = check_durability(client)
        found["problems"] += [*durability.problems, *durability.faults]
        found["notes"] += durability.notes
        if not is_expected_store(client, KnownStores(settings.data_dir).get(location)):
            found["problems"].append(f"it has lost its data, or is another store than before: {HOW_TO_RETURN}")
        else:
            probe_write(client)
    except StoreUnavailable as error:
        found["problems"].append(str(error))


def _put_aside(settings: Settings) -> Path | None:
    if settings.redis_url is not None:
        raise CommandError("--start-empty is for the embedded store; empty the server yourself", exit_code=EXIT_USAGE)
    from vidlex.service.labels.embedded.log_repair import LOG_FOLDER, set_log_aside

    with _locked_files(settings) as files:
        aside = set_log_aside(files.folder, keep=False) if (files.folder / LOG_FOLDER).exists() else None
        files.forget_started()
    return aside


@contextmanager
def _locked_files(settings: Settings) -> Iterator[ServerFiles]:
    """The files of the embedded store, which no service uses during the block."""
    from vidlex.service.labels.embedded.orphans import stop_orphaned_server
    from vidlex.service.labels.embedded.server_files import DataFolderInUse, ServerFiles

    files = ServerFiles(settings.data_dir)
    try:
        files.create()
        with files.lock_for_service():
            stop_orphaned_server(files)
            yield files
    except DataFolderInUse as error:
        raise CommandError(f"{error.internal or error}; stop that service first") from None
    except (StoreUnavailable, OSError) as error:
        raise CommandError(f"the data folder {settings.data_dir} cannot be used: {error}") from None


def _print_report(report: LogReport, done: dict[str, list[str]], *, as_json: bool) -> None:
    if as_json:
        facts = {"files": report.num_files, "bytes": report.num_bytes, "problems": report.problems, "lost": report.lost}
        dropped = [{"file": name, "start": start, "end": end} for name, start, end in report.dropped]
        print_json(facts | {"dropped": dropped, "copy": report.copy and str(report.copy), "labels": done})
        return
    for line in (*report.problems, *report.lost):
        print_text(line, markup=False)
    if report.copy is not None:
        print_text(f"repaired; the files as they were are in {report.copy}", markup=False)
    elif report.is_whole:
        print_text("the files are whole", markup=False)
    for namespace, lines in done.items():
        for line in lines:
            print_text(f"{namespace}: {line}", markup=False)
