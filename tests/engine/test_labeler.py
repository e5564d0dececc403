"""A rename that another request overtakes: nothing is lost, and no error reaches the client."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from vidlex.model.dummy import DummyClassifier
from vidlex.service.labels.store.records import Label, LabelChanges, NewLabel
from vidlex.service.registration.candidate_cache import CandidateCache
from vidlex.service.registration.label_cache import LabelCache
from vidlex.service.registration.labeler import Labeler, Registered


@dataclass
class OvertakenStore:
    """Says at first that the label is called "red"; by the time of the update it is called "green"."""

    names: list[str] = field(default_factory=lambda: ["red", "green"])
    written: list[Any] = field(default_factory=list)
    namespace: str = "default"

    def get(self, label_id: str) -> Any:
        return _label(label_id, self.names.pop(0))

    def update(self, label_id: str, changes: LabelChanges, *, vector: Any, fingerprint: Any, if_match: Any) -> Label:
        if vector is None:
            raise ValueError("a renamed label needs the vector of its new name")
        self.written.append((vector.tolist(), fingerprint))
        return _label(label_id, "red")


class Engine:
    def encode_labels(self, names: list[str], *, timeout_seconds: float) -> list[Any]:
        return list(DummyClassifier().encode_labels(names))


class Sync:
    def caught_up(self, *_: Any, **__: Any) -> bool:
        return True


def _label(label_id: str, name: str) -> Label:
    return Label(label_id, name, (), (), (), None, {}, 0, 0, 1)


def test_a_name_that_stopped_being_the_present_one_is_encoded() -> None:
    store: Any = OvertakenStore()
    engine: Any = Engine()
    sync: Any = Sync()
    kept = LabelCache(Path(), 0).within("default", "dummy-1")
    labeler = Labeler(engine, store, sync, "dummy-1", kept, candidates=CandidateCache(0), timeout_seconds=5.0)
    assert labeler.update("lbl_1", LabelChanges(name="red")).name == "red"
    assert store.written == [(np.array([1.0, 0.0, 0.0]).tolist(), "dummy-1")]


def test_a_label_that_another_replica_has_just_written_is_waited_for_too() -> None:
    """With if_exists=return the answer says that the label is there: the next search here must know it."""

    class Store(OvertakenStore):
        def find_many(self, names: list[str]) -> list[Label]:
            return [replace(_label("lbl_1", name), revision=7) for name in names]

        def add_many(self, items: list[Any], *_: Any, **__: Any) -> list[Any]:
            assert not items
            return []

    waited_for: list[int] = []

    class Behind(Sync):
        def caught_up(self, min_revision: int, _: float) -> bool:
            waited_for.append(min_revision)
            return True

    store: Any = Store()
    engine: Any = Engine()
    sync: Any = Behind()
    kept = LabelCache(Path(), 0).within("default", "dummy-1")
    (found,) = Labeler(engine, store, sync, "dummy-1", kept, candidates=CandidateCache(0)).register(
        [NewLabel("red")], return_existing=True
    )
    assert isinstance(found, Registered) and not found.created
    assert waited_for == [7]
