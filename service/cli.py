"""The `vidlex` command line. Exit codes: see `service/commands/output.py`.

Imports only typer and rich; commands import all other packages when they run.
"""

from __future__ import annotations

from typing import Annotated

import typer

from vidlex.service.commands import (
    backup,
    calibrate,
    classify,
    demo,
    doctor,
    export,
    feedback,
    feedback_import,
    jobs,
    keys,
    label_studio,
    migrate,
    models,
    sample_videos,
    serve,
    store,
    tag,
    videos,
    webhooks,
    weights,
    worker,
)
from vidlex.service.commands.experiments import bench, evaluate, training
from vidlex.service.commands.labels.app import app as labels_app
from vidlex.service.commands.output import RootGroup

HELP = """Tag videos with an open, growing vocabulary.

Exit codes: 0 success; 1 failure; 2 usage error; 3 service unreachable; 130 interrupted.
"""

app = typer.Typer(
    cls=RootGroup, help=HELP, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich"
)


def _print_version(is_requested: bool) -> None:
    if is_requested:
        from importlib.metadata import version as installed_version

        typer.echo(f"vidlex {installed_version('vidlex')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Options before the command; the help text is HELP."""


app.command("serve")(serve.serve)
app.command("worker")(worker.worker)
app.command("demo")(demo.demo)
app.add_typer(labels_app, name="labels")
app.add_typer(keys.app, name="keys")
app.add_typer(models.app, name="models")
for command in (models.reembed, models.activate, models.rollback):
    labels_app.command(command.__name__)(command)
app.command("classify")(classify.classify)
app.command("tag")(tag.tag)
app.add_typer(jobs.app, name="jobs")
app.add_typer(videos.app, name="videos")
app.command("export")(export.export)
app.command("label-studio")(label_studio.label_studio)
app.command("calibrate")(calibrate.calibrate)
app.add_typer(feedback.app, name="feedback")
app.add_typer(webhooks.app, name="webhooks")
feedback.app.command("import")(feedback_import.import_corrections)
app.command("samples")(sample_videos.samples)
app.command("doctor")(doctor.doctor)
app.command("migrate")(migrate.migrate)
app.add_typer(store.app, name="store")
app.command("backup")(backup.backup)
app.command("restore")(backup.restore)
app.add_typer(training.train, name="train")
app.command("eval")(evaluate.evaluate)
training.add_suite(app)
app.add_typer(training.data, name="data")
app.add_typer(weights.app, name="weights")
app.add_typer(bench.app, name="bench")


def main() -> None:
    app(prog_name="vidlex")


if __name__ == "__main__":
    main()
