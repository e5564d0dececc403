"""What callers of the library name as videos -> sources."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import TypeAlias

from vidlex.service.bulk.remote import is_remote
from vidlex.service.bulk.source import VideoSource
from vidlex.service.bulk.sources import Sources, uri_of

OnePath: TypeAlias = "str | os.PathLike[str] | VideoSource"
Paths: TypeAlias = "OnePath | Iterable[OnePath]"


def sources_of(paths: Paths) -> Iterable[VideoSource]:
    """A single text or path may be a file, a folder, a pattern, a list file or a prefix of a bucket, as for
    `vidlex tag`: raises as ``Sources`` does. The items of anything else are one video each; it is read lazily.
    """
    if isinstance(paths, VideoSource):
        return [paths]
    if isinstance(paths, str | os.PathLike):
        return Sources([os.fspath(paths)])
    return _each(paths)


def source_of(path: OnePath) -> VideoSource:
    """Of one video, which need not exist."""
    if isinstance(path, VideoSource):
        return path
    text = os.fspath(path)
    return VideoSource(text if is_remote(text) else uri_of(text))


def _each(paths: Iterable[OnePath]) -> Iterator[VideoSource]:
    for path in paths:
        yield source_of(path)
