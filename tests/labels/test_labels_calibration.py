"""A calibration in the label index: exact, independent of the other labels, in step with the store."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import redis
from numpy.typing import NDArray

from support.processes import PATIENCE_SECONDS
from support.stores import DIM, FINGERPRINT, add, label_id, label_of
from vidlex.model.calibration.domain import DomainCalibration
from vidlex.model.calibration.statistics import DomainStatistics
from vidlex.service.labels.index import approximate
from vidlex.service.labels.index import index_sync as sync_module
from vidlex.service.labels.index import label_index as index_module
from vidlex.service.labels.index.approximate import ApproximateIndexBuilder
from vidlex.service.labels.index.index_sync import IndexSync
from vidlex.service.labels.index.label_index import LabelIndex, Matches
from vidlex.service.labels.store.calibrations import Calibration
from vidlex.service.labels.store.label_store import LabelStore
from vidlex.service.labels.store.redis_keys import Keys
from vidlex.service.labels.store.verify import verify_namespace
from vidlex.service.models.applied_calibration import AppliedCalibration, to_apply

Floats = NDArray[np.float32]
D = 48


def unit(num: int, dim: int = D, seed: int = 0) -> Floats:
    vectors = np.random.default_rng(seed).standard_normal((num, dim), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def calibration(dim: int = D, seed: int = 5) -> DomainCalibration:
    """Of videos around one direction, so that labels' means differ much."""
    videos = unit(1, dim, seed) + 0.5 * unit(60, dim, seed + 1)
    statistics = DomainStatistics.of(videos / np.linalg.norm(videos, axis=1, keepdims=True))
    return DomainCalibration(statistics, mean_weight=0.9, offset=0.01, spread_weight=0.5, constant=0.003)


def stored(domain: DomainCalibration, fingerprint: str = "c1") -> Calibration:
    values = domain.to_dict()
    return Calibration(fingerprint, "videos", domain.statistics.num_videos, 1, has_platt=False, values=values)


def applied_of(domain: DomainCalibration) -> AppliedCalibration:
    return AppliedCalibration(domain, stored(domain))


@dataclass
class Applied:
    index: LabelIndex
    domain: DomainCalibration

    def expect_exact(self, videos: Floats, vectors: dict[str, Floats], **filters: object) -> Matches:
        """Every adjusted similarity is the label's own affine map of its similarity, to the bit."""
        found = self.index.search(videos, **filters)  # type: ignore[arg-type]
        assert {label.id for label in found.labels} <= set(vectors)
        for column, label in enumerate(found.labels):
            scale, shift = self.domain.affine(vectors[label.id][None])
            expected = found.similarity[:, column] * scale + shift
            np.testing.assert_array_equal(found.adjusted[:, column], expected)
        return found


def filled(num: int, **options: object) -> tuple[LabelIndex, dict[str, Floats]]:
    index = LabelIndex(D, "f", **options)  # type: ignore[arg-type]
    vectors = unit(num)
    index.replace([([label_of(i) for i in range(num)], vectors)], revision=1)
    return index, {label_id(i): vectors[i] for i in range(num)}


def test_labels_before_and_after_the_calibration_get_their_own_map_to_the_bit() -> None:
    index, vectors = filled(700)
    applied = Applied(index, calibration())
    plain = index.search(unit(2, seed=3))
    assert plain.adjusted is plain.similarity and plain.calibration is None
    index.calibrate(applied_of(applied.domain))
    before = applied.expect_exact(unit(2, seed=3), vectors)
    more = unit(300, seed=9)
    index.apply([label_of(700 + i) for i in range(300)], more)
    index.apply((), np.empty((0, D), np.float32), [label_id(i) for i in range(0, 700, 7)])
    vectors |= {label_id(700 + i): more[i] for i in range(300)}
    after = applied.expect_exact(unit(2, seed=3), vectors)
    kept = {label.id: column for column, label in enumerate(after.labels)}
    for column, label in enumerate(before.labels):  # adding and removing labels changes no bit of the others
        if label.id in kept:
            np.testing.assert_array_equal(after.adjusted[:, kept[label.id]], before.adjusted[:, column])
    applied.expect_exact(unit(2, seed=3), vectors, label_ids=[label_id(i) for i in (3, 710, 702)])
    index.calibrate(None)
    assert index.search(unit(2, seed=3)).calibration is None


def test_float16_and_compaction_keep_every_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "_MIN_DELETED", 10)
    index, _ = filled(200, storage="float16")
    index.calibrate(applied_of(calibration()))
    before = index.search(unit(1, seed=3))
    index.apply((), np.empty((0, D), np.float32), [label_id(i) for i in range(100)])
    after = index.search(unit(1, seed=3))
    assert len(after.labels) == 100
    np.testing.assert_array_equal(after.adjusted, before.adjusted[:, 100:])
    fresh, _ = filled(200, storage="float16")  # labels added after the calibration
    fresh.calibrate(applied_of(calibration()))
    np.testing.assert_array_equal(fresh.search(unit(1, seed=3)).adjusted, before.adjusted)


