"""`vidlex backup` and `vidlex restore`: the whole label store in one file."""

from __future__ import annotations

import fcntl
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, cast
from urllib.parse import urlsplit

import typer

from vidlex.service.commands.output import (
    EXIT_USAGE,
    CommandError,
    JsonFlag,
    print_json,
    print_text,
    print_warning,
    progress,
    use_json,
)
from vidlex.service.commands.preflight import settings_or_error
from vidlex.service.commands.stores import shared_store
from vidlex.service.errors import VidlexError

if TYPE_CHECKING:
    from vidlex.service.backup.restore import Content
    from vidlex.service.settings import Settings

DataDir = Annotated[
    Path | None,
    typer.Option(help="Folder of the embedded store. Default: VIDLEX_DATA_DIR, else ~/.local/share/vidlex."),
]
_COPY_BYTES = 2**20
_MAX_SHOWN = 10


def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="File to write or replace; - for standard output.")],
    data_dir: DataDir = None,
    as_json: JsonFlag = False,
) -> None:
    """Write labels, vectors, API keys (as digests) and models of the label store to FILE.

    Services may keep running and writing. FILE is replaced only by a complete backup.
    """
    use_json(as_json)
    settings = settings_or_error(data_dir=data_dir)
    if settings.redis_url is None and not (settings.data_dir / "store").is_dir():
        raise CommandError(f"there is no label store in {settings.data_dir}; set --data-dir or VIDLEX_REDIS_URL")
    from vidlex.service.backup.lines import LineWriter
    from vidlex.service.backup.snapshot import header_of, write_snapshot

    started = time.monotonic()
    with _reported(), shared_store(settings) as client, _output(file) as output, progress("backing up", None) as bar:
        writer = LineWriter(output, **header_of(client))
        written = write_snapshot(client, writer, on_labels=lambda num: bar.advance(bar.task_ids[0], num))
        writer.finish()
    summary = {
        "file": str(file),
        "store": _describe(settings),
        "namespaces": {
            name: {"labels": end.num_labels, "revision": end.revision} for name, end in written.namespaces.items()
        },
        "keys": written.num_keys,
        "damaged": written.damaged,
        "seconds": round(time.monotonic() - started, 2),
    }
    if str(file) != "-":
        _print_backup(summary, as_json=as_json)
    if written.damaged:
        shown = ", ".join(written.damaged[:_MAX_SHOWN])
        raise CommandError(
            f"{len(written.damaged)} damaged entries were left out of the backup; see `vidlex labels verify`: {shown}"
        )


def restore(
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="A file of `vidlex backup`; - for standard input.")
    ] = None,
    data_dir: DataDir = None,
    *,
    force: Annotated[
        bool, typer.Option("--force", help="Replace everything in a store that is not empty. Stop its services first.")
    ] = False,
    check: Annotated[bool, typer.Option("--check", help="Only check FILE; no store is used.")] = False,
    abandon: Annotated[
        bool, typer.Option("--abandon", help="Leave the store as it was before a restore that was interrupted early.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Write a backup into an empty label store.

    FILE is checked as a whole before anything is written. A store whose restore was interrupted refuses to serve until
    the restore is repeated.
    """
    use_json(as_json)
    if (file is None) != abandon or (check and abandon):
        raise CommandError("give a FILE, or --abandon", exit_code=EXIT_USAGE)
    settings = settings_or_error(data_dir=data_dir)
    from vidlex.service.backup.restore import abandon as abandon_restore

    if file is None:
        with _reported(), shared_store(settings) as client:
            abandon_restore(client)
        if as_json:
            print_json({"abandoned": True})
        else:
            print_text("the store is as before the restore", markup=False)
        return
    with _reported(), _input(file) as source:
        content, seconds = _restore(settings, source, force=force, check=check)
    summary = {
        "file": str(file),
        "store": None if check else _describe(settings),
        "namespaces": {name: {"labels": num} for name, num in content.labels.items()},
        "keys": content.num_keys,
        "notes": content.notes,
        "seconds": round(seconds, 2),
    }
    if as_json:
        print_json(summary)
        return
    for note in content.notes[:_MAX_SHOWN]:
        print_warning(f"{note}; the service encodes the others again")
    verb = "valid:" if check else "restored"
    facts = f"{content.num_labels} labels in {len(content.labels)} namespaces, {content.num_keys} API keys"
    print_text(f"{verb} {facts}{'' if check else ' into ' + _describe(settings)}", markup=False)


def _restore(settings: Settings, source: BinaryIO, *, force: bool, check: bool) -> tuple[Content, float]:
    from vidlex.service.backup.restore import check_file
    from vidlex.service.backup.restore import restore as restore_store

    started = time.monotonic()
    content = check_file(source)
    if not check:
        with shared_store(settings) as client, progress("restoring", content.num_labels) as bar:
            content = restore_store(
                client, source, force=force, on_labels=lambda num: bar.advance(bar.task_ids[0], num)
            )
    return content, time.monotonic() - started


@contextmanager
def _reported() -> Iterator[None]:
    from vidlex.service.backup.lines import BackupError

    try:
        yield
    except BackupError as error:
        raise CommandError(str(error)) from None
    except VidlexError as error:
        raise CommandError(f"{error}{f' ({error.internal})' if error.internal else ''}") from None
    except OSError as error:
        raise CommandError(f"{error.filename or 'the file'}: {error.strerror or error}") from None


@contextmanager
def _output(path: Path) -> Iterator[BinaryIO]:
    """``path`` for writing: replaced at the end, readable by its owner alone. Raises OSError, CommandError."""
    if str(path) == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    part = path.with_name(f".{path.name}.part")
    with open(part, "ab", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise CommandError(f"another backup is writing {path}") from None
        file.truncate(0)  # of a backup that was killed
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def _input(path: Path) -> Iterator[BinaryIO]:
    """``path`` for reading twice."""
    if str(path) != "-":
        with path.open("rb") as file:
            yield file
        return
    with tempfile.TemporaryFile() as copy:
        while chunk := sys.stdin.buffer.read(_COPY_BYTES):
            copy.write(chunk)
        yield cast(BinaryIO, copy)


def _describe(settings: Settings) -> str:
    if settings.redis_url is None:
        return f"the embedded store in {settings.data_dir}"
    parts = urlsplit(settings.redis_url.get_secret_value())
    return f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"


def _print_backup(summary: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(summary)
        return
    num_labels = sum(facts["labels"] for facts in summary["namespaces"].values())
    size = Path(summary["file"]).stat().st_size
    print_text(
        f"wrote {summary['file']} ({size / 2**20:.1f} MiB): {num_labels} labels in {len(summary['namespaces'])} "
        f"namespaces, {summary['keys']} API keys, from {summary['store']}",
        markup=False,
    )
