"""`vidlex bench`: how fast each hot path is, beside the best that others do on the same machine in the same run.

A benchmark is a module of `vidlex.service.bench` that defines ``run(options) -> Report``; it is found by its name.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from vidlex.service.commands.options import PASS_THROUGH, run_entry
from vidlex.service.commands.output import CommandError, JsonFlag, print_json, stderr, stdout, use_json

FOLDER = Path(__file__).resolve().parents[1] / "bench"
RESULTS = FOLDER / "RESULTS.md"

app = typer.Typer(no_args_is_help=True, help="Measure the hot paths beside what others do. `--quick` tries one out.")


@cache
def benchmarks() -> dict[str, str]:
    """Name and purpose of each benchmark, by its text: importing them takes seconds."""
    found = {}
    for path in sorted(FOLDER.glob("*.py")):
        text = path.read_text(encoding="utf-8")
        if re.search(r"^def run\(options: \w+\) -> Report:", text, re.MULTILINE):
            found[path.stem] = text.removeprefix('"""').split("\n\n")[0].replace("\n", " ").rstrip('". ')
    return found


def _runner(name: str) -> Callable[[typer.Context], None]:
    def bench(ctx: typer.Context) -> None:
        run_entry(ctx, f"vidlex.service.bench.{name}:run")

    return bench


for _name, _purpose in benchmarks().items():
    app.command(_name, help=_purpose, context_settings=PASS_THROUGH)(_runner(_name))


@app.callback(invoke_without_command=True)
def bench(
    ctx: typer.Context,
    listed: Annotated[bool, typer.Option("--list", help="The benchmarks and what they measure.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Measure the hot paths beside what others do."""
    if listed:
        use_json(as_json)
        if as_json:
            print_json(benchmarks())
        else:
            for name, purpose in benchmarks().items():
                stdout().print(f"[bold]{name}[/]  {escape(purpose)}", soft_wrap=True)
        raise typer.Exit
    if as_json and ctx.invoked_subcommand:
        raise typer.BadParameter("--json goes behind the benchmark's name", ctx)


@app.command("all")
def run_all(
    *,
    out: Annotated[Path, typer.Option(help="Write the reports to this file, one JSON document a line.")],
    quick: Annotated[bool, typer.Option(help="A smoke run whose numbers mean nothing.")] = False,
    only: Annotated[list[str] | None, typer.Option(help="These alone; repeat it for several.")] = None,
    model: Annotated[str | None, typer.Option(help="What `vidlex serve --model` takes.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Run every benchmark, each in a process of its own. Exit code 1 if one of them could not be run."""
    use_json(as_json)
    unknown = set(only or ()) - set(benchmarks())
    if unknown:
        raise CommandError(f"there is no benchmark {', '.join(sorted(unknown))}; see `vidlex bench --list`")
    flags = ["--json", *(["--quick"] if quick else [])]
    flags += ["--model", model] if model else []
    flags += ["--device", device] if device else []
    failed = []
    with out.open("a", encoding="utf-8") as file:
        for name in only or benchmarks():
            if not as_json:
                stderr().print(f"[bold]{name}[/] ...")
            command = [sys.executable, "-m", "vidlex.service.cli", "bench", name, *flags]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
            if done.returncode == 0:
                file.write(done.stdout.strip() + "\n")
                file.flush()
            else:
                failed.append(name)
    if as_json:
        print_json({"out": str(out), "failed": failed})
    if failed:
        raise CommandError(f"could not be run: {', '.join(failed)}")


@app.command("results")
def results(
    reports: Annotated[list[Path], typer.Argument(help="Files of reports, as `vidlex bench all --out` writes them.")],
    out: Annotated[Path, typer.Option(help="The Markdown file to write.")] = RESULTS,
    as_json: JsonFlag = False,
) -> None:
    """Write RESULTS.md from reports in JSON."""
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
        stdout().print(f"{len(found)} reports in {escape(str(out))}")
