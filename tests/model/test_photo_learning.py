"""WordNet, training texts and their targets in the image tower's space, against scikit-learn and scipy."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from timm.data.imagenet_info import ImageNetInfo

from vidlex.model.photo.concepts import build_concepts, is_class_name
from vidlex.model.photo.context import RULES, WORDINGS
from vidlex.model.photo.targets import (
    Target,
    _fit_slopes,
    adapt_to_photos,
    class_directions,
    fit_targets,
    sigmoid32,
    simulate_photos,
)
from vidlex.model.photo.wordnet import NUM_CLASSES, Synset, Taxonomy, read_nouns, read_taxonomy

Floats = NDArray[np.float32]

WORDNET = Path(os.environ.get("WORDNET_NOUNS", "/usr/share/wordnet/data.noun"))  # as Debian's wordnet-base installs it
# names of RULES that are above classes in WordNet, and not a class's own
KINDS = """
aircraft, aquatic bird, aquatic mammal, ball, bear, bicycle, big cat, bird, boat, bridge, building, butterfly, canine,
clothing, computer, coral, dessert, dish, dog, domestic cat, duck, edible fruit, electronic equipment, fish, flower,
food, footwear, fungus, furniture, game equipment, garment, geological formation, headdress, home appliance, house,
insect, lizard, locomotive, mercantile establishment, motor vehicle, musical instrument, place of worship, primate,
seabird, ship, shorebird, snake, spider, sports equipment, tower, turtle, ungulate, vegetable, vessel, wading bird,
whale
"""


def noun(offset: str, words: Sequence[str], pointers: Sequence[tuple[str, str]] = ()) -> str:
    named = " ".join(f"{word.replace(' ', '_')} 0" for word in words)
    pointed = " ".join(f"{symbol} {target} n 0000" for symbol, target in pointers)
    return f"{offset} 03 n {len(words):02x} {named} {len(pointers):03d} {pointed} | a gloss; @ 00000009 n 0000"


def write_nouns(folder: Path, *lines: str) -> Path:
    path = folder / "data.noun"
    path.write_text("\n".join(("  1 This software and database is being provided", *lines)) + "\n", encoding="latin1")
    return path


def test_nouns_are_read(tmp_path: Path) -> None:
    many = [f"name {i}" for i in range(18)]  # their number is written in hexadecimal
    pointers = [("@", "00000002"), ("~", "00000003"), ("#p", "00000004"), ("@i", "00000005"), ("%i", "00000006")]
    path = write_nouns(tmp_path, noun("00000001", many, pointers), noun("00000002", ["café"]))
    assert read_nouns(path) == {
        "n00000001": Synset(tuple(many), ("n00000002", "n00000005")),
        "n00000002": Synset(("café",), ()),
    }


VALID = noun("00000001", ["a b", "c"], [("@", "00000002")])
SPOILED = st.tuples(st.integers(0, len(VALID)), st.integers(0, 9), st.text("0 @~|abn", max_size=5)).map(
    lambda cut: VALID[: cut[0]] + cut[2] + VALID[cut[0] + cut[1] :]
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.text(st.characters(max_codepoint=255), max_size=60), SPOILED), max_size=4))
def test_any_lines_are_nouns_or_refused(tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> None:
    path = write_nouns(tmp_path_factory.getbasetemp(), *lines)
    try:
        synsets = read_nouns(path)
    except ValueError as error:
        assert "is not WordNet's data.noun" in str(error)
    else:
        assert all(name.startswith("n") and isinstance(synset, Synset) for name, synset in synsets.items())


@pytest.fixture(scope="module")
def info() -> Any:
    return ImageNetInfo()


def test_the_taxonomy_has_all_classes(tmp_path: Path, info: Any) -> None:
    lines = [noun(name[1:], ["word of class"], [("@", "90000001"), ("@", "90000002")]) for name in info.label_names()]
    above = [
        noun("90000001", ["left"], [("@", "90000003")]),
        noun("90000002", ["right"], [("@", "90000003")]),
        noun("90000003", ["top"]),
    ]
    taxonomy = read_taxonomy(write_nouns(tmp_path, *lines, *above))
    assert len(taxonomy.classes) == NUM_CLASSES
    assert taxonomy.lemmas[1] == ("goldfish", "Carassius auratus", "word of class")
    assert set(taxonomy.ancestors) == {("n90000001", "n90000002", "n90000003")}
    with pytest.raises(ValueError, match=r"WordNet 3\.0 is needed"):
        read_taxonomy(write_nouns(tmp_path, *lines[1:], *above))
    with pytest.raises(ValueError, match="lacks the synset n90000003"):
        read_taxonomy(write_nouns(tmp_path, *lines, *above[:2]))


def lemmas_of(info: Any) -> tuple[tuple[str, ...], ...]:
    names = (info.label_name_to_description(name, detailed=False).split(", ") for name in info.label_names())
    return tuple(tuple(lemma.strip() for lemma in lemmas) for lemmas in names)


def unmatched(known: set[str]) -> list[str]:
    known = {name.lower() for name in known}
    return [name for names, _ in RULES for name in names if name.lower() not in known]


def test_rules_name_classes_and_kinds(info: Any) -> None:
    classes = {lemma for lemmas in lemmas_of(info) for lemma in lemmas}
    kinds = {" ".join(kind.split()) for kind in KINDS.split(",")}
    assert unmatched(classes | kinds) == []
    assert "dog" in unmatched(classes)  # a name that matches nothing is found
    synsets = (files("timm.data") / "_info" / "imagenet_synset_to_lemma.txt").read_text(encoding="utf-8").splitlines()
    assert not kinds - {lemma for line in synsets for lemma in line.split("\t")[1].split(", ")}


@pytest.mark.skipif(not WORDNET.is_file(), reason=f"{WORDNET} is not there: install Debian's wordnet-base")
def test_rules_name_what_is_in_wordnet() -> None:
    taxonomy = read_taxonomy(WORDNET)
    words = {word for names in taxonomy.ancestors for name in names for word in taxonomy.synsets[name].words}
    assert unmatched(words | {lemma for lemmas in taxonomy.lemmas for lemma in lemmas}) == []
    excluded = range(0, NUM_CLASSES, 5)
    classes = [i for i in range(NUM_CLASSES) if i % 5]
    concepts = build_concepts(taxonomy, classes, excluded)
    assert all(truth.any() for truth in concepts.values())
    assert not {text.lower() for text in concepts} & {lemma.lower() for i in excluded for lemma in taxonomy.lemmas[i]}


def test_rules_and_wordings_agree() -> None:
    shown = [concepts for _, concepts in RULES]
    assert {concept for concepts in shown for concept in concepts} == set(WORDINGS)
    assert all(0 < probability <= 1 for concepts in shown for probability in concepts.values())
    assert all(texts for texts in WORDINGS.values())


def small_taxonomy() -> Taxonomy:
    return Taxonomy(
        classes=("n1", "n2", "n3", "n4"),
        lemmas=(("crane", "Grus"), ("crane", "derrick"), ("lawn mower", "mower"), ("Lawn", "green")),
        ancestors=(("n5",), ("n6",), ("n6",), ("n6",)),
        synsets={"n5": Synset(("bird",), ()), "n6": Synset(("machine", "tool", "device", "fourth name"), ())},
    )


def shown_by(truth: Floats) -> dict[int, float]:
    return {int(i): round(float(truth[i]), 3) for i in np.flatnonzero(truth)}


def test_concepts() -> None:
    concepts = build_concepts(small_taxonomy(), range(4))
    assert shown_by(concepts["Grus"]) == {0: 1}
    assert shown_by(concepts["crane"]) == {0: 1, 1: 1}  # two meanings
    assert shown_by(concepts["tool"]) == {1: 1, 2: 1, 3: 1}
    assert "fourth name" not in concepts
    assert shown_by(concepts["sky"]) == {0: 0.25}  # birds'
    assert shown_by(concepts["meadow"]) == {0: 0.2, 2: 0.9}  # the most that any rule says
    assert shown_by(concepts["Lawn"]) == {3: 1} and shown_by(concepts["lawn"]) == {0: 0.2, 2: 0.9}
    assert is_class_name(concepts["Grus"]) and not is_class_name(concepts["crane"])


def test_names_of_excluded_classes_are_no_texts() -> None:
    concepts = build_concepts(small_taxonomy(), [1, 2], excluded=[0, 3])
    assert not {text.lower() for text in concepts} & {"crane", "grus", "lawn", "green"}
    assert shown_by(concepts["tool"]) == {1: 1, 2: 1}
    assert not any(truth[[0, 3]].any() for truth in concepts.values())
    assert all(truth.any() for truth in concepts.values())
    assert "sky" not in concepts  # of the excluded bird alone


def test_slopes_are_those_of_logistic_regression() -> None:
    rng = np.random.default_rng(0)
    similarity = rng.uniform(-0.6, 0.8, (3, 4000)).astype(np.float32)
    chance = sigmoid32(np.array([[8], [14], [25]]) * similarity + np.array([[-1], [-3], [-6]]))
    truth = (rng.random(similarity.shape) < chance).astype(np.float32)
    truth[2] = chance[2]  # probabilities
    slopes, biases = _fit_slopes(similarity, truth)
    for row in range(3):
        x = np.tile(similarity[row], 2)[:, None]
        weight = np.concatenate((truth[row], 1 - truth[row]))
        y = np.repeat((1, 0), similarity.shape[1])
        reference = LogisticRegression(C=np.inf, tol=1e-8, max_iter=1000).fit(x, y, sample_weight=weight)
        assert slopes[row] == pytest.approx(reference.coef_[0, 0], rel=5e-3)
        assert biases[row] == pytest.approx(reference.intercept_[0], rel=5e-3)


def test_targets_find_simulated_photos() -> None:
    rng = np.random.default_rng(1)
    centres = np.repeat(rng.standard_normal((3, 48)), 20, axis=0)  # 3 kinds of 20 classes
    directions = class_directions(centres + rng.standard_normal((60, 48)))
    assert np.allclose(np.linalg.norm(directions, axis=1), 1, atol=1e-6)
    truths = {"one": [7], "pair": [3, 4], "many": list(range(20, 40))}
    concepts = {text: np.isin(np.arange(60), members).astype(np.float32) for text, members in truths.items()}
    concepts["likely"] = 0.7 * concepts["many"]
    targets = fit_targets(concepts, directions, range(60))
    weight = targets["one"].weight
    assert weight @ directions[7] / np.linalg.norm(weight) > 0.99
    shown = np.repeat(np.arange(60), 40)
    photos = simulate_photos(directions, shown.tolist(), np.random.default_rng(2))
    assert np.allclose(np.linalg.norm(photos, axis=1), 1, atol=1e-6)
    for text, truth in concepts.items():
        logits = photos @ targets[text].weight + targets[text].bias
        found = roc_auc_score(truth[shown] > 0, logits)
        assert found > 0.8, text
        mean = truth @ directions / truth.sum()
        assert found > roc_auc_score(truth[shown] > 0, photos @ mean) - 0.01
        assert sigmoid32(logits).mean() == pytest.approx(truth[shown].mean(), abs=0.05)


def log_likelihood(targets: Sequence[Target], photos: Floats, truth: Floats, known: NDArray[np.bool_]) -> float:
    logits = np.stack([photos @ target.weight + target.bias for target in targets], axis=1).astype(np.float64)
    return float(((truth * logits - np.logaddexp(0, logits)) * known).sum())


def test_photos_adapt_targets() -> None:
    rng = np.random.default_rng(3)
    photos = rng.standard_normal((200, 24)).astype(np.float32)
    photos /= np.linalg.norm(photos, axis=1, keepdims=True)
    true_weight = 8 * rng.standard_normal((24, 3)).astype(np.float32)
    truth = (rng.random((200, 3)) < sigmoid32(photos @ true_weight)).astype(np.float32)
    known = rng.random((200, 3)) < 0.8
    start = [Target(4 * rng.standard_normal(24).astype(np.float32), -1.0) for _ in range(3)]
    adapted = adapt_to_photos(start, photos, truth, known, l2=0.03)

    def penalised(targets: Sequence[Target]) -> float:
        moved = sum(
            float(((a.weight - b.weight) ** 2).sum() + (a.bias - b.bias) ** 2)
            for a, b in zip(targets, start, strict=True)
        )
        return log_likelihood(targets, photos, truth, known) - 0.03 / 2 * moved

    best = []
    for k, target in enumerate(start):
        x, y = np.column_stack((photos, np.ones(200)))[known[:, k]], truth[known[:, k], k]
        prior = np.append(target.weight, target.bias).astype(np.float64)

        def loss(w: Any, x: Any = x, y: Any = y, prior: Any = prior) -> tuple[float, Any]:
            residual = sigmoid32(x @ w) - y
            value = (np.logaddexp(0, x @ w) - y * (x @ w)).sum() + 0.03 / 2 * ((w - prior) ** 2).sum()
            return value, residual @ x + 0.03 * (w - prior)

        found = minimize(loss, prior, jac=True, method="L-BFGS-B").x
        best.append(Target(found[:-1].astype(np.float32), float(found[-1])))
    gained, possible = penalised(adapted) - penalised(start), penalised(best) - penalised(start)
    assert log_likelihood(adapted, photos, truth, known) > log_likelihood(start, photos, truth, known)
    assert 0.95 * possible < gained <= possible + 1e-3
    again = adapt_to_photos(start, photos, np.where(known, truth, 1 - truth), known, l2=0.03)
    assert all(np.array_equal(a.weight, b.weight) for a, b in zip(adapted, again, strict=True))
