"""`vidlex labels diff` and `apply`: a vocabulary that lives in a file under version control.

Labels are told apart by their normalised name. A JSON file decides about every field of its labels (what it leaves
out is empty), a CSV file about the fields it has columns for, a text file about the names alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.markup import escape

from vidlex.service.commands.bulk import register
from vidlex.service.commands.client import DEFAULT_URL, ServiceClient, UrlOption, describe
from vidlex.service.commands.label_files import LISTS, FileFormat, format_of, opened, read_declared
from vidlex.service.commands.output import EXIT_FAILED, CommandError, JsonFlag, print_json, stderr, stdout, use_json
from vidlex.service.errors import LabelTextInvalid
from vidlex.service.labels.store.names import display_name, fold

EXIT_DIFFERENT = 1
EXIT_TROUBLE = 2
_MAY_PASS_LATER = ("label_exists", "parent_not_found", "parent_cycle")

FileArgument = Annotated[Path, typer.Argument(help="A .jsonl, .json, .csv or .txt file; - reads standard input.")]
FormatOption = Annotated[FileFormat | None, typer.Option("--format", help="Default: by the file's suffix.")]


@dataclass(frozen=True)
class Change:
    kind: Literal["added", "changed", "removed"]
    name: str
    entry: dict[str, Any] = field(default_factory=dict)
    """What the file says of an added label; the members to send for a changed one."""
    label: dict[str, Any] = field(default_factory=dict)
    """As it is now, unless it is to be added."""

    def document(self) -> dict[str, Any]:
        fields = {key: {"old": _now(self.label, key), "new": self.entry[key]} for key in self.entry if self.label}
        return {"change": self.kind, "name": self.name} | ({"fields": fields} if fields else {})


def diff(
    file: FileArgument, url: UrlOption = DEFAULT_URL, file_format: FormatOption = None, as_json: JsonFlag = False
) -> None:
    """Show what `apply --prune` would change. Exit status as of diff: 0 no difference, 1 some, 2 or more trouble."""
    use_json(as_json)
    try:
        with ServiceClient(url) as client:
            changes = list(_compare(client, file, file_format))
    except CommandError as error:
        if error.exit_code == EXIT_FAILED:
            error.exit_code = EXIT_TROUBLE
        raise
    _show(changes, as_json=as_json)
    if changes:
        raise typer.Exit(EXIT_DIFFERENT)


def apply(
    file: FileArgument,
    *,
    url: UrlOption = DEFAULT_URL,
    file_format: FormatOption = None,
    prune: Annotated[bool, typer.Option("--prune", help="Also remove the labels that the file does not name.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be done.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Make the service's labels those of the file. Safe to repeat: the second time does nothing."""
    use_json(as_json)
    with ServiceClient(url) as client:
        changes = list(_compare(client, file, file_format))
        wanted = [change for change in changes if prune or change.kind != "removed"]
        _show(wanted, as_json=as_json)
        failures = [] if dry_run else _carry_out(client, wanted)
    if len(wanted) < len(changes) and not as_json:
        stdout().print(f"{len(changes) - len(wanted)} labels are not in the file; --prune removes them")
    for failure in failures[:-1]:
        stderr().print(f"[bold red]error:[/] {escape(str(failure))}", soft_wrap=True)
    if failures:
        raise failures[-1]


def _compare(client: ServiceClient, file: Path, file_format: FileFormat | None) -> Iterator[Change]:
    """Holds both vocabularies in memory: some hundred bytes a label."""
    wanted: dict[str, dict[str, Any]] = {}
    with opened(file) as stream:
        for entry in read_declared(stream, format_of(file, file_format)):
            key = fold(entry["name"])
            if key in wanted:
                raise CommandError(f"{file} names {entry['name']!r} twice")
            wanted[key] = entry
    stored = {fold(label["name"]): label for label in client.labels()}
    owners = {fold(text): key for key, label in stored.items() for text in (label["name"], *label["aliases"])}
    for key, label in stored.items():
        if key not in wanted:
            yield Change("removed", label["name"], label=label)
        elif members := _different(wanted[key], label, owners):
            yield Change("changed", label["name"], members, label)
    for key, entry in wanted.items():
        if key not in stored:
            yield Change("added", entry["name"], entry)


def _different(entry: dict[str, Any], label: dict[str, Any], owners: dict[str, str]) -> dict[str, Any]:
    """The members of the entry that the label does not have yet."""

    def same(name: str) -> bool:
        if name == "name":
            return bool(_shown(entry[name]) == label[name])
        if name not in LISTS:
            return bool(entry[name] == label[name])
        new = {fold(text) for text in entry[name]}
        old = {fold(text) for text in _now(label, name)}
        if name == "parents":
            new = {owners.get(text, text) for text in new}
        elif name == "aliases":
            new -= {fold(label["name"])}
        return new == old

    return {name: value for name, value in entry.items() if not same(name)}


def _shown(name: str) -> str:
    """As the service shows it; a text that it refuses stays as it is, so that it is sent and the refusal told."""
    try:
        return display_name(name)
    except LabelTextInvalid:
        return name


def _now(label: dict[str, Any], name: str) -> Any:
    """A member as a file would write it."""
    return [parent["name"] for parent in label[name]] if name == "parents" else label[name]


def _carry_out(client: ServiceClient, changes: list[Change]) -> list[CommandError]:
    """Removals, changes, additions, and again while any succeeds: one may make room for another (an alias that moves
    from label to label, a parent that becomes a child). Returns what failed for good."""
    left = sorted(changes, key=lambda change: ("removed", "changed", "added").index(change.kind))
    for_good: list[CommandError] = []
    while True:
        failed: list[tuple[Change, CommandError]] = []
        for change in left:
            if change.kind != "added":
                error = _change_one(client, change)
                if error is not None:
                    failed.append((change, error))
        additions = {change.name: change for change in left if change.kind == "added"}
        for item in register(client, (change.entry for change in additions.values()), if_exists="error"):
            if item.get("error"):
                problem = item["error"]
                failed.append((additions[item["name"]], _failure(item["name"], problem)))
        if len(failed) == len(left):
            return for_good + [error for _, error in failed]
        for_good += [error for _, error in failed if not _may_pass_later(error)]
        left = [change for change, error in failed if _may_pass_later(error)]


def _change_one(client: ServiceClient, change: Change) -> CommandError | None:
    method = "DELETE" if change.kind == "removed" else "PATCH"
    try:
        client.call(method, f"/labels/{change.label['id']}", json=change.entry or None)
    except CommandError as error:
        return error if error.problem is None else _failure(change.name, error.problem)
    return None


def _may_pass_later(error: CommandError) -> bool:
    return (error.problem or {}).get("code") in _MAY_PASS_LATER


def _failure(name: str, problem: dict[str, Any]) -> CommandError:
    return CommandError(f"{name}: {describe(problem)}", problem=problem)


def _show(changes: list[Change], *, as_json: bool) -> None:
    if as_json:
        for change in changes:
            print_json(change.document())
        return
    signs: dict[str, str] = {"added": "[green]+[/]", "changed": "[yellow]~[/]", "removed": "[red]-[/]"}
    out: Callable[..., None] = stdout().print
    for change in changes:
        out(f"{signs[change.kind]} {escape(change.name)}", soft_wrap=True)
        for name, states in change.document().get("fields", {}).items():
            out(f"    {name}: {escape(str(states['old']))} -> {escape(str(states['new']))}", soft_wrap=True)
    counts = [f"{sum(c.kind == kind for c in changes)} {kind}" for kind in ("added", "changed", "removed")]
    out(", ".join(counts))
