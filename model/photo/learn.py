"""The label side of ``photo-small``: what texts look like, learned from an image classifier's weights.

Targets: for each name of the tower's classes, of what is above them in WordNet and of what their photos also show, and
for the labels of free photographs, a direction, a slope and a bias in the tower's space (``targets.py``). For the
wordings of camera work, an output of the motion branch. Kernel ridge regression from the LLM's states of these texts to
their targets (``regression.py``) then gives every other text its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vidlex.model.photo.concepts import Truth, build_concepts, is_class_name
from vidlex.model.photo.config import LearnConfig
from vidlex.model.photo.photos import Photo, frequent_labels, label_matrix
from vidlex.model.photo.regression import Coordinates, fit_kinds, kernel, solve
from vidlex.model.photo.targets import Target, adapt_to_photos, class_directions, fit_targets
from vidlex.model.photo.wordnet import NUM_CLASSES, Taxonomy

Floats = NDArray[np.float32]
States = Callable[[Sequence[str]], Floats]  # names -> [V, P, d]


@dataclass(frozen=True, eq=False)
class Motion:
    """Wordings of each output of the motion branch, and what logit a text of it has: ``slope * score + bias``."""

    wordings: tuple[tuple[str, ...], ...]
    slopes: Floats  # [M]
    biases: Floats  # [M]


@dataclass(frozen=True, eq=False)
class Learned:
    tensors: dict[str, Floats]  # "label.*"
    texts: tuple[str, ...]  # of the landmarks
    trained_photo_labels: tuple[str, ...]


def learn_labels(
    config: LearnConfig,
    *,
    taxonomy: Taxonomy,
    classifier_weight: Floats,
    states: States,
    photos: Sequence[Photo] = (),
    photo_z: Floats | None = None,
    motion: Motion | None = None,
    excluded: Sequence[int] = (),
    unit_targets: bool = False,
) -> Learned:
    """``photo_z`` [photos, D]: centred unit features. ``excluded``: classes of which nothing is learned.

    ``unit_targets``: directions of length 1, those of kinds the mean of their classes', without bias: for comparisons
    among names alone.
    """
    directions = class_directions(classifier_weight)
    classes = [i for i in range(NUM_CLASSES) if i not in set(excluded)]
    concepts = build_concepts(taxonomy, classes, excluded)
    targets = (
        {text: Target(_mean_direction(truth, directions), 0.0) for text, truth in concepts.items()}
        if unit_targets
        else fit_targets(concepts, directions, classes, seed=config.seed)
    )
    ridge = {
        text: config.class_ridge if is_class_name(truth) else config.kind_name_ridge for text, truth in concepts.items()
    }
    num_motion = 0 if motion is None else len(motion.wordings)
    refused = {name.lower() for i in excluded for name in taxonomy.lemmas[i]}
    labels = [label for label in frequent_labels(photos, config.min_photos) if label.lower() not in refused]
    wordings = [] if motion is None else [text for texts in motion.wordings for text in texts]
    texts = list(dict.fromkeys([*sorted(concepts), *labels, *wordings]))
    row = {text: i for i, text in enumerate(texts)}
    text_states = states(texts)
    coordinates = Coordinates.of(text_states[[row[text] for text in sorted(concepts)]], config.rank)
    a = coordinates(text_states)
    tensors = {
        "label.state_mean": coordinates.mean,
        "label.state_std": coordinates.std,
        "label.projection": coordinates.projection,
    }
    kinds = None
    if config.kind_width:
        matrix = fit_kinds(
            a[[row[text] for text in sorted(concepts)]],
            [_ancestors_of(truth, taxonomy) for _, truth in sorted(concepts.items())],
            width=config.kind_width,
            ridge=config.kind_ridge,
        )
        kinds = a @ matrix
        kinds /= np.linalg.norm(kinds, axis=1, keepdims=True)
        tensors |= {"label.kinds": matrix, "label.landmark_kinds": kinds}

    def similarities(rows: Sequence[int], columns: Sequence[int]) -> Floats:
        values = kernel(a[list(rows)], a[list(columns)], config.state_scale)
        if kinds is not None:
            values = values * kernel(kinds[list(rows)], kinds[list(columns)], config.kind_scale)
        return values

    if labels and photo_z is not None:
        known = sorted(concepts)
        known_rows = [row[text] for text in known]
        first = _stack([targets[text] for text in known], num_motion)
        mean_bias = _centre_bias(first, num_motion)
        alpha = solve(
            similarities(known_rows, known_rows), first, np.array([ridge[text] for text in known], np.float32)
        )
        predicted = similarities([row[label] for label in labels], known_rows) @ alpha
        start = [_sharpen(y[: directions.shape[1]], float(y[directions.shape[1]]) + mean_bias) for y in predicted]
        truth, is_known = label_matrix(photos, labels)
        for label, target in zip(
            labels, adapt_to_photos(start, photo_z, truth, is_known, l2=config.photo_l2), strict=True
        ):
            targets[label], ridge[label] = target, config.photo_ridge
    outputs = _stack(
        [targets.get(text, Target(np.zeros(directions.shape[1], np.float32), 0.0)) for text in texts], num_motion
    )
    if motion is not None:
        ridge |= _add_motion(outputs, row, motion, directions.shape[1], config.motion_ridge)
    mean_bias = 0.0 if unit_targets else _centre_bias(outputs, num_motion)
    every = range(len(texts))
    alpha = solve(similarities(every, every), outputs, np.array([ridge[text] for text in texts], np.float32))
    offset = np.zeros(outputs.shape[1], np.float32)
    offset[directions.shape[1]] = mean_bias
    tensors |= {"label.landmarks": a, "label.alpha": alpha, "label.offset": offset}
    return Learned(tensors, tuple(texts), tuple(labels))


SHARP_SLOPE = 20.0  # of a label before it sees a photo


def _sharpen(weight: Floats, bias: float) -> Target:
    return Target(SHARP_SLOPE * weight / np.linalg.norm(weight), 0.5 * bias - 1.0)


def _mean_direction(truth: Truth, directions: Floats) -> Floats:
    mean: Floats = (truth @ directions / truth.sum()).astype(np.float32)
    return mean


def _ancestors_of(truth: Truth, taxonomy: Taxonomy) -> list[str]:
    """What all classes of a text have in common, and the classes' own identifiers if there is one alone."""
    members = [int(i) for i in np.flatnonzero(truth > 0.99)]
    if not members:
        return []
    shared = set.intersection(*({taxonomy.classes[i], *taxonomy.ancestors[i]} for i in members))
    return sorted(shared)


def _stack(targets: Sequence[Target], num_motion: int) -> Floats:
    """[targets, D + 1 + M]"""
    rows = [np.concatenate((t.weight, [t.bias], np.zeros(num_motion))) for t in targets]
    return np.stack(rows).astype(np.float32)


def _centre_bias(outputs: Floats, num_motion: int) -> float:
    """Subtracts the mean bias in place, and returns it: what a text unlike all others then has."""
    column = outputs.shape[1] - num_motion - 1
    mean = float(outputs[:, column].mean())
    outputs[:, column] -= mean
    return mean


def _add_motion(
    outputs: Floats, row: Mapping[str, int], motion: Motion, num_channels: int, ridge: float
) -> dict[str, float]:
    ridges = {}
    for m, texts in enumerate(motion.wordings):
        for text in texts:
            outputs[row[text]] = 0
            outputs[row[text], num_channels] = motion.biases[m]
            outputs[row[text], num_channels + 1 + m] = motion.slopes[m]
            ridges[text] = ridge
    return ridges
