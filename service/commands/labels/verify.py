"""`vidlex labels verify`: checks the consistency of the label store, and repairs it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vidlex.service.commands.output import CommandError, JsonFlag, print_json, print_text, use_json
from vidlex.service.commands.preflight import settings_or_error
from vidlex.service.commands.stores import shared_store
from vidlex.service.errors import VidlexError


def verify(
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Folder of the embedded store. Default: VIDLEX_DATA_DIR, else ~/.local/share/vidlex."),
    ] = None,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="Solve what can be solved: restore damaged records of which one byte is wrong, set others aside, "
            "derive the indexes again, remove damaged vectors (the service encodes them again).",
        ),
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Rebuild every index of the label store in memory and compare it with the stored one. Read-only without --repair.

    Accesses the store directly. Services may keep running; a namespace that changes all the time cannot be verified.
    A label with a damaged record is left out of all answers until it is repaired.
    """
    use_json(as_json)
    from vidlex.service.labels.store.namespaces import list_namespaces
    from vidlex.service.labels.store.verify import repair_namespace, verify_namespace

    done: dict[str, list[str]] = {}
    with shared_store(settings_or_error(data_dir=data_dir)) as client:
        try:
            namespaces = list_namespaces(client)
            if repair:
                done = {namespace: repair_namespace(client, namespace) for namespace in namespaces}
            found = {namespace: verify_namespace(client, namespace) for namespace in namespaces}
        except VidlexError as error:
            raise CommandError(str(error)) from None
    if as_json:
        print_json(
            {"namespaces": found, "consistent": not any(found.values())} | ({"repaired": done} if repair else {})
        )
    else:
        for namespace, lines in done.items():
            for line in lines:
                print_text(f"{namespace}: {line}", markup=False)
        for namespace, problems in found.items():
            print_text(f"{namespace}: {'consistent' if not problems else f'{len(problems)} problems'}", markup=False)
            for problem in problems:
                print_text(f"  {problem}", markup=False)
        if not found:
            print_text("the store is empty", markup=False)
    if any(found.values()):
        raise CommandError("the label store is inconsistent")
