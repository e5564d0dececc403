"""The labels of a bulk run: checked as at their registration, and read from a store without changing it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

from support.stores import add, running_store, vector_of
from vidlex.migrations.runner import migrate
from vidlex.model.dummy import DummyClassifier
from vidlex.service.bulk.local.encoder import LocalEncoder
from vidlex.service.bulk.local.snapshot import snapshot_of_namespace
from vidlex.service.bulk.local.vocabulary import labels_of, labels_of_file, labels_of_names, read_namespace
from vidlex.service.errors import InvalidParameter, NotFound, StoreUnavailable
from vidlex.service.labels.store.label_reader import LabelReader
from vidlex.service.labels.store.label_store import LabelStore
from vidlex.service.registration.label_cache import LabelCache
from vidlex.service.settings import Settings

DUMMY = DummyClassifier()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "# colours\nred\n\n  deep   blue\nred\n"),
        ("a.jsonl", '{"name": "red"}\n{"name": "deep  blue", "metadata": {"x": 1}, "parents": ["red"]}\n'),
        ("a.json", '{"labels": [{"name": "red"}, "deep blue"]}'),
        ("a.csv", "name,aliases\nred,\ndeep blue,\n"),
    ],
)
def test_a_file_is_read_as_for_labels_import(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert [label.name for label in labels_of_file(tmp_path / name)] == ["red", "deep blue"]


def test_thresholds_categories_and_aliases_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("name,threshold,categories,aliases\nred,0.25,Warm| COLOUR,crimson\n")
    (label,) = labels_of_file(path)
    assert (label.threshold, label.categories, label.aliases) == (0.25, ("warm", "colour"), ("crimson",))


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([], "no labels"),
        ([{"name": "red"}, {"name": "  "}], "Label 2"),
        ([{"name": "a\u0000b"}], "control characters"),
        ([{"name": "x" * 129}], "longer"),
        ([{"name": "Red"}, {"name": "red"}], "this name or alias"),
        ([{"name": "red", "aliases": ["crimson"]}, {"name": "Crimson"}], "this name or alias"),
        ([{"name": "red"}, {"name": "red", "threshold": 0.3}], "this name or alias"),
        ([{"name": "red", "threshold": 1.5}], "threshold"),
        ([{"name": "red", "threshold": "high"}], "threshold"),
        ([{"name": "red", "aliases": "crimson"}], "aliases"),
        ([{"name": 7}], "name"),
        ([{}], "name"),
        ([7], "label"),
        ([{"name": ""}] * 3, "2 more"),
    ],
)
def test_labels_that_could_not_be_registered_are_refused(entries: list[Any], words: str) -> None:
    with pytest.raises(InvalidParameter, match=words):
        labels_of(entries)


def test_a_single_text_is_no_list_of_names() -> None:
    with pytest.raises(InvalidParameter, match="list"):
        labels_of_names("red")


@pytest.mark.parametrize(
    ("name", "text"), [("a.txt", None), ("a.xml", "<a/>"), ("a.json", "{"), ("a.csv", "nom\nred\n"), ("a.txt", "\n")]
)
def test_an_unusable_file_is_refused(tmp_path: Path, name: str, text: str | None) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(InvalidParameter):
        labels_of_file(tmp_path / name)


@contextmanager
def migrated_store(folder: Path) -> Iterator[redis.Redis]:
    with running_store(folder) as client:
        migrate(client)
        yield client


def store_with_labels(folder: Path) -> tuple[list[str], int]:
    """Ids of three labels, of which the dummy model has encoded the first, and the revision."""
    with migrated_store(folder) as client:
        store = LabelStore(client, "shop")
        ids = [add(store, name, threshold=0.7).id for name in ("red", "green", "word " * 20)]
        store.put_vectors(DUMMY.fingerprint, {ids[0]: DUMMY.encode_labels(["red"])[0]}, names={ids[0]: "red"})
        return ids, store.revision()


def settings_of(folder: Path) -> Settings:
    return Settings(data_dir=folder, redis_url=None)


def test_a_namespace_is_read_and_what_the_model_lacks_is_encoded(tmp_path: Path) -> None:
    ids, revision = store_with_labels(tmp_path)
    encoder = LocalEncoder([DummyClassifier()])
    try:
        stored = read_namespace(settings_of(tmp_path), "shop", DUMMY.fingerprint)
        found = snapshot_of_namespace("dummy", encoder, stored, LabelCache(tmp_path, 0))
    finally:
        encoder.close()
    assert (found.revision, found.namespace) == (revision, "shop")
    assert [(label.id, label.name, label.threshold) for label in found.labels] == [
        (ids[0], "red", 0.7),
        (ids[1], "green", 0.7),
    ]
    assert np.array_equal(found.vectors, DUMMY.encode_labels(["red", "green"]))
    assert [code for code, _ in found.warnings] == ["labels_not_encoded"]  # the third has too many words
    assert "1 labels" in found.warnings[0][1]
    with running_store(tmp_path) as client:
        reader = LabelReader(client, "shop")
        assert reader.revision() == revision
        assert [row.vector is None for rows in reader.scan(DUMMY.fingerprint) for row in rows] == [False, True, True]


def test_the_stored_vector_is_used_as_it_is(tmp_path: Path) -> None:
    with migrated_store(tmp_path) as client:
        store = LabelStore(client)
        label = add(store, "red")
        own = vector_of("anything", 3)
        store.put_vectors(DUMMY.fingerprint, {label.id: own}, names={label.id: "red"})
    encoder = LocalEncoder([DummyClassifier()])
    try:
        stored = read_namespace(settings_of(tmp_path), "default", DUMMY.fingerprint)
        found = snapshot_of_namespace("dummy", encoder, stored, LabelCache(tmp_path, 0))
    finally:
        encoder.close()
    assert np.array_equal(found.vectors, own[None])


def test_a_missing_store_is_not_created(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no label store"):
        read_namespace(settings_of(tmp_path), "default", "f")
    assert list(tmp_path.iterdir()) == []


def test_a_namespace_without_labels_is_an_error(tmp_path: Path) -> None:
    store_with_labels(tmp_path)
    with pytest.raises(NotFound, match="no labels"):
        read_namespace(settings_of(tmp_path), "shopp", DUMMY.fingerprint)
    with pytest.raises(InvalidParameter, match="namespace"):
        read_namespace(settings_of(tmp_path), "Shop!", DUMMY.fingerprint)


def test_a_server_that_does_not_answer_is_reported(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, redis_url=f"unix://{tmp_path}/nothing.sock")  # type: ignore[arg-type]
    with pytest.raises(StoreUnavailable):
        read_namespace(settings, "default", "f")


def test_a_namespace_that_changes_all_the_time_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with migrated_store(tmp_path) as client:
        store = LabelStore(client)
        add(store, "red")
        scan = LabelReader.scan

        def scan_and_write(self: LabelReader, fingerprint: str, batch: int = 1000) -> Any:
            yield from scan(self, fingerprint, batch)
            add(store, f"label {store.revision()}")

        monkeypatch.setattr(LabelReader, "scan", scan_and_write)
        with pytest.raises(StoreUnavailable, match="changes"):  # also: the running server is shared
            read_namespace(settings_of(tmp_path), "default", DUMMY.fingerprint)
