"""`vidlex migrate`: bring the label store to the newest schema. `vidlex serve` does it at every start as well."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.commands.output import CommandError, JsonFlag, print_json, stdout, use_json
from service.commands.serve import settings_or_error
from service.errors import VidlexError
from service.settings import Settings

if TYPE_CHECKING:
    import redis


def migrate(
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder of the embedded store (VIDLEX_DATA_DIR, ~/.local/share/vidlex).")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Bring the label store to the newest schema. Safe to repeat."""
    use_json(as_json)
    import redis

    from migrations.runner import MigrationError, schema_version
    from migrations.runner import migrate as apply

    with _store(settings_or_error(data_dir=data_dir)) as client:
        try:
            applied, version = apply(client), schema_version(client)
        except MigrationError as error:
            raise CommandError(str(error)) from None
        except redis.RedisError as error:
            raise CommandError(f"the label store does not answer ({type(error).__name__})") from None
    if as_json:
        print_json({"applied": applied, "schema": version})
    else:
        stdout().print(f"schema {version}: {', '.join(applied) or 'nothing to do'}", markup=False)


@contextmanager
def _store(settings: Settings) -> Iterator[redis.Redis]:
    """A client of the configured server, or of the embedded one, started for this command alone."""
    from service.labels.client import connect_url
    from service.labels.embedded import EmbeddedStore

    if settings.redis_url is not None:
        client = connect_url(settings.redis_url.get_secret_value())
        try:
            yield client
        finally:
            client.close()
        return
    store = EmbeddedStore(settings.data_dir)
    try:
        store.start()
    except VidlexError as error:
        raise CommandError(str(error)) from None
    try:
        yield store.client()
    finally:
        store.stop()
