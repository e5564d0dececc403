"""Manifests as training data: what is known of each pair, which videos are drawn, and what is refused."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from vidlex.model.data.dataset import DatasetError
from vidlex.model.data.manifest import Entry, ManifestError, write_manifest
from vidlex.model.sources.catalogue import (
    Catalogue,
    read_dataset,
    read_weighted,
    training_catalogue,
    validation_catalogue,
)
from vidlex.model.sources.config import DataConfig, EmojiConfig
from vidlex.model.sources.open import source_opener
from vidlex.model.sources.order import DrawOrder, draw_weights
from vidlex.service.cli import app


def manifest(folder: Path, entries: Sequence[Entry], labels: Any = None, **info: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_manifest(folder / "manifest.jsonl", entries)
    if labels is not None:
        (folder / "labels.json").write_text(json.dumps(labels))
    if info:
        (folder / "dataset.json").write_text(json.dumps({"name": folder.name, **info}))
    return folder / "manifest.jsonl"


def catalogue_of(*paths: Path, others_are_absent: bool = False) -> Catalogue:
    return training_catalogue([read_dataset(path, "train") for path in paths], others_are_absent=others_are_absent)


def test_each_dataset_has_its_own_rule_for_unlisted_labels(tmp_path: Path) -> None:
    """A: closed world by its dataset.json. B: federated, so only listed and closed pairs are known."""
    a = manifest(tmp_path / "a", [Entry("1", ("cat",)), Entry("2", ("dog",))], ["cat", "dog"], unlabelled="absent")
    entries = [Entry("3", ("dog",), ("bird",)), Entry("4", ("bird",)), Entry("5", ("bird",), closed=True)]
    b = manifest(tmp_path / "b", entries, ["dog", "bird"])
    found = catalogue_of(a, b)
    assert found.names == ("cat", "dog", "bird")
    assert found.targets(range(5)).tolist() == [[1, 0, -1], [0, 1, -1], [-1, 1, 0], [-1, -1, 1], [-1, 0, 1]]
    found = catalogue_of(a, b, others_are_absent=True)
    assert found.targets(range(5)).tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 0], [0, -1, 1], [0, 0, 1]]
    assert found.targets([3, 0, 3]).tolist() == [[0, -1, 1], [1, 0, 0], [0, -1, 1]]
    assert found.targets(range(5)).dtype == torch.int8
    assert catalogue_of(a, b).names_without_negatives() == []
    c = manifest(tmp_path / "c", [Entry("6", ("cat", "bird"), ("dog", "fish")), Entry("7", ("fish", "dog"))])
    assert catalogue_of(c).names_without_negatives() == ["cat", "bird"]


def test_labels_of_two_datasets_meet_in_their_text(tmp_path: Path) -> None:
    """Keys differ, texts are the same; a kind may be given by one of them; two keys with one text are one label."""
    a = manifest(tmp_path / "a", [Entry("1", ("n01",), closed=True)], {"n01": {"prompt": "dog", "kind": "animal"}})
    keys = {"x": {"prompt": "dog"}, "y": {"prompt": "dog"}, "z": {"prompt": "sky"}}
    b = manifest(tmp_path / "b", [Entry("2", ("x",), ("y", "z")), Entry("3", ("z",), ("x",))], keys)
    found = catalogue_of(a, b)
    assert found.names == ("dog", "sky") and found.kinds == {"dog": "animal"}
    assert found.targets(range(3)).tolist() == [[1, -1], [1, 0], [0, 1]]


def test_splits_and_labels_without_a_training_video_are_left_out(tmp_path: Path) -> None:
    entries = [
        Entry("1", ("cat",), closed=True, split="train"),
        Entry("2", ("dog",), closed=True, split="val"),
        Entry("3", ("cat", "sun"), closed=True),
    ]
    path = manifest(tmp_path, entries)
    found = catalogue_of(path)
    assert [video.name for video in found.videos] == ["1", "3"] and found.names == ("cat", "sun")
    with pytest.raises(ManifestError, match=r"no entries of the split 'test'; it has train \(1\), val \(1\)"):
        read_dataset(manifest(tmp_path / "other", entries[:2]), "test")
    validation = validation_catalogue(
        [read_dataset(manifest(tmp_path / "v", entries[1:2]), "val")], found, others_are_absent=False
    )
    assert validation.names == ()  # "dog" is in no training video


def test_windows_of_one_file_are_different_videos(tmp_path: Path) -> None:
    first, second = (Entry("1", ("cat",), ("dog",), start_ms=at, end_ms=at + 10) for at in (0, 10))
    found = catalogue_of(manifest(tmp_path / "a", [first, Entry("9", ("dog",))]))
    dataset = read_dataset(manifest(tmp_path / "a", [second]), "val")
    assert len(validation_catalogue([dataset], found, others_are_absent=False)) == 1
    dataset = read_dataset(manifest(tmp_path / "a", [second, first]), "val")
    with pytest.raises(DatasetError, match="1 validation videos are training videos as well, such as 1"):
        validation_catalogue([dataset], found, others_are_absent=False)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([Entry("1", ("cat",))], "no label is known to be absent"),
        ([Entry("1", (), ("cat",))], "no training video has a positive label"),
    ],
)
def test_data_that_cannot_be_learned_is_refused(tmp_path: Path, entries: list[Entry], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        catalogue_of(manifest(tmp_path, entries))


def test_videos_of_which_nothing_is_known_are_left_out(tmp_path: Path) -> None:
    found = catalogue_of(manifest(tmp_path, [Entry("1", ("cat",), ("dog",)), Entry("2", ()), Entry("3", ("dog",))]))
    assert [video.name for video in found.videos] == ["1", "3"]


def test_labels_that_labels_json_lacks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="'dog', which is not in"):
        read_dataset(manifest(tmp_path, [Entry("1", ("dog",))], ["cat"]), "train")


def test_features_of_youtube8m_are_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "train00.tfrecord").write_bytes(b"")
    for path in (tmp_path / "train00.tfrecord", tmp_path):
        with pytest.raises(DatasetError, match="output of another network"):
            source_opener(DataConfig(train=(str(path),)), EmojiConfig(), tmp_path)


def test_emoji_cannot_be_mixed_with_a_manifest(tmp_path: Path) -> None:
    path = manifest(tmp_path, [Entry("1", ("cat",), ("dog",))])
    with pytest.raises(ValueError, match="cannot be mixed"):
        source_opener(DataConfig(train=("emoji", str(path))), EmojiConfig(), tmp_path)
    with pytest.raises(ValueError, match="none of the videos of the split 'train' exists"):
        source_opener(DataConfig(train=(str(path),)), EmojiConfig(), tmp_path)


def test_weights_of_manifests_and_kinds(tmp_path: Path) -> None:
    assert read_weighted("a.jsonl:2.5") == (Path("a.jsonl"), 2.5)
    assert read_weighted("a.jsonl") == (Path("a.jsonl"), 1.0)
    (tmp_path / "a:2").touch()
    assert read_weighted(str(tmp_path / "a:2")) == (tmp_path / "a:2", 1.0)
    with pytest.raises(ValueError, match="must be positive"):
        read_weighted("a.jsonl:0")
    assert DataConfig(kind_weight=("action=3", "a=b=0.5")).weights_by_kind() == {"action": 3.0, "a=b": 0.5}
    for text in ("action", "action=", "=2", "action=-1"):
        with pytest.raises(ValueError, match="KIND=WEIGHT"):
            DataConfig(kind_weight=(text,))


def test_equal_weights_draw_each_video_once_per_epoch() -> None:
    order = DrawOrder(torch.ones(7, dtype=torch.float64), seed=3)
    epochs = [[order.at(7 * epoch + i) for i in range(7)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs) and epochs[0] != epochs[1]
    again = DrawOrder(torch.ones(7, dtype=torch.float64), seed=3)
    assert [again.at(7 + i) for i in range(7)] == epochs[1]  # as in a resumed run


def test_weighted_videos_are_drawn_in_proportion() -> None:
    """Weights 0.2, 0.6 and 2.2 per epoch: each count is rounded up or down."""
    weights = torch.tensor([0.2, 0.6, 2.2], dtype=torch.float64)
    order = DrawOrder(weights, seed=0)
    total: Counter[int] = Counter()
    for epoch in range(400):
        counts = Counter(order.at(3 * epoch + i) for i in range(3))
        assert all(int(w) <= counts[i] <= int(w) + 1 for i, w in enumerate(weights.tolist()))
        total += counts
    for i, weight in enumerate(weights.tolist()):
        assert total[i] / 400 == pytest.approx(weight, abs=0.1)


def test_rare_labels_and_weights_of_manifests_by_hand(tmp_path: Path) -> None:
    """Counts: common 4, rare 1. Power 1/2: weights 1/2, 1/2, 1/2, 1 and as the commonest without a positive."""
    entries = [Entry(str(i), ("common",), closed=True) for i in range(3)]
    entries += [Entry("3", ("common", "rare"), closed=True), Entry("4", (), closed=True)]
    found = catalogue_of(manifest(tmp_path, entries))
    expected = torch.tensor([0.5, 0.5, 0.5, 1.0, 0.5])
    assert torch.allclose(draw_weights(found, 0.5).float(), expected / expected.mean())
    assert torch.allclose(draw_weights(found, 0.0).float(), torch.ones(5))
    other = manifest(tmp_path / "b", [Entry("5", ("common",), closed=True)])
    datasets = [read_dataset(tmp_path / "manifest.jsonl", "train"), read_dataset(other, "train", weight=3.0)]
    both = training_catalogue(datasets, others_are_absent=False)
    assert draw_weights(both, 0.0).tolist() == pytest.approx([0.75] * 5 + [2.25])


def test_command_line_reads_several_manifests_and_refuses_them_at_once(tmp_path: Path) -> None:
    """The CLIP does not exist either, but is not looked for."""
    path = manifest(tmp_path / "a", [Entry("1.mp4", ("cat",), ("dog",)), Entry("2.mp4", ("dog",))])
    for name in ("1.mp4", "2.mp4"):
        (tmp_path / "a" / name).touch()
    command = [
        "train",
        "fit",
        "--clip-name",
        "local-dir:nowhere",
        "--checkpoint-id",
        "x",
        "--out",
        str(tmp_path / "run"),
    ]
    command += ["--train", f"{path}:2", "--validation", str(path), "--other-labels", "absent"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1 and "2 validation videos are training videos as well" in " ".join(done.stderr.split())
    done = CliRunner().invoke(app, [*command, "--train", str(tmp_path / "b.jsonl")])
    assert done.exit_code == 1 and "b.jsonl is not a file" in " ".join(done.stderr.split())
    assert not (tmp_path / "run").exists()
