"""From the options of ``vidlex train fit`` to a source."""

from __future__ import annotations

from pathlib import Path

from vidlex.model.sources.catalogue import (
    Dataset,
    read_dataset,
    read_weighted,
    training_catalogue,
    validation_catalogue,
    without_missing,
)
from vidlex.model.sources.config import DataConfig, EmojiConfig
from vidlex.model.sources.emoji import emoji_opener
from vidlex.model.sources.emoji_pool import pool_opener
from vidlex.model.sources.manifests import ManifestSource
from vidlex.model.sources.notices import notices
from vidlex.model.train.loop.loop import console
from vidlex.model.train.source import SourceOpener, SourceSetup

EMOJI = "emoji"


def source_opener(data: DataConfig, emoji: EmojiConfig, art_cache: Path) -> SourceOpener:
    """Reads and checks the manifests at once, and the videos when the source is opened.

    Raises ManifestError, DatasetError or ValueError.
    """
    names = {*data.train, *data.validation}
    if not names or names == {EMOJI}:
        return (pool_opener if emoji.num_pool_videos else emoji_opener)(emoji, art_cache)
    if EMOJI in names or not data.train:
        raise ValueError(
            "the procedural world cannot be mixed with manifests: write its videos to files with `vidlex data build "
            "emoji`, and give their manifest to --train or --validation"
        )
    missing: list[Path] = []

    def read(texts: tuple[str, ...], split: str) -> list[Dataset]:
        found = []
        for text in texts:
            path, weight = read_weighted(text)
            dataset, absent = without_missing(read_dataset(path, split, weight=weight))
            if not dataset.entries:
                raise ValueError(f"{path}: none of the videos of the split {split!r} exists, such as {absent[0]}")
            missing.extend(absent)
            found.append(dataset)
        return found

    others_are_absent = data.other_labels == "absent"
    training = training_catalogue(read(data.train, data.train_split), others_are_absent=others_are_absent)
    texts = data.validation or tuple(str(dataset.manifest) for dataset in training.datasets)
    validation = validation_catalogue(read(texts, data.validation_split), training, others_are_absent=others_are_absent)

    def open_source(setup: SourceSetup) -> ManifestSource:
        console.print(
            f"{len(training)} training videos and {len(validation)} validation videos, {len(training.names)} labels, "
            f"{len(validation.names)} of them in the validation data",
            highlight=False,
        )
        for text in notices(training, validation, missing):
            console.print(text, highlight=False, markup=False)
        return ManifestSource(data, training, validation, missing, setup)

    return open_source
