"""The store of judgements: quotas, what goes first, writers at the same time."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest
import redis

from support.judgements import sha256_of
from support.stores import add as add_label
from vidlex.service.errors import ByteQuotaExceeded, NotFound, PreconditionFailed, StoreUnavailable
from vidlex.service.feedback.keys import FeedbackKeys
from vidlex.service.feedback.records import Judgement, ThresholdVersion, judgement_from_json, to_json
from vidlex.service.feedback.store import MAX_VERSIONS, FeedbackStore
from vidlex.service.ids import new_id
from vidlex.service.labels.store.label_store import LabelStore
from vidlex.service.labels.store.records import LabelChanges

NS = "default"


def judged(video: object, label_id: str = "lbl_a", **fields: Any) -> Judgement:
    defaults: dict[str, Any] = {
        "id": new_id("jdg"),
        "label_id": label_id,
        "label_name": "red",
        "sha256": sha256_of(video),
        "right": True,
        "client": "test",
        "created_at_ms": 1,
    }
    return Judgement(**(defaults | fields))


def used_bytes(client: redis.Redis) -> int:
    return int(client.get(FeedbackKeys(NS).num_bytes) or 0)


def check(client: redis.Redis, store: FeedbackStore, namespace: str = NS) -> None:
    """The derived keys are those of the judgements."""
    keys = FeedbackKeys(namespace)
    counts: dict[bytes, bytes] = client.hgetall(keys.labels)  # type: ignore[assignment]
    ids: dict[bytes, bytes] = client.hgetall(keys.ids)  # type: ignore[assignment]
    found = [j for label_id in counts for j in store.judgements(namespace, label_id.decode())]
    assert {k.decode(): int(n) for k, n in counts.items() if int(n)} == {
        label_id: sum(j.label_id == label_id for j in found) for label_id in {j.label_id for j in found}
    }
    assert {k.decode(): v.decode() for k, v in ids.items()} == {j.id: f"{j.label_id} {j.subject}" for j in found}
    assert used_bytes(client) == sum(len(to_json(j).encode()) + 250 for j in found)


def test_records_survive_json() -> None:
    whole = judged("a", start_ms=0, end_ms=5, score=0.5, scored_by="client", fingerprint="f", calibration="c", note="ü")
    for record in (whole, judged("a"), judged("a", client="", right=False)):
        assert judgement_from_json(to_json(record).encode()) == record
    assert judgement_from_json(to_json(whole).encode()[:-1] + b',"newer":1}') == whole
    for damaged in (b"", b"{}", b"[]", b"\xff"):
        with pytest.raises(StoreUnavailable):
            judgement_from_json(damaged)


def test_the_newest_of_a_video_segment_and_label_counts(client: redis.Redis) -> None:
    store = FeedbackStore(client)
    first = judged("a")
    assert store.add(NS, [first, judged("a", label_id="lbl_b"), judged("a", start_ms=0, end_ms=5)]) == {
        "lbl_a": 2,
        "lbl_b": 1,
    }
    second = judged("a", right=False)
    assert store.add(NS, [judged("a"), second]) == {"lbl_a": 2}  # the last of a batch too
    assert second in store.judgements(NS, "lbl_a")
    check(client, store)
    with pytest.raises(NotFound):
        store.remove(NS, first.id)
    assert store.remove(NS, second.id) == "lbl_a"
    assert [count.num_judgements for count in store.labels(NS)] == [1, 1]
    check(client, store)


def test_a_label_keeps_its_newest_judgements(client: redis.Redis) -> None:
    store = FeedbackStore(client, max_per_label=5)
    for i in range(7):
        store.add(NS, [judged(i, id=f"jdg_{i}")])
    check(client, store)
    assert [j.id for j in store.judgements(NS, "lbl_a")] == [f"jdg_{i}" for i in range(2, 7)]
    # One that is replaced makes no room.
    store.add(NS, [judged(6, id="jdg_7", right=False), judged(8, id="jdg_8")])
    assert [j.id for j in store.judgements(NS, "lbl_a")] == ["jdg_3", "jdg_4", "jdg_5", "jdg_7", "jdg_8"]
    check(client, store)


def test_a_namespace_has_a_quota_of_bytes(client: redis.Redis) -> None:
    store = FeedbackStore(client, max_bytes=3000)
    labels = LabelStore(client)
    label = add_label(labels, "red")
    store.add(NS, [judged(i, label_id=label.id) for i in range(5)])
    before = used_bytes(client)
    with pytest.raises(ByteQuotaExceeded):
        store.add(NS, [judged(f"more {i}", label_id=label.id) for i in range(5)])
    assert used_bytes(client) == before
    # It can still be changed for what is not larger, and another namespace has its own.
    (one,) = [j for j in store.judgements(NS, label.id) if j.sha256 == sha256_of(0)]
    store.add(NS, [replace(one, right=False)])
    store.add("other", [judged(i) for i in range(5)])
    # Judgements of labels that are removed make room.
    labels.remove(label.id)
    new = add_label(labels, "blue")
    assert store.add(NS, [judged(f"more {i}", label_id=new.id) for i in range(5)]) == {new.id: 5}
    assert store.judgements(NS, label.id) == []
    check(client, store)


def test_writers_at_the_same_time_lose_nothing(client: redis.Redis) -> None:
    stores = [FeedbackStore(client) for _ in range(4)]

    def write(number: int) -> None:
        for i in range(15):
            added = judged(f"{number} {i}")
            stores[number].add(NS, [added, judged("shared", label_id="lbl_b")])
            if i % 5 == 0:
                stores[number].remove(NS, added.id)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    check(client, stores[0])
    assert {count.label_id: count.num_judgements for count in stores[0].labels(NS)} == {"lbl_a": 48, "lbl_b": 1}


def test_a_guard_that_refuses_writes_is_asked(client: redis.Redis) -> None:
    def refuse(_: object) -> None:
        raise StoreUnavailable

    store = FeedbackStore(client, guard=refuse)
    with pytest.raises(StoreUnavailable):
        store.add(NS, [judged("a")])
    assert store.judgements(NS, "lbl_a") == []


def test_a_label_is_changed_with_its_version_or_not_at_all(client: redis.Redis) -> None:
    store, labels = FeedbackStore(client), LabelStore(client)
    label = add_label(labels, "red")
    revision = labels.revision()

    def fail(_: object) -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        labels.update(label.id, LabelChanges(threshold=0.4), also=fail)
    assert (labels.get(label.id), labels.revision()) == (label, revision)
    version = ThresholdVersion(
        id=new_id("fit"),
        kind="fit",
        label_id=label.id,
        label_name="red",
        threshold_before=None,
        threshold=0.4,
        fingerprint="f",
        calibration=None,
        client="test",
        created_at_ms=1,
    )
    with pytest.raises(PreconditionFailed):
        changes = LabelChanges(threshold=0.4)
        labels.update(label.id, changes, if_match=["1-1"], also=store.version_writer(NS, version))
    assert store.versions(NS, label.id) == []
    labels.update(label.id, LabelChanges(threshold=None), also=store.version_writer(NS, version))
    assert store.versions(NS, label.id) == []  # nothing changes, nothing is written
    labels.update(label.id, LabelChanges(threshold=0.4), also=store.version_writer(NS, version))
    assert store.versions(NS, label.id) == [version]
    assert (labels.get(label.id).threshold, labels.revision()) == (0.4, revision + 1)


def test_the_newest_versions_are_kept(client: redis.Redis) -> None:
    store, labels = FeedbackStore(client), LabelStore(client)
    label = add_label(labels, "red")
    for i in range(MAX_VERSIONS + 3):
        version = ThresholdVersion(
            id=f"fit_{i:04}",
            kind="fit",
            label_id=label.id,
            label_name="red",
            threshold_before=None,
            threshold=i / 1000,
            fingerprint="f",
            calibration=None,
            client="test",
            created_at_ms=i,
        )
        with client.pipeline(transaction=True) as pipe:
            store.version_writer(NS, version)(pipe)  # type: ignore[arg-type]
            assert store.versions(NS, label.id)[:1] != [version]
            pipe.execute()
        assert store.versions(NS, label.id)[0] == version
    assert len(store.versions(NS, label.id)) == MAX_VERSIONS
