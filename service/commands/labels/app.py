"""`vidlex labels`: the labels of a running service."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TextIO

import typer
from rich.markup import escape
from rich.table import Column, Table

from vidlex.model.files import replace_atomically
from vidlex.service.client.errors import VidlexClientError
from vidlex.service.commands.connection import DEFAULT_URL, UrlOption, command_error, connected, describe
from vidlex.service.commands.labels import cards
from vidlex.service.commands.labels.bulk import register
from vidlex.service.commands.labels.sync import FileArgument, FormatOption, apply, diff
from vidlex.service.commands.labels.verify import verify
from vidlex.service.commands.output import (
    EXIT_USAGE,
    CommandError,
    JsonFlag,
    print_error,
    print_json,
    print_text,
    raise_last,
    stdout,
    use_json,
)
from vidlex.service.labels.files import format_of, opened, read, write

if TYPE_CHECKING:
    from vidlex.service.schemas.labels import LabelView

app = typer.Typer(no_args_is_help=True, help="List and change the labels of a running service.")

app.command("card")(cards.card)
app.command("preview")(cards.preview)
app.command("verify")(verify)

Reference = Annotated[str, typer.Argument(metavar="LABEL", help="Id, name or alias of a label.")]
IfExists = Annotated[
    Literal["error", "return"], typer.Option(help="Whether an existing name is an error, or is returned.")
]


@app.command("add")
def add(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Names of labels; quote names with spaces.")],
    *,
    url: UrlOption = DEFAULT_URL,
    parent: Annotated[list[str] | None, typer.Option(help="Id or name of a parent label; may be repeated.")] = None,
    alias: Annotated[
        list[str] | None, typer.Option(help="Another name; may be repeated. Requires a single NAME.")
    ] = None,
    category: Annotated[list[str] | None, typer.Option(help="A category; may be repeated.")] = None,
    threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="Lowest score of a match. Default: of the model.")
    ] = None,
    if_exists: IfExists = "error",
    as_json: JsonFlag = False,
) -> None:
    """Register labels. The next classification uses them."""
    use_json(as_json)
    if alias and len(names) > 1:
        raise CommandError("--alias requires a single NAME", exit_code=EXIT_USAGE)
    common = {"aliases": alias, "categories": category, "parents": parent, "threshold": threshold}
    entries = [{"name": name, **{key: value for key, value in common.items() if value is not None}} for name in names]
    with connected(url) as client:
        _finish(register(client, entries, if_exists=if_exists), as_json=as_json)


@app.command("list")
def list_labels(
    *,
    url: UrlOption = DEFAULT_URL,
    category: Annotated[str | None, typer.Option(help="Only labels of this category.")] = None,
    parent: Annotated[str | None, typer.Option(help="Only children of this label (id, name or alias).")] = None,
    prefix: Annotated[
        str | None, typer.Option(help="Only labels with a name or alias that starts with this text.")
    ] = None,
    query: Annotated[
        str | None, typer.Option("--query", "-q", help="Only labels with a name or alias that contains this text.")
    ] = None,
    limit: Annotated[int, typer.Option(min=0, help="Maximum number of labels; 0 for all.")] = 0,
    as_json: JsonFlag = False,
) -> None:
    """List the labels, oldest first. With --json one label per line."""
    use_json(as_json)
    rows: list[dict[str, Any]] = []
    with connected(url) as client:
        found = client.labels(category=category, parent=parent, prefix=prefix, q=query)
        for count, label in enumerate(_documents(found), 1):
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
    """Show all fields of a label."""
    use_json(as_json)
    with connected(url) as client:
        found = client.find_label(label).model_dump(mode="json")
    if as_json:
        print_json(found)
        return
    for key, value in found.items():
        print_text(f"[bold]{key}[/]: {escape(_text_of(value))}".rstrip())


@app.command("remove")
def remove(
    labels: Annotated[list[str], typer.Argument(metavar="LABEL...", help="Ids, names or aliases of labels.")],
    url: UrlOption = DEFAULT_URL,
    as_json: JsonFlag = False,
) -> None:
    """Remove labels. If one does not exist, the others are still removed."""
    use_json(as_json)
    failures: list[CommandError] = []
    with connected(url) as client:
        for reference in labels:
            try:
                found = client.find_label(reference)
                client.delete_label(found.id)
            except VidlexClientError as error:
                failures.append(command_error(error))
                continue
            if as_json:
                print_json({"id": found.id, "name": found.name, "deleted": True})
            else:
                print_text(f"removed {escape(found.name)} ({found.id})")
    raise_last(failures)


@app.command("import")
def import_labels(
    file: FileArgument,
    url: UrlOption = DEFAULT_URL,
    file_format: FormatOption = None,
    if_exists: IfExists = "return",
    as_json: JsonFlag = False,
) -> None:
    """Register the labels of a file. Safe to repeat: existing labels are not changed."""
    use_json(as_json)
    kind = format_of(file, file_format)
    with opened(file) as stream, connected(url) as client:
        results = register(
            client, read(stream, kind), if_exists=if_exists, read_fraction=_read_fraction_of(file, stream)
        )
        _finish(results, as_json=as_json, quiet=True)


def _read_fraction_of(file: Path, stream: TextIO) -> Callable[[], float | None]:
    """The fraction of a regular file that has been read, including the buffer of the stream."""
    if str(file) == "-" or not file.is_file():
        return lambda: None
    size = max(1, file.stat().st_size)
    return lambda: min(1.0, stream.buffer.tell() / size)


@app.command("export")
def export(
    file: Annotated[
        Path, typer.Argument(help="A .jsonl, .json, .csv or .txt file; - writes to standard output.")
    ] = Path("-"),
    url: UrlOption = DEFAULT_URL,
    file_format: FormatOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Write the labels to a file for `vidlex labels import`."""
    use_json(as_json)
    kind = format_of(file, file_format)
    with connected(url) as client:
        if str(file) == "-":
            write(sys.stdout, _documents(client.labels()), kind)
            return
        try:
            with (
                replace_atomically(file, is_shared=True) as temporary,
                temporary.open("w", encoding="utf-8", newline="") as stream,
            ):
                num_labels = write(stream, _documents(client.labels()), kind)
        except OSError as error:
            raise CommandError(f"{file}: {error.strerror or error}") from None
    if as_json:
        print_json({"path": str(file), "num_labels": num_labels})
    else:
        print_text(f"wrote {num_labels} labels to {escape(str(file))}")


