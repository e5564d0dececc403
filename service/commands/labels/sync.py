"""`vidlex labels diff` and `apply`: keep the labels of a service equal to those of a file.

Labels are identified by their normalised name. A JSON file declares all fields of its labels (missing ones are empty),
a CSV file those of its columns, and a text file only the names.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape

from vidlex.service.client.errors import VidlexClientError
from vidlex.service.commands.connection import DEFAULT_URL, UrlOption, command_error, connected, describe
from vidlex.service.commands.labels.bulk import register
from vidlex.service.commands.output import (
    EXIT_FAILED,
    CommandError,
    JsonFlag,
    print_json,
    print_text,
    raise_last,
    use_json,
)
from vidlex.service.errors import LabelTextInvalid
from vidlex.service.labels.files import LISTS, FileFormat, LabelFileError, format_of, opened, read_declared
from vidlex.service.labels.store.names import display_name, fold

if TYPE_CHECKING:
    from vidlex.service.client.client import Client

EXIT_DIFFERENT = 1
EXIT_DIFF_FAILED = 2
# Another change may resolve these: an alias moves between labels, or a parent becomes a child.
_RETRYABLE_CODES = ("label_exists", "parent_not_found", "parent_cycle")

FileArgument = Annotated[Path, typer.Argument(help="A .jsonl, .json, .csv or .txt file; - reads standard input.")]
FormatOption = Annotated[
    FileFormat | None, typer.Option("--format", help="Format of the file. Default: that of its suffix, or jsonl for -.")
]


ChangeKind = Literal["added", "changed", "removed"]
_VERBS: dict[ChangeKind, str] = {"added": "add", "changed": "change", "removed": "remove"}
_SIGNS: dict[ChangeKind, str] = {"added": "[green]+[/]", "changed": "[yellow]~[/]", "removed": "[red]-[/]"}


@dataclass(frozen=True)
class Change:
    """``entry``: all declared fields of an added label, or the new values for a changed one. ``label``: the stored
    label, empty for an added one."""

    kind: ChangeKind
    name: str
    entry: dict[str, Any] = field(default_factory=dict)
    label: dict[str, Any] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        fields = {
            key: {"old": _stored_value(self.label, key), "new": self.entry[key]} for key in self.entry if self.label
        }
        return {"change": self.kind, "name": self.name} | ({"fields": fields} if fields else {})


def diff(
    file: FileArgument, url: UrlOption = DEFAULT_URL, file_format: FormatOption = None, as_json: JsonFlag = False
) -> None:
    """Show what `apply --prune` would change. Exit code: 0 no differences; 1 differences; 2 or more on errors."""
    use_json(as_json)
    try:
        with connected(url) as client:
            changes = list(_compare(client, file, file_format))
    except CommandError as error:
        if error.exit_code == EXIT_FAILED:
            error.exit_code = EXIT_DIFF_FAILED
        raise
    except LabelFileError as error:
        raise CommandError(str(error), exit_code=EXIT_DIFF_FAILED) from None
    _print_changes(changes, as_json=as_json)
    if not as_json:
        print_text(_planned(changes))
    if changes:
        raise typer.Exit(EXIT_DIFFERENT)


def apply(
    file: FileArgument,
    *,
    url: UrlOption = DEFAULT_URL,
    file_format: FormatOption = None,
    prune: Annotated[bool, typer.Option("--prune", help="Also remove labels that are not in the file.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show the changes.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Add and change labels as declared in the file. Safe to repeat."""
    use_json(as_json)
    with connected(url) as client:
        changes = list(_compare(client, file, file_format))
        selected = [change for change in changes if prune or change.kind != "removed"]
        _print_changes(selected, as_json=as_json)
        failed = [] if dry_run else _apply_changes(client, selected)
    if not as_json:
        print_text(_planned(selected) if dry_run else _done(selected, failed))
        if len(selected) < len(changes):
            print_text(f"{len(changes) - len(selected)} labels are not in the file; --prune removes them")
    raise_last([error for _, error in failed])