def test_approximate_search_ranks_by_the_calibrated_similarity(monkeypatch: pytest.MonkeyPatch) -> None:
    num = 6000
    monkeypatch.setattr(approximate, "MIN_LABELS", 1000)
    builder = ApproximateIndexBuilder()
    index, _ = filled(num, approximate_builder=builder)
    assert builder.wait(PATIENCE_SECONDS)
    videos = unit(20, seed=4) + unit(1, seed=5)  # near the domain's mean, where plain similarities mislead
    videos /= np.linalg.norm(videos, axis=1, keepdims=True)
    assert index.search(videos[:1], top_k=20).is_approximate
    index.calibrate(applied_of(calibration()))
    first = index.search(videos[:1], top_k=20)
    assert not first.is_approximate or builder.newest is not None  # exact until the new codes are built
    assert builder.wait(PATIENCE_SECONDS)
    stats = builder.newest
    assert stats is not None and not stats.stats.is_exact and stats.stats.recall >= approximate.TARGET_RECALL
    found = 0
    for video in videos:
        exact = index.search(video[None])
        quick = index.search(video[None], top_k=20)
        assert quick.is_approximate and len(quick.labels) < num
        best = {exact.labels[i].id for i in np.argsort(-exact.adjusted[0])[:20]}
        plain = {exact.labels[i].id for i in np.argsort(-exact.similarity[0])[:20]}
        assert best != plain
        found += len(best & {quick.labels[i].id for i in np.argsort(-quick.adjusted[0])[:20]})
    assert found >= 0.97 * 20 * len(videos)


# --- the store


@pytest.fixture
def quick_close(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync_module, "BLOCK_MS", 50)


@pytest.fixture
def replicas(store: LabelStore, quick_close: None) -> Iterator[list[IndexSync]]:
    syncs = [
        IndexSync(store, LabelIndex(DIM, FINGERPRINT), read_calibration=lambda raw: to_apply(raw, dim=DIM))
        for _ in range(2)
    ]
    for sync in syncs:
        sync.load()
        sync.start()
    yield syncs
    for sync in syncs:
        sync.close()


def applied_in(sync: IndexSync, revision: int) -> str | None:
    assert sync.wait_for_revision(revision, PATIENCE_SECONDS)
    found = sync._index.calibration
    return None if found is None else found.fingerprint


def test_every_replica_follows_the_stored_calibration(store: LabelStore, replicas: list[IndexSync]) -> None:
    add(store, "dog")
    revision = store.put_calibration(FINGERPRINT, stored(calibration(DIM)))
    assert [applied_in(sync, revision) for sync in replicas] == ["c1", "c1"]
    add(store, "cat")
    revision = store.put_calibration(FINGERPRINT, stored(calibration(DIM, seed=8), "c2"))
    assert [applied_in(sync, revision) for sync in replicas] == ["c2", "c2"]
    a, b = (sync._index.search(unit(3, DIM)) for sync in replicas)
    assert a.adjusted.shape == (3, 2)
    np.testing.assert_array_equal(a.adjusted, b.adjusted)
    revision = store.put_calibration(FINGERPRINT, None)
    assert [applied_in(sync, revision) for sync in replicas] == [None, None]
    assert store.put_calibration(FINGERPRINT, None) == revision  # no step


def test_another_encoders_calibration_is_not_applied(store: LabelStore, replicas: list[IndexSync]) -> None:
    revision = store.put_calibration("encoder-2", stored(calibration(7)))
    assert [applied_in(sync, revision) for sync in replicas] == [None, None]
    assert store.calibration("encoder-2") is not None
    store.drop_generation("encoder-2")
    assert store.calibration("encoder-2") is None


def test_a_loaded_index_is_calibrated(store: LabelStore) -> None:
    add(store, "dog")
    domain = calibration(DIM)
    store.put_calibration(FINGERPRINT, stored(domain))
    sync = IndexSync(store, LabelIndex(DIM, FINGERPRINT), read_calibration=lambda raw: to_apply(raw, dim=DIM))
    sync.load()
    found = sync._index.search(unit(2, DIM))
    (row,) = next(iter(store.scan(FINGERPRINT)))
    assert row.vector is not None
    np.testing.assert_array_equal(found.adjusted, domain.adjust(found.similarity, row.vector[None]))


@pytest.mark.parametrize("raw", ["", "{}", "[]", '{"fingerprint": "c1"}'])
def test_a_corrupt_calibration_is_reported_and_not_applied(client: redis.Redis, store: LabelStore, raw: str) -> None:
    add(store, "dog")
    assert verify_namespace(client) == []
    client.hset(Keys("default").calibrations, FINGERPRINT, raw)
    assert store.calibration(FINGERPRINT) is None
    (problem,) = verify_namespace(client)
    assert FINGERPRINT in problem and "calibration" in problem


def test_a_calibration_of_a_later_version_is_not_applied(store: LabelStore) -> None:
    domain = calibration(DIM)
    newer = stored(domain).values | {"format": 2}
    for values in (newer, {}, calibration(7).to_dict()):
        store.put_calibration(FINGERPRINT, Calibration("c3", "videos", 60, 1, has_platt=False, values=values))
        assert to_apply(store.calibration(FINGERPRINT), dim=DIM) is None
