"""The tables of features that a process keeps in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from support.kept_videos import FINGERPRINT, NAMESPACE, keep, kept_store
from support.redis_process import RedisProcess
from vidlex.service.errors import StoreUnavailable
from vidlex.service.videos import upkeep
from vidlex.service.videos.pages import VideoFilter
from vidlex.service.videos.parts import cache
from vidlex.service.videos.store import KeptVideoStore


@pytest.fixture
def client(tmp_path: Path) -> Iterator[redis.Redis]:
    with RedisProcess(tmp_path / "store", appendfsync="no") as process:
        yield process.client()


@pytest.fixture
def store(client: redis.Redis, tmp_path: Path) -> KeptVideoStore:
    return kept_store(client, tmp_path)


def test_tables_of_many_namespaces_take_bounded_memory(store: KeptVideoStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_MAX_BYTES", 20_000)
    for number in range(20):
        keep(store, "a", namespace=f"ns{number}")
        assert store.table(f"ns{number}", FINGERPRINT).num_videos == 1
    assert 1 <= len(store._tables._states) < 10
    assert store.table("ns0", FINGERPRINT).num_videos == 1
    assert store._tables._num_bytes == sum(state.num_bytes for state in store._tables._states.values())


def test_fingerprints_that_are_made_up_take_no_memory(store: KeptVideoStore, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(store, "a")
    real = store.table(NAMESPACE, FINGERPRINT)
    monkeypatch.setattr(cache, "_MAX_BYTES", 20_000)
    for number in range(20):
        page = store.page(NAMESPACE, VideoFilter(missing_fingerprint=f"made-up-{number}"), limit=9)
        assert len(page.data) == 1
    with monkeypatch.context() as patch:

        def fail(*_: object) -> None:
            raise StoreUnavailable("The store is away")

        patch.setattr(cache, "_read", fail)
        with pytest.raises(StoreUnavailable):
            store.table(NAMESPACE, "made-up")
    assert list(store._tables._states) == [(NAMESPACE, FINGERPRINT)]
    assert store.table(NAMESPACE, FINGERPRINT) is real
    keep(store, "a", fingerprint="made-up-1")
    assert store.table(NAMESPACE, "made-up-1").num_videos == 1
    store.remove(NAMESPACE, store.page(NAMESPACE, VideoFilter(), limit=1).data[0].id)
    monkeypatch.setattr(upkeep, "RETIRED_SECONDS", -60.0)
    store.sweep()
    assert [store.table(NAMESPACE, name).num_videos for name in (FINGERPRINT, "made-up-1")] == [0, 0]
    assert (len(store._tables._states), store._tables._num_bytes) == (0, 0)
