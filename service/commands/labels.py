"""`vidlex labels ...`: the vocabulary of a running service."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TextIO

import typer
from rich.markup import escape
from rich.table import Table

from vidlex.service.commands import label_cards
from vidlex.service.commands.bulk import register
from vidlex.service.commands.client import DEFAULT_URL, ServiceClient, UrlOption, describe
from vidlex.service.commands.label_files import FileFormat, format_of, opened, read, write
from vidlex.service.commands.output import EXIT_USAGE, CommandError, JsonFlag, print_json, stderr, stdout, use_json
from vidlex.service.commands.verify import verify
from vidlex.service.commands.vocabulary import apply, diff

app = typer.Typer(no_args_is_help=True, help="List and change the labels of a running service.")

app.command("card")(label_cards.card)
app.command("preview")(label_cards.preview)
app.command("verify")(verify)

Reference = Annotated[str, typer.Argument(metavar="LABEL", help="A label's id or its exact name.")]
IfExists = Annotated[
    Literal["error", "return"], typer.Option(help="What to do with a name that is there already: fail, or keep it.")
]


@app.command("add")
def add(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="One label a word; quote names with spaces.")],
    *,
    url: UrlOption = DEFAULT_URL,
    parent: Annotated[list[str] | None, typer.Option(help="A stored label above them; may be repeated.")] = None,
    alias: Annotated[list[str] | None, typer.Option(help="Another name of the (only) label; may be repeated.")] = None,
    category: Annotated[list[str] | None, typer.Option(help="A category of the labels; may be repeated.")] = None,
    threshold: Annotated[float | None, typer.Option(min=0, max=1, help="Score from which the label matches.")] = None,
    if_exists: IfExists = "error",
    as_json: JsonFlag = False,
) -> None:
    """Register labels. The very next classification uses them."""
    use_json(as_json)
    if alias and len(names) > 1:
        raise CommandError("--alias belongs to one label; give one NAME with it", exit_code=EXIT_USAGE)
    common = {"aliases": alias, "categories": category, "parents": parent, "threshold": threshold}
    entries = [{"name": name, **{key: value for key, value in common.items() if value is not None}} for name in names]
    with ServiceClient(url) as client:
        _finish(register(client, entries, if_exists=if_exists), as_json=as_json)


@app.command("list")
def list_labels(
    *,
    url: UrlOption = DEFAULT_URL,
    category: Annotated[str | None, typer.Option(help="Only labels of this category.")] = None,
    parent: Annotated[str | None, typer.Option(help="Only labels below this one.")] = None,
    prefix: Annotated[str | None, typer.Option(help="Only labels whose name begins with this.")] = None,
    query: Annotated[str | None, typer.Option("--query", "-q", help="Only labels whose name contains this.")] = None,
    limit: Annotated[int, typer.Option(min=0, help="At most so many; 0 for all.")] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Show the labels, oldest first. With --json one label a line."""
    use_json(as_json)
    rows: list[dict[str, Any]] = []
    with ServiceClient(url) as client:
        for count, label in enumerate(client.labels(category=category, parent=parent, prefix=prefix, q=query), 1):
            if as_json:
                print_json(label)
            else:
                rows.append(label)
            if count == limit:
                break
    if not as_json:
        stdout().print(_table(rows) if rows else "no labels")


@app.command("show")
def show(label: Reference, url: UrlOption = DEFAULT_URL, as_json: JsonFlag = False) -> None:
    """Show everything about one label."""
    use_json(as_json)
    with ServiceClient(url) as client:
        found = client.find_label(label)
    if as_json:
        print_json(found)
        return
    for key, value in found.items():
        stdout().print(f"[bold]{key}[/]: {escape(_text_of(value))}".rstrip(), soft_wrap=True)


@app.command("remove")
def remove(
    labels: Annotated[list[str], typer.Argument(metavar="LABEL...", help="Ids or exact names.")],
    url: UrlOption = DEFAULT_URL,
    as_json: JsonFlag = False,
) -> None:
    """Remove labels. Those that exist are removed even if another name is wrong."""
    use_json(as_json)
    failures: list[CommandError] = []
    with ServiceClient(url) as client:
        for reference in labels:
            try:
                found = client.find_label(reference)
                client.call("DELETE", f"/labels/{found['id']}")
            except CommandError as error:
                failures.append(error)
                continue
            if as_json:
                print_json({"id": found["id"], "name": found["name"], "deleted": True})
            else:
                stdout().print(f"removed {escape(found['name'])} ({found['id']})")
    _raise_all(failures)


