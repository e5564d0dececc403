"""SRC arguments of `vidlex tag` -> videos: files, folders, patterns, lists, object stores."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from urllib.parse import urlsplit

from vidlex.service.bulk import remote
from vidlex.service.bulk.lists import LIST_SUFFIXES, SourceError, path_of, read_list
from vidlex.service.bulk.source import VideoSource

_SUFFIXES = "3g2 3gp asf avi dv flv gif m1v m2ts m2v m4v mkv mov mp4 mpeg mpg mts mxf ogg ogv qt ts vob webm webp wmv"
VIDEO_SUFFIXES = frozenset(f".{suffix}" for suffix in _SUFFIXES.split(" "))
"""Of files in folders. A file that is named itself, or in a list, may have any suffix."""
MAX_LEVELS = 256  # of folders
_LITERAL_SUFFIX = re.compile(r"\.[A-Za-z0-9]+$")


@dataclass(frozen=True)
class _Part:
    iterate: Callable[[], Iterator[VideoSource]]
    count: Callable[[], int | None]


class Sources:
    """All videos of some SRC arguments, in their order; sorted within a folder, a pattern or a prefix.

    Hidden files are skipped in folders, and links to folders are not followed there. Iterating is lazy.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        """Raises SourceError for an argument that matches nothing and for a list with a bad line; MissingPackage."""
        self._parts = [_part(argument) for argument in arguments]

    def __iter__(self) -> Iterator[VideoSource]:
        return chain.from_iterable(part.iterate() for part in self._parts)

    def count(self) -> int | None:
        """None if it takes long to tell: a bucket."""
        counts = [part.count() for part in self._parts]
        return None if None in counts else sum(count for count in counts if count is not None)


def local_path(uri: str) -> Path | None:
    """Of a path or a file:// URI; None for a remote one."""
    scheme = remote.scheme_of(uri)
    if scheme == "file":
        return Path(path_of(uri))
    return Path(uri) if scheme not in remote.SCHEMES else None


def uri_of(path: str | Path) -> str:
    """The absolute path; a file:// URI if it is not valid text, which no table can hold."""
    absolute = os.path.normpath(Path(path).absolute())
    try:
        absolute.encode()
    except UnicodeEncodeError:
        return Path(absolute).as_uri()
    return absolute


def _part(argument: str) -> _Part:
    scheme = remote.scheme_of(argument)
    if scheme in remote.SCHEMES:
        return _remote_part(argument)
    if scheme == "file":
        argument = path_of(argument)
    elif scheme is not None and not os.path.lexists(argument):
        raise SourceError(f"{argument}: {scheme}:// is not read; file, {', '.join(remote.SCHEMES)} are")
    if Path(argument).is_dir():
        folder = os.path.normpath(Path(argument).absolute())
        return _checked(argument, lambda: _walk(folder, MAX_LEVELS), "no videos in this folder")
    if os.path.lexists(argument):
        if Path(argument).suffix.lower() in LIST_SUFFIXES:
            return _list_part(argument)
        return _Part(lambda: iter([VideoSource(uri_of(argument))]), lambda: 1)
    if glob.has_magic(argument):
        return _checked(argument, lambda: _match(argument), "no video matches this pattern")
    raise SourceError(f"{argument}: no such file or folder")


def _checked(argument: str, iterate: Callable[[], Iterator[VideoSource]], problem: str) -> _Part:
    if next(iterate(), None) is None:
        raise SourceError(f"{argument}: {problem}")
    return _Part(iterate, lambda: sum(1 for _ in iterate()))


def _list_part(argument: str) -> _Part:
    """Read once to the end: a bad line is reported before anything is tagged."""
    try:
        count = sum(1 for _ in read_list(argument))
    except OSError as error:
        raise SourceError(f"{argument}: {error.strerror or type(error).__name__}") from None
    if not count:
        raise SourceError(f"{argument}: no videos in this list")
    return _Part(lambda: read_list(argument), lambda: count)


def _remote_part(argument: str) -> _Part:
    try:
        return _remote_part_or_error(argument)
    except (SourceError, remote.MissingPackage):
        raise
    except Exception as error:  # each store has its own exceptions
        raise SourceError(f"{argument}: cannot be listed or read ({remote_problem(error)})") from error


def _remote_part_or_error(argument: str) -> _Part:
    base = urlsplit(argument).path.rpartition("/")[2]
    suffix = Path(base).suffix.lower()
    if remote.has_wildcards(argument):
        suffixes = None if _LITERAL_SUFFIX.search(base) else VIDEO_SUFFIXES
        part = _checked(argument, lambda: remote.match_names(argument, suffixes), "nothing matches this pattern")
        return _Part(part.iterate, lambda: None)
    if suffix in LIST_SUFFIXES:
        return _list_part(argument)
    if not argument.endswith("/"):
        found = remote.describe(argument)
        if found is None:
            raise SourceError(f"{argument}: nothing there")
        if found["type"] != "directory":
            return _Part(lambda: iter([VideoSource(argument, version=remote.version_of(found))]), lambda: 1)
    part = _checked(argument, lambda: remote.list_folder(argument, VIDEO_SUFFIXES), "no videos below this prefix")
    return _Part(part.iterate, lambda: None)


def remote_problem(error: BaseException) -> str:
    """What went wrong, without addresses and without messages of libraries."""
    if isinstance(error, FileNotFoundError):
        return "nothing there"
    if isinstance(error, PermissionError):
        return "access denied"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return f"{type(error).__name__}"


def _walk(folder: str, levels: int) -> Iterator[VideoSource]:
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise SourceError(f"{folder}: {error.strerror}") from None
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            if levels:
                yield from _walk(entry.path, levels - 1)
        elif Path(entry.name).suffix.lower() in VIDEO_SUFFIXES and not _is_folder(entry):
            yield VideoSource(uri_of(entry.path))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link into a loop: reported when it is read
        return False


def _match(pattern: str) -> Iterator[VideoSource]:
    any_suffix = _LITERAL_SUFFIX.search(pattern) is not None
    for name in sorted(glob.glob(pattern, recursive=True)):  # noqa: PTH207 - Path.glob finds hidden files
        if (any_suffix or Path(name).suffix.lower() in VIDEO_SUFFIXES) and not Path(name).is_dir():
            yield VideoSource(uri_of(name))
