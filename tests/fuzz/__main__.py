"""`python -m fuzz`, as run by `make fuzz`. Exit code 1 if a rule is broken."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from rich.console import Console

from fuzz.runner import FuzzOptions, run


def main(arguments: Sequence[str] | None = None) -> int:
    os.environ.setdefault("SVT_LOG", "1")  # errors only
    options, as_json = parse(arguments)
    words = sys.argv[1:] if arguments is None else arguments
    result = run(options)
    command = f'make fuzz ARGS="{" ".join(words)}"' if words else "make fuzz"
    result = result.model_copy(update={"machine": result.machine.model_copy(update={"command": command})})
    if as_json:
        print(json.dumps(result.document(), ensure_ascii=False))
    else:
        Console(highlight=False).print(result)
    return 0 if all(met for case in result.cases for met in case.targets) else 1


def parse(arguments: Sequence[str] | None = None) -> tuple[FuzzOptions, bool]:
    parser = argparse.ArgumentParser(
        prog="python -m fuzz",
        description="Send hostile and mutated videos to a service and check every answer.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    defaults = FuzzOptions()

    def add(flag: str, kind: type, text: str) -> None:
        name = flag.removeprefix("--").replace("-", "_")
        parser.add_argument(flag, type=kind, default=getattr(defaults, name), help=text)

    add("--num-files", int, "mutated files to send, after the hostile files")
    add("--num-clients", int, "concurrent clients")
    add("--num-decoders", int, "decode processes of the service")
    add("--seed", int, "seed of the mutations")
    add("--first-number", int, "number of the first mutation; with --num-files 1 it repeats a single one")
    add("--keep-dir", Path, "write each file that breaks a rule to this folder")
    add("--model", str, "model to serve, as for `vidlex serve --model`")
    add("--device", str, "device to run on, as for `vidlex serve --device`")
    parser.add_argument("--json", action="store_true", help="print the report as one line of JSON")
    values = vars(parser.parse_args(arguments))
    names = {field.name for field in fields(FuzzOptions)}
    return FuzzOptions(**{name: value for name, value in values.items() if name in names}), bool(values["json"])


if __name__ == "__main__":
    sys.exit(main())
