"""`vidlex`: the command line. Exit codes: see `service/commands/output.py`.

Only typer, rich and httpx are imported here; torch and fastapi come with the commands that need them.
"""

from __future__ import annotations

from importlib.metadata import version as installed_version
from typing import Annotated

import typer

from vidlex.service.commands import (
    bench,
    classify,
    demo,
    doctor,
    evaluate,
    keys,
    labels,
    migrate,
    models,
    serve,
    training,
)
from vidlex.service.commands.options import PASS_THROUGH
from vidlex.service.commands.output import Root

HELP = """Tag videos with an open, growing vocabulary.

Exit codes: 0 done; 1 it could not be done; 2 wrong command line or setting; 3 no service answers; 130 interrupted.
"""

app = typer.Typer(cls=Root, help=HELP, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vidlex {installed_version('vidlex')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """See HELP: this only takes the options before the command."""


app.command("serve")(serve.serve)
app.command("demo")(demo.demo)
app.add_typer(labels.app, name="labels")
app.add_typer(keys.app, name="keys")
app.add_typer(models.app, name="models")
for command in (models.reembed, models.activate, models.rollback):
    labels.app.command(command.__name__)(command)
app.command("classify")(classify.classify)
app.command("doctor")(doctor.doctor)
app.command("migrate")(migrate.migrate)
app.add_typer(training.train, name="train")
app.command("eval")(evaluate.evaluate)
app.command("eval-suite", context_settings=PASS_THROUGH, hidden=True)(training.suite)
app.add_typer(training.data, name="data")
app.add_typer(training.weights, name="weights")
app.add_typer(bench.app, name="bench")


def main() -> None:
    app(prog_name="vidlex")


if __name__ == "__main__":
    main()
