"""Training texts of the label side, and of which classes' photos each of them is true."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from vidlex.model.photo.context import RULES, WORDINGS
from vidlex.model.photo.wordnet import NUM_CLASSES, Taxonomy

MAX_HYPERNYM_WORDS = 3
ONE_CLASS = 1.01  # a truth with a smaller sum is of one class alone

Truth = NDArray[np.float32]  # [NUM_CLASSES] probability that a photo of the class shows what the text says


def build_concepts(taxonomy: Taxonomy, classes: Sequence[int], excluded: Iterable[int] = ()) -> dict[str, Truth]:
    """Names of ``classes``, of all that is above them in WordNet, and of what their photos also show.

    A text with several meanings is true of the photos of each. No name of the ``excluded`` classes is a text.
    """
    refused = {name.lower() for i in excluded for name in taxonomy.lemmas[i]}
    concepts: dict[str, Truth] = {}

    def add(text: str, members: Iterable[int], probability: float = 1.0) -> None:
        rows = sorted(members)
        if text.lower() in refused or not rows:
            return
        truth = concepts.setdefault(text, np.zeros(NUM_CLASSES, np.float32))
        truth[rows] = np.maximum(truth[rows], probability)

    below: dict[str, list[int]] = defaultdict(list)
    named: dict[str, set[int]] = defaultdict(set)
    for i in classes:
        for name in taxonomy.lemmas[i]:
            add(name, [i])
            named[name.lower()].add(i)
        for ancestor in taxonomy.ancestors[i]:
            below[ancestor].append(i)
            for word in taxonomy.synsets[ancestor].words:
                named[word.lower()].add(i)
    for ancestor, members in below.items():
        for word in taxonomy.synsets[ancestor].words[:MAX_HYPERNYM_WORDS]:
            add(word, members)
    for names, shown in RULES:
        members_of_rule = set().union(*(named[name.lower()] for name in names))
        for concept, probability in shown.items():
            for text in WORDINGS[concept]:
                add(text, members_of_rule, probability)
    return concepts


def is_class_name(truth: Truth) -> bool:
    return float(truth.sum()) < ONE_CLASS
