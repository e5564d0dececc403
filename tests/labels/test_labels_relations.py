"""Parents, search by prefix, entity tags and quotas with a real server."""

from __future__ import annotations

import pytest
import redis

from support.stores import FINGERPRINT, add, vector_of
from vidlex.service.errors import (
    InvalidParameter,
    LabelExists,
    NotFound,
    ParentCycle,
    ParentNotFound,
    PreconditionFailed,
    QuotaExceeded,
)
from vidlex.service.labels.store.label_store import STEP_LABELS, AddResults, LabelStore
from vidlex.service.labels.store.namespaces import count_labels
from vidlex.service.labels.store.records import Label, LabelChanges, NewLabel, etag_of
from vidlex.service.labels.store.redis_keys import parse_key


def add_all(store: LabelStore, *news: NewLabel) -> AddResults:
    return store.add_many([(new, vector_of(new.name)) for new in news], FINGERPRINT)


def names(labels: list[Label]) -> list[str]:
    return [label.name for label in labels]


def test_parents_by_name_alias_and_id(store: LabelStore) -> None:
    animal = add(store, "Animal", aliases=("creature",))
    dog = add(store, "dog", parents=("ANIMAL ", "creature", animal.id))
    assert dog.parents == (animal.id,)
    assert store.get(dog.id) == dog
    assert names(store.list(parent="creature").data) == names(store.list(parent=animal.id).data) == ["dog"]
    assert store.update(dog.id, LabelChanges(parents=("creature",))) == dog  # nothing changed
    assert store.update(dog.id, LabelChanges(parents=())).parents == ()
    assert store.list(parent="animal").data == []
    with pytest.raises(NotFound):
        store.list(parent="plant")


def test_a_parent_must_exist(store: LabelStore) -> None:
    dog = add(store, "dog")
    for missing in ("animal", "lbl_" + "0" * 24):
        with pytest.raises(ParentNotFound) as caught:
            add(store, "hound", parents=("dog", missing))
        assert caught.value.extra["errors"][0]["pointer"] == "/parents/1"
        with pytest.raises(ParentNotFound):
            store.update(dog.id, LabelChanges(parents=(missing,)))
    assert store.revision() == 1


def test_a_batch_may_refer_to_later_items_as_parents(store: LabelStore, client: redis.Redis) -> None:
    dog, animal, orphan, itself, child, duplicate = add_all(
        store,
        NewLabel("dog", parents=("animal",)),
        NewLabel("animal"),
        NewLabel("orphan", parents=("unknown",)),
        NewLabel("itself", parents=("itself",)),
        NewLabel("child", parents=("orphan",)),
        NewLabel("ANIMAL"),
    )
    assert isinstance(dog, Label) and isinstance(animal, Label)
    assert dog.parents == (animal.id,)
    assert all(isinstance(error, ParentNotFound) for error in (orphan, itself, child))
    assert isinstance(duplicate, LabelExists) and duplicate.existing_id == animal.id
    assert count_labels(client) == 2


def _only_id(store: LabelStore, name: str) -> str:
    found = store.find(name)
    assert found is not None
    return found.id


def test_cycles_are_rejected(store: LabelStore) -> None:
    a = add(store, "a")
    b = add(store, "b", parents=("a",))
    c = add(store, "c", parents=("b",))
    for child in (a, b, c):
        with pytest.raises(ParentCycle):
            store.update(a.id, LabelChanges(parents=(child.id,)))
    d = add(store, "d", parents=("a", "b"))
    assert store.update(c.id, LabelChanges(parents=("d",))).parents == (d.id,)
    assert store.get(a.id).parents == ()


def test_removing_a_parent_removes_all_references_to_it(store: LabelStore, client: redis.Redis) -> None:
    animal, pet = add(store, "animal"), add(store, "pet")
    dog = add(store, "dog", parents=("animal", "pet"))
    revision = store.revision()
    store.remove(animal.id)
    (change,) = store.changes(revision)
    assert (change.kind, change.label_ids) == ("remove", (animal.id, dog.id))
    child = store.get(dog.id)
    assert (child.parents, child.revision) == ((pet.id,), revision + 1)
    assert not client.exists(f"vidlex:{{default}}:children:{animal.id}")
    store.remove(dog.id)
    store.remove(pet.id)
    left = {parsed.kind for key in client.scan_iter() if (parsed := parse_key(key)) is not None}
    assert left == {"changes"}


