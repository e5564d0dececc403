"""`vidlex bench`: benchmarks of Vidlex against other implementations on the same machine in the same run.

A benchmark is a module of `vidlex.service.bench` that defines ``run(options) -> Report``.
"""

from __future__ import annotations

import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from vidlex.service.commands.experiments.dataclass_options import add_entry
from vidlex.service.commands.experiments.training import TRAINING_MODULES
from vidlex.service.commands.output import CommandError, JsonFlag, print_json, print_text, stderr, use_json
from vidlex.service.commands.stores import log_to_stderr

FOLDER = Path(__file__).resolve().parents[2] / "bench"
RESULTS = FOLDER / "RESULTS.md"

app = typer.Typer(no_args_is_help=True, help="Run benchmarks against other implementations.")


@cache
def benchmarks() -> dict[str, str]:
    """Name and description of each benchmark, read from the source: importing the modules takes seconds."""
    found = {}
    for path in sorted(FOLDER.glob("*.py")):
        text = path.read_text(encoding="utf-8")
        if re.search(r"^def run\(options: \w+\) -> Report:", text, re.MULTILINE):
            found[path.stem] = text.removeprefix('"""').split("\n\n")[0].replace("\n", " ").rstrip('". ')
    return found


for _name, _description in benchmarks().items():
    add_entry(
        app, f"vidlex bench {_name}", f"vidlex.service.bench.{_name}:run", help=_description, before=log_to_stderr,
        requires=TRAINING_MODULES if _name == "train" else (),
    )  # fmt: skip


@app.callback(invoke_without_command=True)
def bench(
    ctx: typer.Context,
    list_all: Annotated[bool, typer.Option("--list", help="List the benchmarks with what they measure.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Run benchmarks against other implementations."""
    if list_all:
        use_json(as_json)
        if as_json:
            print_json(benchmarks())
        else:
            for name, description in benchmarks().items():
                print_text(f"[bold]{name}[/]  {escape(description)}")
        raise typer.Exit
    if as_json and ctx.invoked_subcommand:
        raise typer.BadParameter("--json must follow the name of the benchmark", ctx)


@app.command("all")
def run_all(
    *,
    out: Annotated[Path, typer.Option(help="Append the reports to this file as JSON Lines.")],
    quick: Annotated[bool, typer.Option(help="Smallest sizes, one repetition; not a result.")] = False,
    only: Annotated[
        list[str] | None, typer.Option(help="Run only this benchmark; may be repeated. Default: all.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Model, as for `vidlex serve --model`. Default: of each benchmark.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N. Default: auto.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Run all benchmarks, each in a separate process. Exit code 1 if one of them fails."""
    use_json(as_json)
    unknown = set(only or ()) - set(benchmarks())
    if unknown:
        raise CommandError(f"unknown benchmark {', '.join(sorted(unknown))}; see `vidlex bench --list`")
    flags = ["--json", *(["--quick"] if quick else [])]
    flags += ["--model", model] if model else []
    flags += ["--device", device] if device else []
    failed = []
    with out.open("a", encoding="utf-8") as file:
        for name in only or benchmarks():
            if not as_json:
                stderr().print(f"[bold]{name}[/] ...")
            command = [sys.executable, "-P", "-m", "vidlex.service.cli", "bench", name, *flags]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
            if done.returncode == 0:
                file.write(done.stdout.strip() + "\n")
                file.flush()
            else:
                failed.append(name)
    if as_json:
        print_json({"out": str(out), "failed": failed})
    if failed:
        raise CommandError(f"failed: {', '.join(failed)}")


@app.command("results")
def results(
    reports: Annotated[list[Path], typer.Argument(help="Reports written by `vidlex bench all --out`.")],
    out: Annotated[Path, typer.Option(help="Markdown file to write.")] = RESULTS,
    as_json: JsonFlag = False,
) -> None:
    """Write RESULTS.md from reports."""
    from vidlex.service.bench.harness import BenchError
    from vidlex.service.bench.results import markdown, read_reports

    use_json(as_json)
    try:
        found = read_reports(reports)
        out.write_text(markdown(found), encoding="utf-8")
    except BenchError as error:
        raise CommandError(str(error)) from None
    except OSError as error:
        raise CommandError(f"{out}: {error.strerror or error}") from None
    if as_json:
        print_json({"out": str(out), "reports": len(found)})
    else:
        print_text(f"wrote {len(found)} reports to {escape(str(out))}")
