"""`vidlex labels verify`: is the stored vocabulary whole?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vidlex.service.commands.output import CommandError, JsonFlag, print_json, stdout, use_json
from vidlex.service.commands.serve import settings_or_error
from vidlex.service.commands.stores import reached_store
from vidlex.service.errors import VidlexError


def verify(
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder of the embedded store (VIDLEX_DATA_DIR, ~/.local/share/vidlex).")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Derive every index of the label store anew and compare. Reads the store itself, not a service; changes nothing.

    Services may go on meanwhile; a namespace that is written to all the time cannot be judged.
    """
    use_json(as_json)
    from vidlex.service.labels.store.verify import namespaces, verify_namespace

    with reached_store(settings_or_error(data_dir=data_dir)) as client:
        try:
            found = {namespace: verify_namespace(client, namespace) for namespace in namespaces(client)}
        except VidlexError as error:
            raise CommandError(str(error)) from None
    if as_json:
        print_json({"namespaces": found, "whole": not any(found.values())})
    else:
        for namespace, problems in found.items():
            stdout().print(f"{namespace}: {'whole' if not problems else f'{len(problems)} problems'}", markup=False)
            for problem in problems:
                stdout().print(f"  {problem}", markup=False)
        if not found:
            stdout().print("no labels were ever stored here", markup=False)
    if any(found.values()):
        raise CommandError("the label store is not whole")
