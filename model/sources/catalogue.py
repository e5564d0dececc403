"""The videos of one or several manifests over one vocabulary, and what is known of each pair of video and label.

A label that an entry does not list is absent if the entry is ``closed`` or its dataset says so (``dataset.json``), and
unknown otherwise. A label that the entry's dataset does not have follows ``DataConfig.other_labels``.
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from vidlex.model.data.dataset import DatasetError, LabelInfo, Unlabelled, read_dataset_info, read_labels
from vidlex.model.data.manifest import Entry, read_manifest, select_split
from vidlex.model.train.losses import NEGATIVE, POSITIVE, UNKNOWN

Window = tuple[str, int, float]  # of a file: real path, first millisecond, end


class Video(NamedTuple):
    name: str  # relative to the manifest
    start_ms: int | None
    end_ms: int | None
    dataset: int
    is_closed: bool
    positives: tuple[int, ...]  # indices of labels
    negatives: tuple[int, ...]


@dataclass(frozen=True)
class Dataset:
    manifest: Path
    weight: float
    unlabelled: Unlabelled
    labels: dict[str, LabelInfo]  # by the key in the manifest
    entries: tuple[Entry, ...]

    def names(self) -> dict[str, str | None]:  # text that is encoded -> kind
        return {info.prompt: info.kind for info in self.labels.values()}


def read_dataset(manifest: Path, split: str, *, weight: float = 1.0) -> Dataset:
    """Raises ManifestError or DatasetError."""
    _refuse_features(manifest)
    entries = tuple(select_split(read_manifest(manifest), split, manifest))
    path = manifest.parent / "labels.json"
    labels = read_labels(path) if path.is_file() else {}
    for entry in entries:
        for key in entry.positives + entry.negatives:
            if path.is_file() and key not in labels:
                raise DatasetError(f"{manifest}: {entry.video} has the label {key!r}, which is not in {path}")
            labels.setdefault(key, LabelInfo(key))
    return Dataset(manifest, weight, read_dataset_info(manifest.parent).unlabelled, labels, entries)


def _refuse_features(path: Path) -> None:
    if path.suffix == ".tfrecord" or (path.is_dir() and any(path.rglob("*.tfrecord"))):
        raise DatasetError(
            f"{path}: the features in YouTube-8M's records are the output of another network (Inception, reduced by "
            "PCA), and this method reads pixels through its own image tower. `vidlex data build youtube8m` takes the "
            "labels from the records and finds the videos by id in a folder; train on the manifest that it writes"
        )
    if not path.is_file():
        raise DatasetError(f"{path} is not a file; give a manifest.jsonl")


class Catalogue:
    """``names`` [V] and their ``kinds``; ``videos`` [n]; ``dataset_weights`` of the videos of each dataset."""

    def __init__(self, datasets: Sequence[Dataset], names: Sequence[str], *, others_are_absent: bool) -> None:
        self.names = tuple(names)
        self.datasets = tuple(datasets)
        position = {name: i for i, name in enumerate(self.names)}
        self.kinds: dict[str, str] = {}
        # [num_datasets, 2, V] int8: targets of labels that an entry does not list, in open and in closed entries
        self._unlisted = torch.full(
            (len(datasets), 2, len(names)), NEGATIVE if others_are_absent else UNKNOWN, dtype=torch.int8
        )
        self.videos: list[Video] = []
        for number, dataset in enumerate(datasets):
            own = {name: kind for name, kind in dataset.names().items() if name in position}
            for name, kind in own.items():
                if kind is not None:
                    self.kinds.setdefault(name, kind)
            columns = [position[name] for name in own]
            self._unlisted[number, 0, columns] = NEGATIVE if dataset.unlabelled == "absent" else UNKNOWN
            self._unlisted[number, 1, columns] = NEGATIVE
            index_of = {key: position[info.prompt] for key, info in dataset.labels.items() if info.prompt in position}
            self.videos += [_video(entry, number, index_of) for entry in dataset.entries]

    def __len__(self) -> int:
        return len(self.videos)

    def targets(self, rows: Sequence[int]) -> Tensor:  # [n, V] int8
        videos = [self.videos[row] for row in rows]
        found = self._unlisted[[video.dataset for video in videos], [int(video.is_closed) for video in videos]]
        for target, video in zip(found, videos, strict=True):
            # two keys of a dataset may have the same text: present beats absent
            target[list(video.negatives)] = NEGATIVE
            target[list(video.positives)] = POSITIVE
        return found

    def path(self, row: int) -> Path:
        video = self.videos[row]
        return self.datasets[video.dataset].manifest.parent / video.name

    def windows(self) -> list[Window]:  # [n]
        return [
            (_real_path(self.path(row)), video.start_ms or 0, math.inf if video.end_ms is None else video.end_ms)
            for row, video in enumerate(self.videos)
        ]

    def num_known_negatives(self) -> tuple[list[int], list[int]]:  # [n] of each video, [V] of each label
        is_absent = self._unlisted == NEGATIVE
        num_absent, is_absent_label = is_absent.sum(dim=2).tolist(), is_absent.tolist()
        num_videos = torch.zeros(self._unlisted.shape[:2], dtype=torch.int64)
        of_videos, extra = [], [0] * len(self.names)
        for video in self.videos:
            by_rule = is_absent_label[video.dataset][video.is_closed]
            contradicted = [i for i in video.positives if by_rule[i]]
            added = [i for i in video.negatives if not by_rule[i]]
            of_videos.append(num_absent[video.dataset][video.is_closed] - len(contradicted) + len(added))
            num_videos[video.dataset, int(video.is_closed)] += 1
            for i in contradicted:
                extra[i] -= 1
            for i in added:
                extra[i] += 1
        of_labels = (num_videos[..., None] * is_absent).sum(dim=(0, 1)) + torch.tensor(extra, dtype=torch.int64)
        return of_videos, of_labels.tolist()

    def keep(self, rows: Sequence[int]) -> None:
        self.videos = [self.videos[row] for row in rows]

    def num_positives(self) -> Tensor:  # [V]
        counts = torch.zeros(len(self.names), dtype=torch.int64)
        for video in self.videos:
            counts[list(video.positives)] += 1
        return counts

    def names_without_negatives(self) -> list[str]:
        """Labels that no video is known to lack."""
        _, counts = self.num_known_negatives()
        return [name for name, count in zip(self.names, counts, strict=True) if not count]

    def identity(self) -> str:
        """Digest of videos, windows and targets, but not of the place of the manifests."""
        digest = hashlib.sha256(repr(self.names).encode() + self._unlisted.numpy().tobytes())
        for video in self.videos:
            digest.update(repr(tuple(video)).encode())
        return digest.hexdigest()[:16]


def _video(entry: Entry, dataset: int, index_of: dict[str, int]) -> Video:
    positives = {index_of[key] for key in entry.positives if key in index_of}
    negatives = {index_of[key] for key in entry.negatives if key in index_of} - positives
    return Video(
        entry.video, entry.start_ms, entry.end_ms, dataset, entry.closed, tuple(sorted(positives)),
        tuple(sorted(negatives)),
    )  # fmt: skip


def training_catalogue(datasets: Sequence[Dataset], *, others_are_absent: bool) -> Catalogue:
    """Over the labels with a training video, in the order of the datasets and of their labels.

    Raises DatasetError if no pair is positive, or none is a known negative.
    """
    names = list(dict.fromkeys(name for dataset in datasets for name in dataset.names()))
    catalogue = Catalogue(datasets, names, others_are_absent=others_are_absent)
    counts = catalogue.num_positives()
    if not counts.any():
        raise DatasetError(f"{_names(datasets)}: no training video has a positive label")
    shown = [name for name, count in zip(names, counts.tolist(), strict=True) if count]
    if len(shown) < len(names):
        catalogue = Catalogue(datasets, shown, others_are_absent=others_are_absent)
    num_negatives, _ = catalogue.num_known_negatives()
    if not any(num_negatives):
        raise DatasetError(
            f"{_names(datasets)}: no label is known to be absent in any training video, so training would learn that "
            'everything is present; list negatives, set "closed" in entries whose labels are complete, or set '
            '"unlabelled": "absent" in dataset.json'
        )
    # a video of which nothing is known teaches nothing
    catalogue.keep([row for row, video in enumerate(catalogue.videos) if video.positives or num_negatives[row]])
    return catalogue


def validation_catalogue(datasets: Sequence[Dataset], training: Catalogue, *, others_are_absent: bool) -> Catalogue:
    """Over the labels of ``training`` that the validation datasets have. Raises DatasetError if videos are in both."""
    known = {name for dataset in datasets for name in dataset.names()}
    names = [name for name in training.names if name in known]
    validation = Catalogue(datasets, names, others_are_absent=others_are_absent)
    trained = set(training.windows())
    both = [
        video.name for video, window in zip(validation.videos, validation.windows(), strict=True) if window in trained
    ]
    if both:
        raise DatasetError(
            f"{_names(datasets)}: {len(both)} validation videos are training videos as well, such as {both[0]}; use "
            "other files or other splits (an entry without a split belongs to every split)"
        )
    return validation


def read_weighted(text: str) -> tuple[Path, float]:
    """``A.jsonl`` or ``A.jsonl:2``. Raises ValueError for a weight that is not positive."""
    path, colon, number = text.rpartition(":")
    try:
        weight = float(number)
    except ValueError:
        colon = ""
    if not colon or Path(text).exists():
        return Path(text), 1.0
    if not 0 < weight < float("inf"):
        raise ValueError(f"{text}: the weight of a manifest must be positive")
    return Path(path), weight


def without_missing(dataset: Dataset) -> tuple[Dataset, list[Path]]:
    """The dataset without the entries whose file does not exist or is none, and those files."""
    folder = dataset.manifest.parent
    exists = {name: _is_file(folder / name) for name in {entry.video for entry in dataset.entries}}
    kept = tuple(entry for entry in dataset.entries if exists[entry.video])
    return replace(dataset, entries=kept), [folder / name for name, is_there in sorted(exists.items()) if not is_there]


@functools.cache
def _real_path(path: Path) -> str:
    return os.path.realpath(path)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long, a folder that may not be read
        return False


def _names(datasets: Sequence[Dataset]) -> str:
    return ", ".join(dict.fromkeys(str(dataset.manifest) for dataset in datasets))
