"""Random operations on two replicas of one store, compared with a model in memory."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import redis

from support.processes import PATIENCE_SECONDS
from support.stores import DIM, FINGERPRINT, add_label, vector_of
from vidlex.service.errors import LabelExists, ParentCycle, ParentNotFound
from vidlex.service.labels.index.index_sync import IndexSync
from vidlex.service.labels.index.label_index import LabelIndex
from vidlex.service.labels.store.connection import connect_socket
from vidlex.service.labels.store.indexed_label import IndexedLabel
from vidlex.service.labels.store.label_store import LabelStore
from vidlex.service.labels.store.names import fold
from vidlex.service.labels.store.records import Label, LabelChanges, NewLabel
from vidlex.service.labels.store.verify import verify_namespace

NUM_OPERATIONS = 200
NAMES = [
    f"{adjective} {noun}" for adjective in ("red", "Red", "big", "old") for noun in ("dog", "cat", "car", "STRASSE")
]
NAMES += ["straße", "dog", "Dog ", "animal", "thing"]
CATEGORIES = ["pet", "vehicle", "wild"]


class Replica:
    def __init__(self, path: str) -> None:
        self.store = LabelStore(connect_socket(path))
        self.index = LabelIndex(DIM, FINGERPRINT)
        self.sync = IndexSync(self.store, self.index)
        self.sync.load()
        self.sync.start()


@dataclass
class Model:
    labels: dict[str, Label] = field(default_factory=dict)
    vector_names: dict[str, str] = field(default_factory=dict)  # label id to the name that was encoded

    def owner(self, texts: tuple[str, ...], except_id: str = "") -> str | None:
        for text in texts:
            for label in self.labels.values():
                if label.id != except_id and fold(text) in {fold(x) for x in (label.name, *label.aliases)}:
                    return label.id
        return None

    def ancestors(self, label_id: str) -> set[str]:
        parents = self.labels[label_id].parents
        return set(parents).union(*(self.ancestors(parent) for parent in parents))

    def remove(self, label_id: str) -> None:
        del self.labels[label_id], self.vector_names[label_id]
        for child in list(self.labels.values()):
            if label_id in child.parents:
                parents = tuple(parent for parent in child.parents if parent != label_id)
                self.labels[child.id] = replace(child, parents=parents)


@pytest.mark.parametrize("seed", range(10))
def test_two_replicas_agree_with_a_model_in_memory(client: redis.Redis, seed: int) -> None:
    rng = random.Random(seed)
    replicas = [Replica(client.get_connection_kwargs()["path"]) for _ in range(2)]
    model = Model()
    try:
        for number in range(NUM_OPERATIONS):
            operate(rng, rng.choice(replicas).store, model)
            if number % 20 == 19:
                for replica in replicas:
                    compare(replica, model)
    finally:
        for replica in replicas:
            replica.sync.close()
    assert verify_namespace(client) == []
    assert model.labels


def operate(rng: random.Random, store: LabelStore, model: Model) -> None:
    kind = rng.random()
    aliases = tuple(rng.sample(NAMES, rng.choice((0, 0, 1))))
    categories = tuple(rng.sample(CATEGORIES, rng.randrange(3)))
    if kind < 0.45 or not model.labels:
        name, parents = rng.choice(NAMES), references(rng, model)
        owner = model.owner((name, *aliases))
        missing = any(model.owner((parent,)) is None for parent in parents)
        new = NewLabel(name, aliases, categories, parents)
        if owner is not None:
            with pytest.raises(LabelExists) as caught:
                add_label(store, new)
            assert caught.value.existing_id == owner
        elif missing:
            with pytest.raises(ParentNotFound):
                add_label(store, new)
        else:
            label = add_label(store, new)
            assert set(label.parents) == {model.owner((parent,)) for parent in parents}
            model.labels[label.id], model.vector_names[label.id] = label, name
        return
    chosen = rng.choice(list(model.labels))
    if kind < 0.6:
        store.remove(chosen)
        model.remove(chosen)
    elif kind < 0.8:
        parents = tuple(rng.sample(list(model.labels), min(len(model.labels), rng.randrange(3))))
        changes = LabelChanges(parents=parents, categories=categories, threshold=rng.choice((None, 0.5)))
        if any(chosen == parent or chosen in model.ancestors(parent) for parent in parents):
            with pytest.raises(ParentCycle):
                store.update(chosen, changes)
        else:
            model.labels[chosen] = store.update(chosen, changes)
            assert model.labels[chosen].parents == parents
    else:
        name = rng.choice(NAMES)
        changes = LabelChanges(name=name, aliases=aliases)
        owner = model.owner((name, *aliases), except_id=chosen)
        if owner is not None:
            with pytest.raises(LabelExists):
                store.update(chosen, changes, vector=vector_of(name), fingerprint=FINGERPRINT)
        else:
            label = store.update(chosen, changes, vector=vector_of(name), fingerprint=FINGERPRINT)
            model.labels[chosen], model.vector_names[chosen] = label, name


def references(rng: random.Random, model: Model) -> tuple[str, ...]:
    """Names of parents, most of which exist."""
    if rng.random() < 0.1:
        return ("unknown",)
    return tuple(
        label.name for label in rng.sample(list(model.labels.values()), min(len(model.labels), rng.randrange(2)))
    )


def compare(replica: Replica, model: Model) -> None:
    """Without revisions: the removal of a parent gives its children new ones, which the model does not know."""
    revision = replica.store.revision()
    assert replica.sync.wait_for_revision(revision, PATIENCE_SECONDS)
    stored = {label.id: label for label in replica.store.list(1000).data}
    indexed = {label.id: label for label in replica.index.search(vector_of("x")[None]).labels}
    assert indexed == {label_id: IndexedLabel.of(label) for label_id, label in stored.items()}
    assert {i: without_revision(label) for i, label in stored.items()} == {
        i: without_revision(label) for i, label in model.labels.items()
    }
    for label_id, name in model.vector_names.items():
        vector = replica.index.vector(label_id)
        assert vector is not None
        np.testing.assert_array_equal(vector[:DIM], vector_of(name))


def without_revision(label: Label) -> Label:
    return replace(label, updated_at_ms=0, revision=0)
