"""Manifests against a direct reading of their rules, and the notices before training."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidlex.model.data.dataset import DatasetError, read_dataset_info, read_labels
from vidlex.model.data.manifest import Entry, write_manifest
from vidlex.model.sources.catalogue import (
    Catalogue,
    read_dataset,
    training_catalogue,
    validation_catalogue,
    without_missing,
)
from vidlex.model.sources.config import DataConfig
from vidlex.model.sources.notices import notices
from vidlex.model.sources.reading import BrokenVideos

KEYS = ("a", "b", "c", "d")
Truth = tuple[set[str], set[str], bool]  # positives, negatives, closed
entries_of = st.lists(
    st.tuples(st.sets(st.sampled_from(KEYS), max_size=3), st.sets(st.sampled_from(KEYS), max_size=2), st.booleans()),
    min_size=1,
    max_size=4,
)
# entries, meaning of unlisted labels, and the texts of labels.json if there is one
datasets_of = st.tuples(
    entries_of,
    st.sampled_from(["unknown", "absent"]),
    st.none() | st.dictionaries(st.sampled_from(KEYS), st.sampled_from(["A", "B"])),
)


def write_one(folder: Path, entries: Sequence[Truth], unlabelled: str, texts: dict[str, str] | None) -> Path:
    folder.mkdir()
    (folder / "dataset.json").write_text(json.dumps({"unlabelled": unlabelled}))
    if texts is not None:
        (folder / "labels.json").write_text(json.dumps({key: {"prompt": texts.get(key, key)} for key in KEYS}))
    lines = [
        Entry(f"{i}.mp4", tuple(sorted(positives)), tuple(sorted(negatives - positives)), closed)
        for i, (positives, negatives, closed) in enumerate(entries)
    ]
    write_manifest(folder / "manifest.jsonl", lines)
    return folder / "manifest.jsonl"


@settings(max_examples=60, deadline=None)
@given(st.lists(datasets_of, min_size=1, max_size=3), st.booleans())
def test_targets_and_counts_are_those_of_the_documented_rules(drawn: list[Any], others_are_absent: bool) -> None:
    def truth(name: str, entry: Truth, unlabelled: str, texts: dict[str, str], vocabulary: set[str]) -> int:
        positives, negatives, closed = entry
        if name in {texts.get(key, key) for key in positives}:
            return 1
        if name in {texts.get(key, key) for key in negatives}:
            return 0
        is_absent = closed or unlabelled == "absent" if name in vocabulary else others_are_absent
        return 0 if is_absent else -1

    rows, shown = [], set()
    for entries, unlabelled, given_texts in drawn:
        texts, listed = given_texts or {}, {key for p, n, _ in entries for key in p | n}
        vocabulary = {texts.get(key, key) for key in (listed if given_texts is None else KEYS)}
        shown |= {texts.get(key, key) for positives, *_ in entries for key in positives}
        rows += [(entry, unlabelled, texts, vocabulary) for entry in entries]
    with tempfile.TemporaryDirectory() as folder:
        paths = [write_one(Path(folder) / str(i), *one) for i, one in enumerate(drawn)]
        datasets = [read_dataset(path, "train") for path in paths]
    try:
        found = training_catalogue(datasets, others_are_absent=others_are_absent)
    except DatasetError:
        assert not shown or not any(truth(name, *row) == 0 for row in rows for name in shown)
        return
    assert set(found.names) == shown
    expected = [targets for row in rows if set(targets := [truth(name, *row) for name in found.names]) != {-1}]
    assert found.targets(range(len(found))).tolist() == expected
    of_videos, of_labels = found.num_known_negatives()
    assert of_videos == [targets.count(0) for targets in expected] and any(of_videos)
    columns = list(zip(*expected, strict=True))
    assert of_labels == [column.count(0) for column in columns]
    assert found.names_without_negatives() == [n for n, c in zip(found.names, columns, strict=True) if 0 not in c]


def test_datasets_of_one_label_each_that_exclude_each_other(tmp_path: Path) -> None:
    paths = [write_one(tmp_path / name, [({name}, set(), False)], "unknown", None) for name in "ab"]
    datasets = [read_dataset(path, "train") for path in paths]
    assert training_catalogue(datasets, others_are_absent=True).targets(range(2)).tolist() == [[1, 0], [0, 1]]
    with pytest.raises(DatasetError, match="no label is known to be absent"):
        training_catalogue(datasets, others_are_absent=False)


def catalogues(folder: Path, training: Sequence[Entry], validation: Sequence[Entry]) -> tuple[Catalogue, Catalogue]:
    for name, entries in (("train", training), ("val", validation)):
        write_manifest(folder / f"{name}.jsonl", entries)
    found = training_catalogue([read_dataset(folder / "train.jsonl", "train")], others_are_absent=False)
    datasets = [read_dataset(folder / "val.jsonl", "val")]
    return found, validation_catalogue(datasets, found, others_are_absent=False)


def test_manifests_without_fault_have_no_notices(tmp_path: Path) -> None:
    training = [
        Entry("a", ("cat",), ("dog",), end_ms=10), Entry("a", ("dog",), closed=True, start_ms=10, end_ms=20),
        Entry("b", ("cat",), ("dog",)), Entry("b", (), ("dog",)),
    ]  # fmt: skip
    assert not list(notices(*catalogues(tmp_path, training, [Entry("a", ("cat",), start_ms=20), Entry("c", ())]), []))


def test_notices_name_what_is_probably_not_meant(tmp_path: Path) -> None:
    training = [
        Entry("a", ("cat",), closed=True), Entry("./a", ("dog",), start_ms=0), Entry("b", ("cat",), end_ms=50),
        Entry("b", ("Cat ",), ("dog",), start_ms=60), Entry("c", ("ca\uff54",), ("Cat ",)),
    ]  # fmt: skip
    validation = [Entry("b", ("cat",), start_ms=40, end_ms=60), Entry("b", ("cat",), start_ms=50, end_ms=60)]
    found = list(notices(*catalogues(tmp_path, training, validation), [Path("x"), Path("y"), Path("x")]))
    for text, expected in zip(
        found,
        [
            "do not exist or are not files: 2, such as x",
            "no training video is known to lack: 1, such as 'cat';",
            "labels contradict each other: 1, such as a;",
            "Unicode form only: 2, such as 'Cat ' and 'cat';",
            "overlap training videos of the same file in time: 1, such as b;",
        ],
        strict=True,
    ):
        assert expected in text


def test_window_from_zero_is_the_whole_video(tmp_path: Path) -> None:
    training = [Entry("a", ("cat",), ("dog",)), Entry("b", ("dog",))]
    with pytest.raises(DatasetError, match=r"as well, such as \./a; .*an entry without a split belongs to every split"):
        catalogues(tmp_path, training, [Entry("./a", ("cat",), start_ms=0)])


def test_what_is_not_a_file_is_missing(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "good \u00e9").touch()
    (tmp_path / "link").symlink_to("good \u00e9")
    names = [
        "fifo",
        "folder",
        "loop",
        "n" * 300,
        "gone",
        "good \u00e9",
        "link",
        str(tmp_path / "link"),
        "folder/../link",
    ]
    write_manifest(tmp_path / "m.jsonl", [Entry(name, ("x",)) for name in names])
    dataset, missing = without_missing(read_dataset(tmp_path / "m.jsonl", "train"))
    assert [entry.video for entry in dataset.entries] == names[5:]
    assert sorted(path.name for path in missing) == sorted(names[:5])


def test_names_of_broken_videos_stay_on_one_line(tmp_path: Path) -> None:
    paths = [Path("a\tb.mp4"), Path("c\nd.mp4"), Path("e\u2028f\x0b.mp4"), Path("g\r.mp4")]
    broken = BrokenVideos(tmp_path)
    for path in paths:
        broken.add(path, f"killed: {path.name}\n")
    again = BrokenVideos(tmp_path)
    assert again.count() == 4 and all(again.reason(path).startswith("killed: ") for path in paths)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("labels", '[["a"]]', "a list of names, or an object"),
        ("labels", '{"a": {"prompt": " "}}', "the text of 'a' is empty"),
        ("labels", '["a", ""]', "the text of '' is empty"),
        ("labels", '{"a": {"prompt": "x", "kind": 3}}', "kind and native_id of 'a' must be text"),
        ("dataset", "[]", "must hold an object"),
        ("dataset", '{"unlabeled": "absent"}', "unknown member 'unlabeled'; there are name, unlabelled,"),
        ("dataset", '{"protocol": "coco"}', "protocol must be one of tao, rareact, not 'coco'"),
    ],
)
def test_files_of_a_manifest_that_are_written_by_hand(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / f"{name}.json"
    path.write_text(text)
    with pytest.raises(DatasetError, match=message):
        read_labels(path) if name == "labels" else read_dataset_info(tmp_path)


def test_dataset_json_needs_only_what_differs_from_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text('{"unlabelled": "absent"}')
    info = read_dataset_info(tmp_path)
    assert (info.name, info.unlabelled, info.protocol) == (tmp_path.name, "absent", None)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_numbers_that_are_none_are_refused(value: float) -> None:
    for changes in ({"rare_label_power": value}, {"decode_timeout_seconds": value}, {"kind_weight": (f"a={value}",)}):
        with pytest.raises(ValueError, match=next(iter(changes))):
            DataConfig(**changes)  # type: ignore[arg-type]