@app.command("import")
def import_labels(
    file: Annotated[Path, typer.Argument(help="A .jsonl, .json, .csv or .txt file; - reads standard input.")],
    url: UrlOption = DEFAULT_URL,
    file_format: Annotated[FileFormat | None, typer.Option("--format", help="Default: by the file's suffix.")] = None,
    if_exists: IfExists = "return",
    as_json: JsonFlag = False,
) -> None:
    """Register the labels of a file. Safe to repeat: names that are there already are kept."""
    use_json(as_json)
    kind = format_of(file, file_format)
    with opened(file) as stream, ServiceClient(url) as client:
        results = register(client, read(stream, kind), if_exists=if_exists, share=_share_of(file, stream))
        _finish(results, as_json=as_json, quiet=True)


def _share_of(file: Path, stream: TextIO) -> Callable[[], float | None]:
    """How much of a regular file has been read. The stream reads ahead a little."""
    if str(file) == "-" or not file.is_file():
        return lambda: None
    size = max(1, file.stat().st_size)
    return lambda: min(1.0, stream.buffer.tell() / size)


@app.command("export")
def export(
    file: Annotated[Path, typer.Argument(help="Where to; - (the default) writes to standard output.")] = Path("-"),
    url: UrlOption = DEFAULT_URL,
    file_format: Annotated[FileFormat | None, typer.Option("--format", help="Default: by the file's suffix.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Write the labels to a file that `vidlex labels import` reads."""
    use_json(as_json)
    kind = format_of(file, file_format)
    with ServiceClient(url) as client:
        if str(file) == "-":
            write(sys.stdout, client.labels(), kind)
            return
        # Beside its place and then moved: whoever reads the file sees the old one or the whole new one.
        partial = file.with_name(f".{file.name}.{os.getpid()}.part")
        try:
            with partial.open("w", encoding="utf-8", newline="") as stream:
                num_labels = write(stream, client.labels(), kind)
            partial.replace(file)
        except OSError as error:
            raise CommandError(f"{file}: {error.strerror or error}") from None
        finally:
            partial.unlink(missing_ok=True)
    if as_json:
        print_json({"path": str(file), "num_labels": num_labels})
    else:
        stdout().print(f"wrote {num_labels} labels to {escape(str(file))}")


app.command("diff")(diff)
app.command("apply")(apply)


def _finish(results: Iterable[dict[str, Any]], *, as_json: bool, quiet: bool = False) -> None:
    """Print what became of each entry; ``quiet`` prints only a count of the good ones.

    Every failure gets its line; the last one ends the command with its status.
    """
    started = time.monotonic()
    num_added = num_kept = num_refused = 0
    last: CommandError | None = None
    for item in results:
        if as_json:
            print_json(item)
        if item.get("error"):
            if last is not None:
                _print_failure(last)
            problem = item["error"]
            last = CommandError(f"{item['name']}: {describe(problem)}", problem=problem)
            num_refused += 1
            continue
        added = item.get("status") == 201
        num_added += added
        num_kept += not added
        if not quiet and not as_json:
            label = item["label"]
            stdout().print(f"{'added' if added else 'kept'} {escape(label['name'])} ({label['id']})")
    if not num_added + num_kept + num_refused:
        raise CommandError("there are no labels in it")
    if quiet and not as_json:
        seconds = time.monotonic() - started
        rate = (num_added + num_kept + num_refused) / max(seconds, 1e-9)
        stdout().print(
            f"{num_added} labels added, {num_kept} were there already, {num_refused} refused "
            f"({seconds:.1f} s, {rate:.0f} a second)"
        )
    if last is not None:
        raise last


def _print_failure(failure: CommandError) -> None:
    stderr().print(f"[bold red]error:[/] {escape(str(failure))}", soft_wrap=True)


def _raise_all(failures: list[CommandError]) -> None:
    """Every failure gets its line; the last one ends the command with its status."""
    for failure in failures[:-1]:
        _print_failure(failure)
    if failures:
        raise failures[-1]


def _text_of(value: Any) -> str:
    """A member of a label for a person: names with commas between, nothing for what is not set."""
    if isinstance(value, list):
        return ", ".join(item["name"] if isinstance(item, dict) else str(item) for item in value)
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False) if value else ""
    return "" if value is None else str(value)


def _table(labels: Sequence[dict[str, Any]]) -> Table:
    table = Table("name", "aliases", "categories", "parents", "threshold", "id")
    for label in labels:
        threshold = label.get("threshold")
        table.add_row(
            escape(label["name"]),
            *(escape(_text_of(label.get(key))) for key in ("aliases", "categories", "parents")),
            "" if threshold is None else f"{threshold:g}",
            label["id"],
        )
    return table
