"""The label store with a real server: single labels, batches, pages, vectors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import redis

from support.stores import DIM, FINGERPRINT, add, add_label, all_vectors, names_without_vector, vector_of
from vidlex.service.errors import EncodeFailed, InvalidParameter, LabelExists, LabelTextInvalid, NotFound
from vidlex.service.labels.store.label_store import STEP_LABELS, LabelStore
from vidlex.service.labels.store.namespaces import count_labels
from vidlex.service.labels.store.records import Label, LabelChanges, NewLabel
from vidlex.service.labels.store.redis_keys import parse_key

# -- one label --------------------------------------------------------------------------------------------------------


def test_an_added_label_can_be_read(store: LabelStore, client: redis.Redis) -> None:
    label = add(
        store, " Golden  Retriever ", aliases=("Goldie",), categories=("Dog",), threshold=0.25, metadata={"a": [1]}
    )
    assert label == Label(
        label.id,
        "Golden Retriever",
        ("Goldie",),
        ("dog",),
        (),
        0.25,
        {"a": [1]},
        label.created_at_ms,
        label.created_at_ms,
        1,
    )
    assert store.get(label.id) == store.find("GOLDEN RETRIEVER") == store.find(" goldie") == label
    assert store.find("dog") is None
    assert count_labels(client) == store.revision() == 1
    np.testing.assert_array_equal(all_vectors(store)[label.id], vector_of(" Golden  Retriever "))


def test_no_text_can_belong_to_two_labels(store: LabelStore, client: redis.Redis) -> None:
    dog = add(store, "Dog", aliases=("Hound",))
    for new in (
        NewLabel("DOG"),
        NewLabel("hound"),
        NewLabel("puppy", aliases=("dog",)),
        NewLabel("puppy", aliases=("x", "HOUND")),
    ):
        with pytest.raises(LabelExists) as caught:
            add_label(store, new, vector_of("x"))
        assert caught.value.existing_id == dog.id
    cat = add(store, "Cat")
    for changes in (LabelChanges(name="hound"), LabelChanges(aliases=("kitty", "dog"))):
        with pytest.raises(LabelExists) as caught:
            store.update(cat.id, changes, vector=vector_of("x"), fingerprint=FINGERPRINT)
        assert caught.value.existing_id == dog.id
    assert store.revision() == count_labels(client) == 2
    assert store.find("puppy") is store.find("kitty") is store.find("x") is None


def test_update(store: LabelStore) -> None:
    dog = add(store, "Dog", aliases=("Hound",), categories=("a", "b"), threshold=0.5, metadata={"k": 1})
    same = store.update(dog.id, LabelChanges(threshold=0.5))
    assert same == dog and store.revision() == 1
    changed = store.update(dog.id, LabelChanges(aliases=("puppy",), categories=("b", "c"), threshold=None))
    assert changed == dataclasses.replace(
        dog,
        aliases=("puppy",),
        categories=("b", "c"),
        threshold=None,
        revision=2,
        updated_at_ms=changed.updated_at_ms,
    )
    assert store.get(dog.id) == changed
    assert store.find("hound") is None and store.find("puppy") == changed
    assert [len(store.list(category=c).data) for c in "abc"] == [0, 1, 1]
    add(store, "hound")  # the released text is free again


def test_a_name_and_an_alias_may_be_swapped(store: LabelStore) -> None:
    dog = add(store, "dog", aliases=("hound",))
    swapped = store.update(
        dog.id, LabelChanges(name="hound", aliases=("dog",)), vector=vector_of("hound"), fingerprint=FINGERPRINT
    )
    assert store.find("dog") == store.find("hound") == swapped


def test_a_new_name_requires_a_vector_and_removes_those_of_other_encoders(store: LabelStore) -> None:
    dog = add(store, "dog")
    store.put_vectors("encoder-2", {dog.id: np.ones(2, np.float32)})
    with pytest.raises(ValueError, match="new name"):
        store.update(dog.id, LabelChanges(name="hound"))
    with pytest.raises(ValueError, match="together"):
        store.update(dog.id, LabelChanges(name="hound"), vector=vector_of("hound"))
    with pytest.raises(ValueError, match="5 numbers, got 4"):
        store.update(dog.id, LabelChanges(name="hound"), vector=np.ones(4, np.float32), fingerprint=FINGERPRINT)
    assert store.get(dog.id) == dog
    store.update(dog.id, LabelChanges(name="hound"), vector=vector_of("hound"), fingerprint=FINGERPRINT)
    np.testing.assert_array_equal(all_vectors(store)[dog.id], vector_of("hound"))
    assert names_without_vector(store, "encoder-2") == ["hound"]


def test_remove_leaves_only_the_history(store: LabelStore, client: redis.Redis) -> None:
    dog = add(store, "dog", aliases=("hound",), categories=("pet",))
    store.put_vectors("encoder-2", {dog.id: np.ones(2, np.float32)})
    store.remove(dog.id)
    kinds = {parsed.kind for key in client.scan_iter() if (parsed := parse_key(key)) is not None}
    assert kinds == {"changes"}  # for a day, see test_emptied_namespaces.py
    for use in (store.get, store.remove, lambda i: store.update(i, LabelChanges(threshold=0.1))):
        with pytest.raises(NotFound):
            use(dog.id)  # type: ignore[operator]
    assert store.revision() == 3
    assert add(store, "dog").id != dog.id


@pytest.mark.parametrize("label_id", ["", "x", "lbl_", "\ud800", "lbl_" + "0" * 24, "*", "a\nb"])
def test_invalid_ids_are_not_found(store: LabelStore, label_id: str) -> None:
    add(store, "dog")
    with pytest.raises(NotFound):
        store.get(label_id)
    assert store.get_many([label_id]) == []
    with pytest.raises(NotFound):
        store.remove(label_id)


def test_namespaces_are_isolated(client: redis.Redis) -> None:
    one, other = LabelStore(client, "one"), LabelStore(client, "other")
    dog = add(one, "dog")
    assert other.find("dog") is None and count_labels(client, "other") == other.revision() == 0
    assert add(other, "dog").revision == 1
    with pytest.raises(NotFound):
        other.remove(dog.id)
    assert len({key[: key.index(b"}")] for key in client.scan_iter()}) == 2


# -- many labels ------------------------------------------------------------------------------------------------------


def test_add_many_returns_a_result_per_item(store: LabelStore) -> None:
    existing = add(store, "cat")
    nan = vector_of("x").copy()
    nan[0] = np.nan
    results = store.add_many(
        [
            (NewLabel("dog"), vector_of("dog")),
            (NewLabel("CAT"), vector_of("cat")),
            (NewLabel("bad\u202e"), vector_of("bad")),
            (NewLabel("Dog"), vector_of("dog")),
            (NewLabel("nan"), nan),
            (NewLabel("t", threshold=2), vector_of("t")),
            (NewLabel("bird", aliases=("DOG",)), vector_of("bird")),
            (NewLabel("fish"), vector_of("fish")),
        ],
        FINGERPRINT,
    )
    kinds = [type(result) for result in results]
    assert kinds == [
        Label,
        LabelExists,
        LabelTextInvalid,
        LabelExists,
        EncodeFailed,
        InvalidParameter,
        LabelExists,
        Label,
    ]
    dog, existing_name, _, duplicate, _, _, existing_alias, fish = results
    assert isinstance(dog, Label) and isinstance(fish, Label)
    assert isinstance(existing_name, LabelExists) and existing_name.existing_id == existing.id
    assert isinstance(duplicate, LabelExists) and duplicate.existing_id == dog.id
    assert isinstance(existing_alias, LabelExists) and existing_alias.existing_id == dog.id
    assert dog.revision == fish.revision == store.revision() == 2
    assert [label.name for label in store.list().data] == ["cat", "dog", "fish"]
    assert store.add_many([], FINGERPRINT) == []


def test_a_batch_of_several_steps_is_stored_in_order(store: LabelStore, client: redis.Redis) -> None:
    names = [f"label {i}" for i in range(2 * STEP_LABELS + 7)]
    results = store.add_many([(NewLabel(name), vector_of(name)) for name in names], FINGERPRINT)
    assert [r.name for r in results if isinstance(r, Label)] == names
    assert store.revision() == 3 and count_labels(client) == len(names)
    stored = [row.label.name for rows in store.scan(FINGERPRINT) for row in rows]
    assert stored == names
    assert all(np.array_equal(v, vector_of(store.get(i).name)) for i, v in list(all_vectors(store).items())[::97])


# -- lists ------------------------------------------------------------------------------------------------------------


def test_pages_with_every_filter(store: LabelStore) -> None:
    names = [f"{'red' if i % 3 else 'Blue'} thing {i}" for i in range(25)]
    labels = [
        add(store, name, aliases=(f"code {i:02d}",), categories=("even",) if i % 2 == 0 else ())
        for i, name in enumerate(names)
    ]

    def pages(**filters: Any) -> list[str]:
        seen: list[str] = []
        after = None
        while True:
            page = store.list(limit=4, after=after, **filters)
            seen += [label.name for label in page.data]
            if not page.has_more:
                return seen
            assert len(page.data) == 4
            after = page.data[-1].id

    assert pages() == names
    assert pages(category="EVEN") == names[::2]
    assert pages(q="blue") == names[::3]
    assert pages(q="CODE 1") == names[10:20]
    assert pages(q="blue", category="even") == names[::6]
    assert pages(q="nothing") == pages(category="nothing") == []
    assert store.list(limit=25).has_more is False and store.list(limit=24).has_more is True
    store.remove(labels[4].id)
    assert [label.name for label in store.list(limit=2, after=labels[4].id).data] == names[5:7]
    for wrong in ({"limit": 0}, {"limit": 1001}, {"after": "x"}):
        with pytest.raises(InvalidParameter):
            store.list(**wrong)  # type: ignore[arg-type]
    with pytest.raises(LabelTextInvalid):
        store.list(category="\ud800")


# -- vectors ----------------------------------------------------------------------------------------------------------


def test_vectors_of_several_encoders_are_independent(store: LabelStore) -> None:
    labels = [add(store, f"label {i}") for i in range(5)]
    assert all_vectors(store, "encoder-2") == {}
    assert names_without_vector(store, "encoder-2") == [label.name for label in labels]
    new = {label.id: np.full(2, i, np.float32) for i, label in enumerate(labels[:3])}
    assert store.put_vectors("encoder-2", new) == [label.id for label in labels[:3]]
    assert names_without_vector(store, "encoder-2") == [label.name for label in labels[3:]]
    assert {i: v.tolist() for i, v in all_vectors(store, "encoder-2").items()} == {
        i: v.tolist() for i, v in new.items()
    }
    assert len(all_vectors(store)) == 5
    assert store.generations() == {FINGERPRINT: DIM, "encoder-2": 2}
    with pytest.raises(ValueError, match="2 numbers, got 3"):
        store.put_vectors("encoder-2", {labels[3].id: np.ones(3, np.float32)})
    with pytest.raises(ValueError, match="5 numbers, got 6"):
        add_label(store, NewLabel("x"), np.ones(6, np.float32))
    store.drop_generation("encoder-2")
    assert store.generations() == {FINGERPRINT: DIM} and all_vectors(store, "encoder-2") == {}


def test_vectors_of_removed_or_renamed_labels_are_not_stored(store: LabelStore) -> None:
    dog, cat, cow = (add(store, name) for name in ("dog", "cat", "cow"))
    names = {label.id: label.name for label in (dog, cat, cow)}
    store.remove(cat.id)
    store.update(cow.id, LabelChanges(name="bull"), vector=vector_of("bull"), fingerprint=FINGERPRINT)
    revision = store.revision()
    written = store.put_vectors("encoder-2", {i: np.ones(2, np.float32) for i in names}, names=names)
    assert written == [dog.id]
    assert names_without_vector(store, "encoder-2") == ["bull"]
    (change,) = store.changes(revision)
    assert (change.kind, change.label_ids, change.fingerprint) == ("vectors", (dog.id,), "encoder-2")
    assert store.put_vectors("encoder-2", {cat.id: np.ones(2, np.float32)}) == []
    assert store.revision() == revision + 1


@pytest.mark.parametrize("damage", [lambda raw: raw[:-1], lambda raw: b"\0" + raw[1:], lambda raw: b""])
def test_a_corrupt_vector_is_logged_and_counts_as_missing(
    store: LabelStore, client: redis.Redis, caplog: pytest.LogCaptureFixture, damage: Callable[[bytes], bytes]
) -> None:
    dog, cat = add(store, "dog"), add(store, "cat")
    key = "vidlex:{default}:vectors:" + FINGERPRINT
    raw: Any = client.hget(key, dog.id)
    client.hset(key, dog.id, damage(raw))
    assert set(all_vectors(store)) == {cat.id}
    assert f"{dog.id} of namespace default has a corrupt vector" in caplog.text
    assert names_without_vector(store, FINGERPRINT) == ["dog"]
    store.put_vectors(FINGERPRINT, {dog.id: vector_of("dog")})
    assert set(all_vectors(store)) == {dog.id, cat.id}