def test_removing_a_parent_of_many_children_takes_several_steps(store: LabelStore, client: redis.Redis) -> None:
    animal = add(store, "animal")
    many = 2 * STEP_LABELS + 1
    add_all(store, *(NewLabel(f"label {i}", parents=("animal",)) for i in range(many)))
    before = store.revision()
    store.remove(animal.id)
    assert store.revision() == before + 3  # two steps detach children, the last one removes the parent
    assert count_labels(client) == many
    assert all(
        not label.parents for page in (store.list(1000), store.list(1000, "lbl_" + "0" * 24)) for label in page.data
    )


def test_prefix_matches_names_and_aliases_without_duplicates(store: LabelStore) -> None:
    add(store, "Dog", aliases=("doggy", "hound"), categories=("pet",))
    add(store, "dog house", categories=("thing",))
    add(store, "hot dog", aliases=("dogs' dinner",))
    add(store, "door")
    assert names(store.list(prefix="dog").data) == ["Dog", "dog house", "hot dog"]
    assert names(store.list(prefix="DO").data) == ["Dog", "dog house", "hot dog", "door"]
    assert names(store.list(prefix="ho").data) == ["hot dog", "Dog"]
    assert names(store.list(prefix="d", category="thing").data) == ["dog house"]
    assert names(store.list(prefix="d", q="dinner").data) == ["hot dog"]
    assert store.list(prefix="dogma").data == store.list(prefix="\0").data == []
    seen: list[str] = []
    after = None
    while True:
        page = store.list(limit=1, prefix="do", after=after)
        seen += names(page.data)
        if not page.has_more:
            break
        after = page.data[-1].id
    assert seen == ["Dog", "dog house", "hot dog", "door"]
    with pytest.raises(InvalidParameter, match="first page"):
        store.list(prefix="x", after=after)


def test_prefix_follows_changes(store: LabelStore) -> None:
    dog = add(store, "dog", aliases=("hound",))
    store.update(dog.id, LabelChanges(name="cat", aliases=()), vector=vector_of("cat"), fingerprint=FINGERPRINT)
    assert store.list(prefix="d").data == store.list(prefix="h").data == []
    assert names(store.list(prefix="c").data) == ["cat"]
    store.remove(dog.id)
    assert store.list(prefix="c").data == []


def test_entity_tags_are_checked_within_the_step(store: LabelStore, client: redis.Redis) -> None:
    dog = add(store, "dog")
    newer = store.update(dog.id, LabelChanges(threshold=0.5), if_match=["nonsense", etag_of(dog)])
    assert etag_of(newer) != etag_of(dog)
    for use in (
        lambda: store.update(dog.id, LabelChanges(threshold=0.6), if_match=[etag_of(dog)]),
        lambda: store.update(dog.id, LabelChanges(threshold=0.5), if_match=[]),
        lambda: store.remove(dog.id, if_match=[etag_of(dog)]),
    ):
        with pytest.raises(PreconditionFailed):
            use()
    assert store.get(dog.id) == newer
    store.remove(dog.id, if_match=[etag_of(newer)])
    assert count_labels(client) == 0


def test_the_quota_is_checked_within_the_step(client: redis.Redis) -> None:
    store = LabelStore(client, max_labels=3)
    first = add_all(store, *(NewLabel(f"label {i}") for i in range(5)))
    assert [isinstance(result, Label) for result in first] == [True, True, True, False, False]
    assert isinstance(first[4], QuotaExceeded)
    with pytest.raises(LabelExists):  # an existing label is reported before the quota
        add(store, "label 0")
    with pytest.raises(QuotaExceeded):
        add(store, "other")
    store.remove(_only_id(store, "label 1"))
    add(store, "other")
    (lower,) = LabelStore(client).add_many([(NewLabel("x"), vector_of("x"))], FINGERPRINT, max_labels=3)
    assert isinstance(lower, QuotaExceeded)
    assert count_labels(client) == 3


def test_find_many_returns_labels_in_order(store: LabelStore) -> None:
    dog, cat = add(store, "dog", aliases=("hound",)), add(store, "cat")
    assert store.find_many(["CAT", "unknown", "hound", "dog"]) == [cat, None, dog, dog]
    assert store.find_many([]) == []