app.command("diff")(diff)
app.command("apply")(apply)


def _documents(labels: Iterable[LabelView]) -> Iterator[dict[str, Any]]:
    return (label.model_dump(mode="json") for label in labels)


def _finish(results: Iterable[dict[str, Any]], *, as_json: bool, quiet: bool = False) -> None:
    """Print the results, or their numbers if ``quiet``, and all failures; raises the last failure."""
    started = time.monotonic()
    num_added = num_existing = num_failed = 0
    last_failure: CommandError | None = None
    for item in results:
        if as_json:
            print_json(item)
        if item.get("error"):
            if last_failure is not None:
                print_error(last_failure)
            problem = item["error"]
            last_failure = CommandError(f"{item['name']}: {describe(problem)}", problem=problem)
            num_failed += 1
            continue
        is_new = item.get("status") == 201
        num_added += is_new
        num_existing += not is_new
        if not quiet and not as_json:
            label = item["label"]
            print_text(f"{'added' if is_new else 'already exists:'} {escape(label['name'])} ({label['id']})")
    total = num_added + num_existing + num_failed
    if not total:
        raise CommandError("the file contains no labels")
    if quiet and not as_json:
        seconds = time.monotonic() - started
        print_text(
            f"{num_added} added, {num_existing} already existed, {num_failed} failed "
            f"({seconds:.1f} s, {total / max(seconds, 1e-9):.0f} labels/s)"
        )
    if last_failure is not None:
        raise last_failure


def _text_of(value: Any) -> str:
    """A field of a label as text; empty if it is not set."""
    if isinstance(value, list):
        return ", ".join(item["name"] if isinstance(item, dict) else str(item) for item in value)
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False) if value else ""
    return "" if value is None else str(value)


def _table(labels: Sequence[dict[str, Any]]) -> Table:
    columns = ("name", "aliases", "categories", "parents", "threshold")
    table = Table(*columns, Column("id", no_wrap=True, min_width=28))  # whole, to be copied
    for label in labels:
        threshold = label.get("threshold")
        table.add_row(
            escape(label["name"]),
            *(escape(_text_of(label.get(key))) for key in ("aliases", "categories", "parents")),
            "" if threshold is None else f"{threshold:g}",
            label["id"],
        )
    return table
