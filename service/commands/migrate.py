"""`vidlex migrate`: bring the label store to the newest schema. `vidlex serve` does it at every start as well."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vidlex.service.commands.output import CommandError, JsonFlag, print_json, stdout, use_json
from vidlex.service.commands.serve import settings_or_error
from vidlex.service.commands.stores import opened_store


def migrate(
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder of the embedded store (VIDLEX_DATA_DIR, ~/.local/share/vidlex).")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Bring the label store to the newest schema. Safe to repeat, and to interrupt.

    Stop services of the older version first: what they write to a migrated store lacks what is new.
    """
    use_json(as_json)
    import redis

    from vidlex.migrations.runner import MigrationError, pending, schema_version
    from vidlex.migrations.runner import migrate as apply

    with opened_store(settings_or_error(data_dir=data_dir)) as client:
        try:
            todo = pending(client) if dry_run else {}
            applied = [] if dry_run else apply(client)
            version = schema_version(client)
        except MigrationError as error:
            raise CommandError(str(error)) from None
        except redis.RedisError as error:
            raise CommandError(f"the label store does not answer ({type(error).__name__})") from None
    if dry_run:
        _print_pending(todo, version, as_json=as_json)
    elif as_json:
        print_json({"applied": applied, "schema": version})
    else:
        stdout().print(f"schema {version}: {', '.join(applied) or 'nothing to do'}", markup=False)


def _print_pending(todo: dict[str, dict[str, int]], version: int, *, as_json: bool) -> None:
    if as_json:
        print_json({"pending": todo, "schema": version})
        return
    stdout().print(f"schema {version}: {len(todo)} migrations to apply", markup=False)
    for name, counts in todo.items():
        detail = ", ".join(f"{count} {what}" for what, count in counts.items())
        stdout().print(f"{name}{': ' if detail else ''}{detail}", markup=False)
