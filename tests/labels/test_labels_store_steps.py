"""Atomic steps under contention, with failing connections, and compared with a model in memory."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from support.processes import PATIENCE_SECONDS
from support.stores import FINGERPRINT, add, add_label, all_vectors, label_id, vector_of
from vidlex.service.errors import LabelExists, NotFound, StoreUnavailable
from vidlex.service.labels.store.connection import connect_socket
from vidlex.service.labels.store.label_store import LabelStore
from vidlex.service.labels.store.names import fold
from vidlex.service.labels.store.namespaces import count_labels
from vidlex.service.labels.store.records import Label, LabelChanges, NewLabel


def test_1000_concurrent_registrations_of_10_names(client: redis.Redis) -> None:
    path = client.get_connection_kwargs()["path"]
    replicas = [LabelStore(connect_socket(path), deadline_seconds=PATIENCE_SECONDS) for _ in range(4)]
    barrier = threading.Barrier(64)

    def register(number: int) -> Label | str:
        if number < 64:
            barrier.wait()  # all threads are started before the first write
        name = f"label {number % 10}"
        name = name.upper() if number % 3 else name
        try:
            return add(replicas[number % 4], name, aliases=(f"alias of {name}",))
        except LabelExists as error:
            return error.existing_id

    with ThreadPoolExecutor(64) as pool:
        outcomes = list(pool.map(register, range(1000)))
    winners = [outcome for outcome in outcomes if isinstance(outcome, Label)]
    assert len(winners) == 10
    assert {fold(label.name) for label in winners} == {f"label {i}" for i in range(10)}
    ids = {fold(label.name): label.id for label in winners}
    for number, outcome in enumerate(outcomes):
        assert (outcome.id if isinstance(outcome, Label) else outcome) == ids[f"label {number % 10}"]
    assert sorted(label.revision for label in winners) == list(range(1, 11))
    assert replicas[0].revision() == count_labels(client) == 10


def test_concurrent_replicas_leave_no_gap_in_the_history(client: redis.Redis) -> None:
    path = client.get_connection_kwargs()["path"]
    replicas = [LabelStore(connect_socket(path), deadline_seconds=PATIENCE_SECONDS) for _ in range(4)]

    def work(number: int) -> None:
        store = replicas[number % 4]
        label = add(store, f"label {number}")
        if number % 2:
            store.update(label.id, LabelChanges(threshold=0.5))
        if number % 3 == 0:
            store.remove(label.id)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(120)))
    changes = replicas[0].changes(0)
    assert [change.revision for change in changes] == list(range(1, 120 + 60 + 40 + 1))
    assert all(later.follows(earlier.head) for earlier, later in itertools.pairwise(changes))
    assert Counter(change.kind for change in changes) == {"put": 180, "remove": 40}
    assert count_labels(client) == 80


# -- changes and failures ---------------------------------------------------------------------------------------------


def test_changes_blocks_for_the_first_change_and_history_is_trimmed(client: redis.Redis) -> None:
    store = LabelStore(client, max_changes=5)
    assert store.changes(0) == [] == store.changes(0, block_ms=20)
    with ThreadPoolExecutor(1) as pool:
        slow_client = connect_socket(client.get_connection_kwargs()["path"], timeout_seconds=2 * PATIENCE_SECONDS)
        waiting = pool.submit(LabelStore(slow_client).changes, 0, int(1000 * PATIENCE_SECONDS))
        dog = add(store, "dog")
        assert [change.label_ids for change in waiting.result(PATIENCE_SECONDS)] == [(dog.id,)]
    for i in range(9):
        add(store, f"label {i}")
    changes = store.changes(1)
    assert [change.revision for change in changes] == [6, 7, 8, 9, 10]
    assert store.revision() == 10


@pytest.mark.parametrize("protocol", [2, 3])
def test_resp2_and_resp3(client: redis.Redis, protocol: int) -> None:
    store = LabelStore(redis.Redis(unix_socket_path=client.get_connection_kwargs()["path"], protocol=protocol))
    dog = add(store, "dog")
    assert [change.label_ids for change in store.changes(0, block_ms=50)] == [(dog.id,)]
    assert store.changes(1, block_ms=1) == []
    assert list(all_vectors(store)) == [dog.id]


def test_revisions_continue_after_the_stream_was_emptied_by_hand(store: LabelStore, client: redis.Redis) -> None:
    dog = add(store, "dog")
    client.xtrim("vidlex:{default}:changes", maxlen=0)
    assert store.revision() == 1
    store.update(dog.id, LabelChanges(threshold=0.5))
    assert store.get(dog.id).revision == store.revision() == 2


def test_a_user_without_scripting_suffices(client: redis.Redis) -> None:
    rules = ["+@all", "-@scripting", "-@dangerous", "-@admin"]
    client.execute_command("ACL", "SETUSER", "vidlex", "on", ">secret", "~vidlex:*", *rules)
    try:
        limited = redis.Redis(
            unix_socket_path=client.get_connection_kwargs()["path"], username="vidlex", password="secret"
        )
        with pytest.raises(redis.exceptions.NoPermissionError):
            limited.eval("return 1", 0)
        store = LabelStore(limited)
        label = add(store, "dog", categories=("pet",))
        store.update(label.id, LabelChanges(name="hound"), vector=vector_of("hound"), fingerprint=FINGERPRINT)
        assert list(all_vectors(store)) == [label.id]
        store.remove(label.id)
        assert store.revision() == 3
    finally:
        client.execute_command("ACL", "DELUSER", "vidlex")


def test_a_step_is_executed_once_if_its_reply_is_lost(
    store: LabelStore, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """redis-py raises WatchError if the connection breaks between EXEC and its reply."""
    real = redis.client.Pipeline.execute
    lost: list[object] = []

    def execute(self: Any, *args: Any, **kwargs: Any) -> Any:
        was_step = bool(self.explicit_transaction)
        result = real(self, *args, **kwargs)
        if was_step and len(lost) < 1:
            lost.append(result)
            raise redis.WatchError("A ConnectionError occurred while watching one or more keys")
        return result

    for use in (
        lambda: add(store, "dog"),
        lambda: store.update(store.list().data[0].id, LabelChanges(threshold=0.5)),
        lambda: store.put_vectors("encoder-2", {store.list().data[0].id: np.ones(2, np.float32)}),
        lambda: store.remove(store.list().data[0].id),
    ):
        lost.clear()
        revision = store.revision()
        with monkeypatch.context() as patch:
            patch.setattr(redis.client.Pipeline, "execute", execute)
            use()
        assert len(lost) == 1
        assert store.revision() == revision + 1
    assert count_labels(client) == 0


def test_an_unreachable_store_raises_store_unavailable() -> None:
    client = connect_socket("/nonexistent/valkey.sock")
    store = LabelStore(client)
    for use in (
        store.ping,
        lambda: count_labels(client),
        store.revision,
        store.check_schema,
        store.list,
        lambda: store.get(label_id(1)),
        lambda: store.find("dog"),
        lambda: add(store, "dog"),
        lambda: store.remove(label_id(1)),
        lambda: store.changes(0),
        lambda: list(store.scan(FINGERPRINT)),
    ):
        with pytest.raises(StoreUnavailable) as caught:
            use()  # type: ignore[operator]
        assert "nonexistent" not in str(caught.value)
        assert caught.value.internal


# -- model in memory --------- ----------------------------------------------------------------------------------------

TEXTS = ["dog", "Dog", "DOG ", "cat", "hound", "puppy", "Kitty", "straße", "STRASSE", "red  car", "Red Car"]
texts = st.sampled_from(TEXTS)
alias_lists = st.lists(texts, max_size=3).map(tuple)
category_lists = st.lists(st.sampled_from(["Pet", "pet", "vehicle", "wild"]), max_size=3).map(tuple)


class StoreMachine(RuleBasedStateMachine):
    """Random steps on the store and on dictionaries, with equal results and content."""

    client: redis.Redis
    ids = Bundle("ids")

    def __init__(self) -> None:
        super().__init__()
        self.client.flushall()
        self.store = LabelStore(self.client)
        self.labels: dict[str, Label] = {}
        self.vectors: dict[str, list[float]] = {}
        self.revision = 0

    def owner(self, keys: list[str], except_id: str = "") -> str | None:
        for key in keys:
            for label in self.labels.values():
                if label.id != except_id and key in {fold(text) for text in (label.name, *label.aliases)}:
                    return label.id
        return None

    @rule(target=ids, name=texts, aliases=alias_lists, categories=category_lists)
    def add(self, name: str, aliases: tuple[str, ...], categories: tuple[str, ...]) -> Any:
        owner = self.owner([fold(text) for text in (name, *aliases)])
        new = NewLabel(name, aliases, categories)
        if owner is not None:
            with pytest.raises(LabelExists) as caught:
                add_label(self.store, new)
            assert caught.value.existing_id == owner
            return multiple()
        label = add_label(self.store, new)
        assert all(label.id > other for other in self.labels)
        self.labels[label.id] = label
        self.vectors[label.id] = vector_of(name).tolist()
        self.revision += 1
        return label.id

    @rule(chosen=ids, name=st.none() | texts, aliases=st.none() | alias_lists, categories=st.none() | category_lists)
    def update(
        self, chosen: str, name: str | None, aliases: tuple[str, ...] | None, categories: tuple[str, ...] | None
    ) -> None:
        old = self.labels[chosen]
        fields: dict[str, Any] = {"name": name, "aliases": aliases, "categories": categories}
        changes = LabelChanges(**{key: value for key, value in fields.items() if value is not None})
        vector = {} if name is None else {"vector": vector_of(name), "fingerprint": FINGERPRINT}
        owner = self.owner(
            [fold(t) for t in (name or old.name, *(old.aliases if aliases is None else aliases))], chosen
        )
        if owner is not None:
            with pytest.raises(LabelExists) as caught:
                self.store.update(chosen, changes, **vector)  # type: ignore[arg-type]
            assert caught.value.existing_id == owner
            return
        label = self.store.update(chosen, changes, **vector)  # type: ignore[arg-type]
        written = label.revision != old.revision
        self.revision += written
        assert label.revision == (self.revision if written else old.revision)
        if not written:
            assert label == old and name is None
        if name is not None:
            self.vectors[chosen] = vector_of(name).tolist()
        self.labels[chosen] = label

    @rule(chosen=consumes(ids))
    def remove(self, chosen: str) -> None:
        self.store.remove(chosen)
        self.revision += 1
        del self.labels[chosen], self.vectors[chosen]
        with pytest.raises(NotFound):
            self.store.get(chosen)

    @rule(category=st.sampled_from(["PET", "vehicle", "wild"]), q=st.sampled_from(["", "d", "CAR", "ss"]))
    def list_labels(self, category: str, q: str) -> None:
        expected = [
            label
            for _, label in sorted(self.labels.items())
            if fold(category) in label.categories
            and any(fold(q) in fold(text) for text in (label.name, *label.aliases))
        ]
        assert self.store.list(category=category, q=q).data == expected

    @invariant()
    def content_agrees(self) -> None:
        assert self.store.list(limit=100).data == [label for _, label in sorted(self.labels.items())]
        assert count_labels(self.client) == len(self.labels)
        assert self.store.revision() == self.revision
        assert {i: vector.tolist() for i, vector in all_vectors(self.store).items()} == self.vectors
        for text in TEXTS:
            found = self.store.find(text)
            assert (found.id if found else None) == self.owner([fold(text)])


def test_store_agrees_with_a_model_in_memory(client: redis.Redis) -> None:
    StoreMachine.client = client
    run_state_machine_as_test(
        StoreMachine,
        settings=settings(
            max_examples=25, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
