"""What a user should know of manifests that can be trained on, but perhaps are not meant as they are."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from vidlex.model.sources.catalogue import Catalogue, Window
from vidlex.model.train.losses import NEGATIVE, POSITIVE


def notices(training: Catalogue, validation: Catalogue, missing: Sequence[Path]) -> Iterator[str]:
    if paths := list(dict.fromkeys(missing)):
        yield f"videos of the manifests that do not exist or are not files: {len(paths)}, such as {paths[0]}"
    if names := training.names_without_negatives():
        yield (
            f"labels that no training video is known to lack: {len(names)}, such as {names[0]!r}; training can only "
            "raise their scores"
        )
    if found := _contradictions(training):
        yield (
            f"training videos with several entries whose labels contradict each other: {len(found)}, such as "
            f"{found[0]}; write the labels of a video into one entry"
        )
    if pairs := _similar(training.names):
        yield (
            f"labels that differ from another one in case, spaces or Unicode form only: {len(pairs)}, such as "
            f"{pairs[0][1]!r} and {pairs[0][0]!r}; they are trained as different labels"
        )
    if found := _overlapping(training, validation):
        yield (
            f"validation videos that overlap training videos of the same file in time: {len(found)}, such as "
            f"{found[0]}; the validation metrics are too good"
        )


def _contradictions(catalogue: Catalogue) -> list[str]:
    """Videos with several entries, where a label is positive in one and negative in another."""
    rows_of: defaultdict[Window, list[int]] = defaultdict(list)
    for row, window in enumerate(catalogue.windows()):
        rows_of[window].append(row)
    found = []
    for rows in rows_of.values():
        if len(rows) > 1:
            targets = catalogue.targets(rows)
            if ((targets == POSITIVE).any(dim=0) & (targets == NEGATIVE).any(dim=0)).any():
                found.append(catalogue.videos[rows[0]].name)
    return found


def _similar(names: Sequence[str]) -> list[tuple[str, str]]:
    first: dict[str, str] = {}
    folded = [(" ".join(unicodedata.normalize("NFKC", name).casefold().split()), name) for name in names]
    return [(first[key], name) for key, name in folded if first.setdefault(key, name) != name]


def _overlapping(training: Catalogue, validation: Catalogue) -> list[str]:
    trained: defaultdict[str, set[tuple[int, float]]] = defaultdict(set)
    for path, start, end in training.windows():
        trained[path].add((start, end))
    return [
        validation.videos[row].name
        for row, (path, start, end) in enumerate(validation.windows())
        if any(start < other_end and other_start < end for other_start, other_end in trained.get(path, ()))
    ]
