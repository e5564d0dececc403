"""Labels learned by kernel regression, against scikit-learn, brute force and the encoder that reads the tensors."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import save_file
from sklearn.kernel_ridge import KernelRidge
from sklearn.metrics.pairwise import rbf_kernel

from support.tiny import LLM_WIDTH, write_llm
from vidlex.model.config import KernelConfig
from vidlex.model.kernel.label_encoder import KernelLabelEncoder
from vidlex.model.photo.build import MAX_MOTION_SLOPE, read_motion
from vidlex.model.photo.config import LearnConfig
from vidlex.model.photo.learn import Learned, Motion, learn_labels
from vidlex.model.photo.photos import Photo, frequent_labels, label_matrix, load_photo, photo_features, read_photos
from vidlex.model.photo.regression import Coordinates, fit_kinds, kernel, solve
from vidlex.model.photo.targets import class_directions
from vidlex.model.photo.wordnet import Synset, Taxonomy
from vidlex.model.text.load_llm import load_llm

Floats = NDArray[np.float32]


def normal(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_coordinates() -> None:
    states = 3 * normal(30, 2, 8) + 1
    coordinates = Coordinates.of(states, 5)
    found = coordinates(states)
    assert found.shape == (30, 10)
    for p in range(2):
        part = (states[:, p] - states[:, p].mean(axis=0)) / (states[:, p].std(axis=0) + 1e-4)
        part /= np.linalg.norm(part, axis=1, keepdims=True)
        left, size, _ = np.linalg.svd(part, full_matrices=False)
        expected = (left * size)[:, :5] / 2**0.5  # of principal axes, up to the sign
        assert np.allclose(np.abs(found[:, 5 * p : 5 * p + 5]), np.abs(expected), atol=1e-5)
    full = Coordinates.of(states, 8)(states)
    assert np.allclose(np.linalg.norm(full, axis=1), 1, atol=1e-5)


def test_kernel_and_solution_are_scikit_learns() -> None:
    a, b, targets = normal(40, 6), normal(7, 6, seed=1), normal(40, 5, seed=2)
    similarities = kernel(a, a, 0.8)
    assert np.allclose(similarities, rbf_kernel(a, gamma=0.4), atol=1e-6)
    assert np.allclose(kernel(a, b, 0.8), rbf_kernel(a, b, gamma=0.4), atol=1e-6)
    ridge = np.linspace(0.05, 0.5, 40).astype(np.float32)
    alpha = solve(similarities, targets, ridge)
    reference = KernelRidge(kernel="precomputed", alpha=1.0).fit(similarities, targets, sample_weight=1 / ridge)
    assert np.allclose(alpha, reference.dual_coef_, atol=1e-4)
    assert np.allclose(kernel(b, a, 0.8) @ alpha, reference.predict(kernel(b, a, 0.8)), atol=1e-5)


def test_kinds_of_texts_of_one_kind_are_near() -> None:
    rng = np.random.default_rng(0)
    kind = np.repeat(np.arange(6), 8)
    coordinates = (np.eye(6, 20, dtype=np.float32)[kind] + 0.3 * rng.standard_normal((48, 20))).astype(np.float32)
    kinds = coordinates @ fit_kinds(coordinates, [[f"kind {k}", "all"] for k in kind], width=4, ridge=0.1)
    kinds /= np.linalg.norm(kinds, axis=1, keepdims=True)
    cosine = kinds @ kinds.T
    same = kind[:, None] == kind
    assert cosine[same].mean() > 0.8 and cosine[~same].mean() < 0.2


# A world of 48 classes in six kinds. A text's states are a random map of its direction in the tower's space.
NUM_KINDS, PER_KIND, DIM = 6, 8, 40
NUM_WORLD_CLASSES = NUM_KINDS * PER_KIND
UNSEEN = 13
BETWEEN = ("class 1", "class 4")
PROMPTS = ("visible", "kind")


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> tuple[Floats, Taxonomy, Callable[[Sequence[str]], Floats]]:
    for module in ("concepts", "learn"):
        monkeypatch.setattr(f"vidlex.model.photo.{module}.NUM_CLASSES", NUM_WORLD_CLASSES)
    kind = np.repeat(np.arange(NUM_KINDS), PER_KIND)
    weight = normal(NUM_KINDS, DIM)[kind] + 0.8 * normal(NUM_WORLD_CLASSES, DIM, seed=1)
    taxonomy = Taxonomy(
        tuple(f"n{i}" for i in range(NUM_WORLD_CLASSES)),
        tuple((f"class {i}",) for i in range(NUM_WORLD_CLASSES)),
        tuple((f"k{k}",) for k in kind),
        {f"k{k}": Synset((f"kind {k}",), ()) for k in range(NUM_KINDS)},
    )
    directions = class_directions(weight)
    maps = normal(len(PROMPTS), DIM, LLM_WIDTH, seed=2)
    known = {f"class {i}": directions[i] for i in range(NUM_WORLD_CLASSES)}
    known |= {f"kind {k}": directions[kind == k].mean(axis=0) for k in range(NUM_KINDS)}
    known["between"] = (known[BETWEEN[0]] + known[BETWEEN[1]]) / 2
    known |= {text: normal(DIM, seed=10 + i) / DIM**0.5 for i, text in enumerate(("red", "rare", "pan", "zoom"))}

    def states(names: Sequence[str]) -> Floats:
        latent = np.stack([known[name] for name in names])
        return np.einsum("vd,pdw->vpw", latent, maps).astype(np.float32)

    return weight, taxonomy, states


CONFIG = LearnConfig(prompts=PROMPTS, rank=16, kind_width=5)
MOTION = Motion((("pan",), ("zoom",)), np.array([9, 6], np.float32), np.array([-3, -2], np.float32))


def predict(learned: Learned, config: LearnConfig, states: Floats) -> Floats:
    """Brute force, one text and one landmark at a time: [texts, D + 1 + M]."""
    t = {name.removeprefix("label."): value.astype(np.float64) for name, value in learned.tensors.items()}
    rows = []
    for state in states:
        x = (state - t["state_mean"]) / t["state_std"]
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        a = np.concatenate([x[p] @ t["projection"][p] for p in range(len(x))]) / len(x) ** 0.5
        exponent = [-config.state_scale / 2 * ((a - mark) ** 2).sum() for mark in t["landmarks"]]
        if config.kind_width:
            kind = a @ t["kinds"] / np.linalg.norm(a @ t["kinds"])
            for j, mark in enumerate(t["landmark_kinds"]):
                exponent[j] -= config.kind_scale / 2 * ((kind - mark) ** 2).sum()
        rows.append(np.exp(exponent) @ t["alpha"] + t["offset"])
    return np.array(rows, np.float32)


def cosines(weights: Floats, directions: Floats) -> Floats:
    unit: Floats = weights / np.linalg.norm(weights, axis=-1, keepdims=True) @ directions.T
    return unit


@pytest.mark.parametrize("kind_width", [0, 5])
def test_labels_of_unseen_texts(world: tuple[Floats, Taxonomy, Callable[..., Floats]], kind_width: int) -> None:
    weight, taxonomy, states = world
    directions = class_directions(weight)
    config = LearnConfig(prompts=PROMPTS, rank=16, kind_width=kind_width)
    learned = learn_labels(
        config, taxonomy=taxonomy, classifier_weight=weight, states=states, motion=MOTION, excluded=[UNSEEN]
    )
    assert f"class {UNSEEN}" not in learned.texts
    assert len(learned.texts) == NUM_WORLD_CLASSES - 1 + NUM_KINDS + 2
    outputs = predict(learned, config, states([f"class {UNSEEN}", "between", "kind 2", "pan", "zoom"]))
    assert outputs.shape == (5, DIM + 1 + 2)
    near = cosines(outputs[:, :DIM], directions)
    assert near[0, 8:16].min() > np.delete(near[0], range(8, 16)).max()  # its kind
    assert near[0, UNSEEN] > 0.5
    assert set(np.argsort(near[1])[-2:]) == {1, 4}
    assert near[2][16:24].min() > np.delete(near[2], range(16, 24)).max()
    pan, zoom = outputs[3:, DIM:]  # bias, and slopes of the two motions
    assert pan[1] > 0.8 * 9 and abs(pan[2]) < 1 and pan[0] == pytest.approx(-3, abs=0.7)
    assert zoom[2] > 0.8 * 6 and abs(zoom[1]) < 1 and zoom[0] == pytest.approx(-2, abs=0.7)


def test_the_label_encoder_reads_what_is_learned(
    world: tuple[Floats, Taxonomy, Callable[..., Floats]], tmp_path: Path
) -> None:
    weight, taxonomy, states = world
    learned = learn_labels(CONFIG, taxonomy=taxonomy, classifier_weight=weight, states=states)
    kernel_config = KernelConfig(
        prompts=PROMPTS, num_landmarks=len(learned.texts), rank=CONFIG.rank, kind_width=CONFIG.kind_width,
        num_channels=DIM, state_scale=CONFIG.state_scale, kind_scale=CONFIG.kind_scale, norm_power=0.0,
    )  # fmt: skip
    encoder = KernelLabelEncoder(load_llm(write_llm(tmp_path / "llm")), kernel_config)
    encoder.load_state_dict({k.removeprefix("label."): torch.from_numpy(v) for k, v in learned.tensors.items()})
    some = states(["class 3", "between", "red"])
    features = encoder.forward_from_states(torch.from_numpy(some)).numpy() * kernel_config.max_logit
    outputs = predict(learned, CONFIG, some)
    bias = kernel_config.bias_scale * outputs[:, DIM] + kernel_config.bias_shift
    assert np.allclose(features[:, :DIM], kernel_config.slope * outputs[:, :DIM], atol=2e-3)
    assert np.allclose(features[:, DIM] * kernel_config.constant, bias, atol=2e-3)


def photo(*labels: str, unsure: Sequence[str] = ()) -> Photo:
    return Photo("debian:some-photos 1.0-2", "usr/share/a.jpg", "CC0-1.0", labels, tuple(unsure))


def test_labels_of_photos_are_learned(world: tuple[Floats, Taxonomy, Callable[..., Floats]]) -> None:
    weight, taxonomy, states = world
    direction = normal(DIM, seed=5) / DIM**0.5
    z = normal(120, DIM, seed=6)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    red = z @ direction > 0.1
    photos = [photo(*["red"] * bool(x), *["rare"] * (i < 2)) for i, x in enumerate(red)]
    learned = learn_labels(CONFIG, taxonomy=taxonomy, classifier_weight=weight, states=states, photos=photos, photo_z=z)
    without = learn_labels(CONFIG, taxonomy=taxonomy, classifier_weight=weight, states=states)
    assert learned.trained_photo_labels == ("red",) and "red" in learned.texts and "rare" not in learned.texts
    logits = [z @ (y := predict(x, CONFIG, states(["red"]))[0])[:DIM] + y[DIM] for x in (learned, without)]
    right = [((x > np.median(x)) == (z @ direction > np.median(z @ direction))).mean() for x in logits]
    assert right[0] > 0.8 > right[1]
    refused = learn_labels(
        CONFIG, taxonomy=taxonomy, classifier_weight=weight, states=states, excluded=[UNSEEN], photo_z=z,
        photos=[photo("red", f"Class {UNSEEN}")] * 120,
    )  # fmt: skip
    assert refused.trained_photo_labels == ("red",)


def test_label_matrix() -> None:
    photos = [photo("a", unsure=["b"]), photo("b"), photo("a", "b", unsure=["a"])]
    truth, known = label_matrix(photos, ["a", "b", "c"])
    assert truth.tolist() == [[1, 0, 0], [0, 1, 0], [1, 1, 0]]
    assert known.tolist() == [[True, False, True], [True, True, True], [True, True, True]]
    assert frequent_labels(photos, 2) == ["a", "b"] and frequent_labels(photos, 3) == []
    assert photos[0].file(Path("x")) == Path("x/some-photos/usr/share/a.jpg")


def test_the_shipped_manifest() -> None:
    photos = read_photos()
    assert len(photos) > 300
    assert len({(photo.package, photo.path) for photo in photos}) == len(photos)
    for entry in photos:
        assert entry.labels and entry.licence and not set(entry.labels) & set(entry.unsure)
        assert entry.package.startswith(("debian:", "pypi:"))
        assert not Path(entry.path).is_absolute() and ".." not in Path(entry.path).parts


@pytest.mark.parametrize(("width", "height"), [(300, 150), (150, 300), (101, 100), (40, 30)])
def test_a_photo_is_scaled_and_cropped_at_its_centre(tmp_path: Path, width: int, height: int) -> None:
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    picture = np.stack((x, y, np.full_like(x, 77)), axis=2).round().astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "x.png")
    found = load_photo(tmp_path / "x.png", 64)
    assert found.shape == (64, 64, 3) and found.dtype == np.uint8
    share = [min(1, other / side) for side, other in ((width, height), (height, width))]
    for channel, axis in ((0, 0), (1, 1)):
        line = found[..., channel].mean(axis=axis)
        assert line.mean() == pytest.approx(127.5, abs=2.5)  # the same is cut off at both sides
        assert line[-1] - line[0] == pytest.approx(255 * share[channel], abs=10)
    assert (found[..., 2] == 77).all()


def test_photos_of_every_mode_are_read_in_batches(tmp_path: Path) -> None:
    paths = []
    for i, mode in enumerate(("L", "RGBA", "P", "CMYK", "1")):
        paths.append(tmp_path / f"{i}.{'jpg' if mode == 'CMYK' else 'png'}")
        Image.new("RGB", (20, 10), (255, 255, 255)).convert(mode).save(paths[-1])
    sizes = []

    def encode(frames: NDArray[np.uint8]) -> Floats:
        sizes.append(frames.shape)
        return frames.mean(axis=(1, 2), dtype=np.float32)

    found = photo_features(paths, encode, 8, batch_size=2)
    assert sizes == [(2, 8, 8, 3), (2, 8, 8, 3), (1, 8, 8, 3)]
    assert np.allclose(found, 255, atol=2)


def test_motion_keeps_the_score_at_which_a_label_is_as_likely_as_not(tmp_path: Path) -> None:
    rows = [(4.0, -6.0), (20.0, -30.0), (1.0, 0.5)]
    labels = [
        {"key": f"k{i}", "wordings": [f"first {i}", f"second {i}"], "column": i, "scale": scale, "bias": bias}
        for i, (scale, bias) in enumerate(rows)
    ]
    config = {"num_labels": 3, "max_score": 4.0}
    (tmp_path / "motion.json").write_text(json.dumps({"config": config, "labels": labels[::-1]}))
    save_file({"x": np.zeros(1, np.float32)}, tmp_path / "motion.safetensors")
    motion, read = read_motion(tmp_path)
    assert read == config
    assert motion.wordings[1] == ("first 1", "second 1")  # in the order of the columns
    length = 4.0 * 3**0.5  # a stored score is the standardised one over this
    for i, (scale, bias) in enumerate(rows):
        crossing = -bias / scale
        assert motion.slopes[i] * crossing / length + motion.biases[i] == pytest.approx(0, abs=1e-5)
        assert motion.slopes[i] == pytest.approx(length * min(scale, MAX_MOTION_SLOPE), rel=1e-6)
