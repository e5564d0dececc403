"""`vidlex migrate`: migrates the label store to the newest schema, as `vidlex serve` does at every start."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vidlex.service.commands.output import CommandError, JsonFlag, print_json, print_text, use_json
from vidlex.service.commands.preflight import settings_or_error
from vidlex.service.commands.stores import opened_store


def migrate(
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Folder of the embedded store. Default: VIDLEX_DATA_DIR, else ~/.local/share/vidlex."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list the pending migrations.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Migrate the label store to the newest schema. Safe to repeat and to interrupt.

    Stop services of the older version first: they write records of the old schema.
    """
    use_json(as_json)
    import redis

    from vidlex.migrations.runner import MigrationError, pending, schema_version
    from vidlex.migrations.runner import migrate as apply

    with opened_store(settings_or_error(data_dir=data_dir)) as client:
        try:
            steps = pending(client) if dry_run else {}
            applied = [] if dry_run else apply(client)
            version = schema_version(client)
        except MigrationError as error:
            raise CommandError(str(error)) from None
        except redis.RedisError as error:
            raise CommandError(f"the label store is unreachable ({type(error).__name__})") from None
    if dry_run:
        _print_pending(steps, version, as_json=as_json)
    elif as_json:
        print_json({"applied": applied, "schema": version})
    else:
        print_text(f"schema {version}: {', '.join(applied) or 'up to date'}", markup=False)


def _print_pending(steps: dict[str, dict[str, int]], version: int, *, as_json: bool) -> None:
    if as_json:
        print_json({"pending": steps, "schema": version})
        return
    print_text(f"schema {version}: {len(steps)} pending migrations", markup=False)
    for name, counts in steps.items():
        detail = ", ".join(f"{count} {kind}" for kind, count in counts.items())
        print_text(f"{name}{': ' if detail else ''}{detail}", markup=False)
