"""`vidlex labels ...`: the vocabulary of a running service."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.markup import escape
from rich.table import Table

from service.commands import label_cards
from service.commands.client import DEFAULT_URL, ServiceClient, UrlOption, describe
from service.commands.label_files import FileFormat, dump, format_of, parse
from service.commands.output import EXIT_USAGE, CommandError, JsonFlag, print_json, progress, stderr, stdout, use_json

BATCH = 50
"""Labels per request: each costs a run of the label encoder, so a batch must end well before a timeout."""

app = typer.Typer(no_args_is_help=True, help="List and change the labels of a running service.")

app.command("card")(label_cards.card)
app.command("preview")(label_cards.preview)

Reference = Annotated[str, typer.Argument(metavar="LABEL", help="A label's id or its exact name.")]
IfExists = Annotated[
    Literal["error", "return"], typer.Option(help="What to do with a name that is there already: fail, or keep it.")
]


@app.command("add")
def add(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="One label a word; quote names with spaces.")],
    *,
    url: UrlOption = DEFAULT_URL,
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
    common = {"aliases": alias, "categories": category, "threshold": threshold}
    entries = [{"name": name, **{key: value for key, value in common.items() if value is not None}} for name in names]
    with ServiceClient(url) as client:
        _finish(register(client, entries, if_exists=if_exists), as_json=as_json)


@app.command("list")
def list_labels(
    url: UrlOption = DEFAULT_URL,
    category: Annotated[str | None, typer.Option(help="Only labels of this category.")] = None,
    query: Annotated[str | None, typer.Option("--query", "-q", help="Only labels whose name contains this.")] = None,
    limit: Annotated[int, typer.Option(min=0, help="At most so many; 0 for all.")] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Show the labels, oldest first. With --json one label a line."""
    use_json(as_json)
    rows: list[dict[str, Any]] = []
    with ServiceClient(url) as client:
        for count, label in enumerate(client.labels(category=category, q=query), 1):
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
        stdout().print(f"[bold]{key}[/]: {escape(str(value))}", soft_wrap=True)


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
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"{file}: {getattr(error, 'strerror', None) or error}") from None
    entries = parse(text, kind)
    if not entries:
        raise CommandError(f"{file} holds no labels")
    with ServiceClient(url) as client:
        _finish(register(client, entries, if_exists=if_exists), as_json=as_json, quiet=True)


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
        labels = list(client.labels())
    text = dump(labels, kind)
    if str(file) == "-":
        sys.stdout.write(text)
        return
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise CommandError(f"{file}: {error.strerror or error}") from None
    if as_json:
        print_json({"path": str(file), "num_labels": len(labels)})
    else:
        stdout().print(f"wrote {len(labels)} labels to {escape(str(file))}")


def register(client: ServiceClient, entries: Sequence[dict[str, Any]], *, if_exists: str) -> list[dict[str, Any]]:
    """Register labels in batches; one answer per entry: {"label": ..., "created": ...} or {"error": problem}."""
    results: list[dict[str, Any]] = []
    with progress("registering labels", total=len(entries)) as bar:
        for start in range(0, len(entries), BATCH):
            batch = entries[start : start + BATCH]
            answer = client.call("POST", "/labels", params={"if_exists": if_exists}, json={"labels": list(batch)})
            for entry, item in zip(batch, answer["data"], strict=True):
                results.append({"name": entry["name"], **item})
            bar.update(bar.task_ids[0], completed=len(results))
    return results


def _finish(results: list[dict[str, Any]], *, as_json: bool, quiet: bool = False) -> None:
    """Print what became of each entry; ``quiet`` prints only a count of the good ones."""
    failures = []
    for item in results:
        if as_json:
            print_json(item)
        if item.get("error"):
            problem = item["error"]
            failures.append(CommandError(f"{item['name']}: {describe(problem)}", problem=problem))
        elif not quiet and not as_json:
            label = item["label"]
            word = "added" if item.get("status") == 201 else "kept"
            stdout().print(f"{word} {escape(label['name'])} ({label['id']})")
    if quiet and not as_json:
        added = sum(item.get("status") == 201 for item in results)
        kept = len(results) - added - len(failures)
        stdout().print(f"{added} labels added, {kept} were there already, {len(failures)} refused")
    _raise_all(failures)


def _raise_all(failures: list[CommandError]) -> None:
    """Every failure gets its line; the last one ends the command with its status."""
    for failure in failures[:-1]:
        stderr().print(f"[bold red]error:[/] {escape(str(failure))}", soft_wrap=True)
    if failures:
        raise failures[-1]


def _table(labels: Sequence[dict[str, Any]]) -> Table:
    table = Table("name", "aliases", "categories", "threshold", "id")
    for label in labels:
        threshold = label.get("threshold")
        table.add_row(
            escape(label["name"]),
            escape(", ".join(label.get("aliases") or ())),
            escape(", ".join(label.get("categories") or ())),
            "" if threshold is None else f"{threshold:g}",
            label["id"],
        )
    return table
