"""The 1,000 classes of the image tower in WordNet 3.0's noun tree.

``data.noun`` is WordNet's own file (Debian's package wordnet-base holds it); a class's identifier is "n" with the
offset of its synset there. The classes and their lemmas come from timm.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

NUM_CLASSES = 1000


@dataclass(frozen=True)
class Synset:
    words: tuple[str, ...]
    hypernyms: tuple[str, ...]  # identifiers


@dataclass(frozen=True)
class Taxonomy:
    classes: tuple[str, ...]  # identifiers, in the order of the classifier's rows
    lemmas: tuple[tuple[str, ...], ...]  # names of each class, the first lemma first
    ancestors: tuple[tuple[str, ...], ...]  # identifiers above each class, nearest first
    synsets: dict[str, Synset]


def read_nouns(path: Path) -> dict[str, Synset]:
    """``data.noun``, by identifier. Format: wndb(5WN); raises ValueError for another file."""
    synsets: dict[str, Synset] = {}
    with path.open(encoding="latin1") as file:
        for line in file:
            if line.startswith("  "):  # the licence
                continue
            fields = line.split("|", 1)[0].split()
            try:
                num_words = int(fields[3], 16)
                words = tuple(fields[4 + 2 * i].replace("_", " ") for i in range(num_words))
                pointers = fields[5 + 2 * num_words :]
                starts = range(0, len(pointers), 4)
                hypernyms = tuple("n" + pointers[i + 1] for i in starts if pointers[i] in ("@", "@i"))
            except (IndexError, ValueError):
                raise ValueError(f"{path} is not WordNet's data.noun") from None
            synsets["n" + fields[0]] = Synset(words, hypernyms)
    return synsets


def read_taxonomy(path: Path) -> Taxonomy:
    """Raises ValueError where a class is missing, such as in another version of WordNet."""
    from timm.data.imagenet_info import ImageNetInfo

    synsets = read_nouns(path)
    info: Any = ImageNetInfo()
    classes = tuple(info.label_names())
    if len(classes) != NUM_CLASSES or any(identifier not in synsets for identifier in classes):
        raise ValueError(f"{path} does not hold the {NUM_CLASSES} classes: WordNet 3.0 is needed")
    lemmas = []
    for identifier in classes:
        names = [*info.label_name_to_description(identifier, detailed=False).split(", "), *synsets[identifier].words]
        lemmas.append(tuple(dict.fromkeys(name.strip() for name in names)))
    try:
        ancestors = tuple(_ancestors(identifier, synsets) for identifier in classes)
    except KeyError as error:
        raise ValueError(f"{path} lacks the synset {error.args[0]}") from None
    return Taxonomy(classes, tuple(lemmas), ancestors, synsets)


def _ancestors(identifier: str, synsets: dict[str, Synset]) -> tuple[str, ...]:
    found: dict[str, None] = {}
    waiting = [identifier]
    while waiting:
        for hypernym in synsets[waiting.pop(0)].hypernyms:
            if hypernym not in found:
                found[hypernym] = None
                waiting.append(hypernym)
    return tuple(found)