def _compare(client: Client, file: Path, file_format: FileFormat | None) -> Iterator[Change]:
    """Holds all labels of the file and the service in memory."""
    declared: dict[str, dict[str, Any]] = {}
    with opened(file) as stream:
        for entry in read_declared(stream, format_of(file, file_format)):
            key = fold(entry["name"])
            if key in declared:
                raise CommandError(f"{file} contains {entry['name']!r} twice")
            declared[key] = entry
    labels = (label.model_dump(mode="json") for label in client.labels())
    stored = {fold(label["name"]): label for label in labels}
    owners = {fold(text): key for key, label in stored.items() for text in (label["name"], *label["aliases"])}
    for key, label in stored.items():
        if key not in declared:
            yield Change("removed", label["name"], label=label)
        elif fields := _changed_fields(declared[key], label, owners):
            yield Change("changed", label["name"], fields, label)
    for key, entry in declared.items():
        if key not in stored:
            yield Change("added", entry["name"], entry)


def _changed_fields(entry: dict[str, Any], label: dict[str, Any], owners: dict[str, str]) -> dict[str, Any]:
    """The fields of ``entry`` that differ from ``label``. ``owners`` maps names and aliases to keys of labels."""

    def is_same(name: str) -> bool:
        if name == "name":
            return bool(_display_name(entry[name]) == label[name])
        if name not in LISTS:
            return bool(entry[name] == label[name])
        new = {fold(text) for text in entry[name]}
        old = {fold(text) for text in _stored_value(label, name)}
        if name == "parents":
            new = {owners.get(text, text) for text in new}
        elif name == "aliases":
            new -= {fold(label["name"])}
        return new == old

    return {name: value for name, value in entry.items() if not is_same(name)}


def _display_name(name: str) -> str:
    """The name as the service stores it. An invalid name is returned unchanged; the service rejects it later."""
    try:
        return display_name(name)
    except LabelTextInvalid:
        return name


def _stored_value(label: dict[str, Any], name: str) -> Any:
    """A field in the format of a label file."""
    return [parent["name"] for parent in label[name]] if name == "parents" else label[name]


def _apply_changes(client: Client, changes: list[Change]) -> list[tuple[Change, CommandError]]:
    """Remove, change and add labels, and repeat for failures that another change may resolve, while any succeeds.

    Returns the changes that failed.
    """
    remaining = sorted(changes, key=lambda change: ("removed", "changed", "added").index(change.kind))
    permanent: list[tuple[Change, CommandError]] = []
    while True:
        failed: list[tuple[Change, CommandError]] = []
        for change in remaining:
            if change.kind != "added":
                error = _apply_one(client, change)
                if error is not None:
                    failed.append((change, error))
        additions = {change.name: change for change in remaining if change.kind == "added"}
        for item in register(client, (change.entry for change in additions.values()), if_exists="error"):
            if item.get("error"):
                failed.append((additions[item["name"]], _failure(item["name"], item["error"])))
        if len(failed) == len(remaining):
            return permanent + failed
        permanent += [(change, error) for change, error in failed if not _is_retryable(error)]
        remaining = [change for change, error in failed if _is_retryable(error)]


def _apply_one(client: Client, change: Change) -> CommandError | None:
    label_id = change.label["id"]
    try:
        if change.kind == "removed":
            client.delete_label(label_id)
        else:
            client.update_label(label_id, **change.entry)
    except VidlexClientError as error:
        return command_error(error, about=change.name)
    return None


def _is_retryable(error: CommandError) -> bool:
    return (error.problem or {}).get("code") in _RETRYABLE_CODES


def _failure(name: str, problem: dict[str, Any]) -> CommandError:
    return CommandError(f"{name}: {describe(problem)}", problem=problem)


def _print_changes(changes: list[Change], *, as_json: bool) -> None:
    for change in changes:
        if as_json:
            print_json(change.document())
            continue
        print_text(f"{_SIGNS[change.kind]} {escape(change.name)}")
        for name, values in change.document().get("fields", {}).items():
            text = f"    {name}: {escape(str(values['old']))} -> {escape(str(values['new']))}"
            print_text(text)


def _planned(changes: list[Change]) -> str:
    if not changes:
        return "no differences"
    return "would " + ", ".join(f"{verb} {_count(changes, kind)}" for kind, verb in _VERBS.items())


def _done(changes: list[Change], failed: list[tuple[Change, CommandError]]) -> str:
    failed_changes = [change for change, _ in failed]
    counts = [f"{_count(changes, kind) - _count(failed_changes, kind)} {kind}" for kind in _VERBS]
    return ", ".join([*counts, *([f"{len(failed)} failed"] if failed else [])])


def _count(changes: list[Change], kind: ChangeKind) -> int:
    return sum(change.kind == kind for change in changes)
