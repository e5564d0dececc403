"""Labeler: concurrent writes by other requests and replicas."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from vidlex.model.dummy import DummyClassifier
from vidlex.service.labels.store.records import Label, LabelChanges, NewLabel
from vidlex.service.registration.candidate_cache import CandidateCache
from vidlex.service.registration.label_cache import LabelCache
from vidlex.service.registration.labeler import Labeler, RegisteredLabel


@dataclass
class RenamedStore:
    """A concurrent request renames the label "red" to "green" between the read and the update."""

    names: list[str] = field(default_factory=lambda: ["red", "green"])
    written: list[Any] = field(default_factory=list)
    namespace: str = "default"

    def get(self, label_id: str) -> Any:
        return _label(label_id, self.names.pop(0))

    def update(
        self, label_id: str, changes: LabelChanges, *, vector: Any, fingerprint: Any, if_match: Any, also: Any
    ) -> Label:
        if vector is None:
            raise ValueError("a renamed label needs the vector of its new name")
        self.written.append((vector.tolist(), fingerprint))
        return _label(label_id, "red")


class Engine:
    def encode_labels(self, names: list[str], **_: Any) -> list[Any]:
        return list(DummyClassifier().encode_labels(names))


class Sync:
    def wait_for_revision(self, *_: Any, **__: Any) -> bool:
        return True


def make_labeler(engine: Any, store: Any, sync: Any) -> Labeler:
    label_cache = LabelCache(Path(), 0)
    return Labeler(engine, store, sync, label_cache, CandidateCache(0), fingerprint="dummy-1", device="cpu")


def _label(label_id: str, name: str) -> Label:
    return Label(label_id, name, (), (), (), None, {}, 0, 0, 1)


def test_update_encodes_name_after_concurrent_rename() -> None:
    store: Any = RenamedStore()
    engine: Any = Engine()
    sync: Any = Sync()
    assert make_labeler(engine, store, sync).update("lbl_1", LabelChanges(name="red")).name == "red"
    assert store.written == [(np.array([1.0, 0.0, 0.0]).tolist(), "dummy-1")]


def test_register_waits_until_index_has_existing_label() -> None:
    """Another replica may have written the label that if_exists=return returns."""

    class Store(RenamedStore):
        def find_many(self, names: list[str]) -> list[Label]:
            return [replace(_label("lbl_1", name), revision=7) for name in names]

        def add_many(self, items: list[Any], *_: Any, **__: Any) -> list[Any]:
            assert not items
            return []

    waited_for: list[int] = []

    class RecordingSync(Sync):
        def wait_for_revision(self, min_revision: int, _: float) -> bool:
            waited_for.append(min_revision)
            return True

    store: Any = Store()
    engine: Any = Engine()
    sync: Any = RecordingSync()
    (result,) = make_labeler(engine, store, sync).register([NewLabel("red")], return_existing=True)
    assert isinstance(result, RegisteredLabel) and not result.created
    assert waited_for == [7]
