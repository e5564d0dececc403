"""What is kept of videos, by a real store and real files: updates, quotas, retention, lists, namespaces."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from redis.client import Pipeline

from support.kept_videos import (
    DIM,
    FINGERPRINT,
    NAMESPACE,
    keep,
    kept_store,
    new_video,
    segments_of,
    stored_vectors,
    table_of,
    vectors_of,
)
from support.paths import ROOT
from support.redis_process import RedisProcess
from vidlex.service import audit
from vidlex.service.errors import ByteQuotaExceeded, NotFound, StorageFull, StoreUnavailable
from vidlex.service.videos.pages import VideoFilter
from vidlex.service.videos.store import KeptVideoStore, VideoLimits


def used_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_what_was_kept_is_read_by_another_process(store: KeptVideoStore, client: redis.Redis, tmp_path: Path) -> None:
    new = new_video("a", client_id="mine", metadata={"é": [1, {"x": None}]}, uri="s3://bucket/a.mp4", keep_seconds=60)
    kept = store.keep(new, FINGERPRINT, segments_of(3), vectors_of("a"))
    other = kept_store(client, tmp_path)
    found = other.get(NAMESPACE, kept.id)
    assert found == kept
    assert {name: getattr(found, name) for name in new.__dataclass_fields__} == new.__dict__
    assert found.generations == {FINGERPRINT: 3}
    assert found.expires_at_ms == found.updated_at_ms + 60_000
    features = other.features(NAMESPACE, kept.id, FINGERPRINT)
    assert features is not None
    assert list(features.segments) == segments_of(3)
    assert other.features(NAMESPACE, kept.id, "another-encoder") is None


def test_vectors_are_rounded_to_the_nearest_float16_and_not_changed_after_that(store: KeptVideoStore) -> None:
    """Ties to even, subnormals, the largest; each as IEEE 754 says."""
    values = [1 + 2**-11, 1 + 3 * 2**-11, -(2**-24), 2**-25, 65504.0, -0.0, 0.1, 1 / 3]
    rounded = [1.0, 1 + 2**-9, -(2**-24), 0.0, 65504.0, -0.0, float(np.float16(0.1)), float(np.float16(1 / 3))]
    kept = store.keep(new_video("a"), FINGERPRINT, segments_of(1), np.array([values], np.float32))
    features = store.features(NAMESPACE, kept.id, FINGERPRINT)
    assert features is not None
    expected = np.array([rounded], np.float16)
    assert features.vectors.dtype == np.float16
    assert features.vectors.tobytes() == expected.tobytes()
    (block,) = store.table(NAMESPACE, FINGERPRINT).blocks()
    assert block.vectors.tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("count", "vectors"),
    [
        (1, np.full((1, DIM), np.nan, np.float32)),
        (1, np.full((1, DIM), 1e6, np.float32)),  # infinite as float16
        (0, np.zeros((0, DIM), np.float32)),
        (2, np.zeros((3, DIM), np.float32)),
        (1, np.zeros(DIM, np.float32)),
    ],
)
def test_vectors_that_cannot_be_kept_are_refused(
    store: KeptVideoStore, tmp_path: Path, count: int, vectors: np.ndarray
) -> None:
    with pytest.raises(ValueError, match=r"vectors"):
        store.keep(new_video("a"), FINGERPRINT, segments_of(count), vectors)
    assert not list(tmp_path.rglob("*.features"))


def test_equal_content_and_sampling_are_one_video(store: KeptVideoStore) -> None:
    first = store.keep(new_video("a", client_id="x", metadata={"n": 1}), FINGERPRINT, segments_of(3), vectors_of("a"))
    again = store.keep(
        new_video("a", client_id="y", uri="s3://b/a"), FINGERPRINT, segments_of(2), vectors_of("other", 2)
    )
    assert again.id == first.id
    assert (again.client_id, again.metadata, again.uri) == ("y", {"n": 1}, "s3://b/a")
    assert store.generations(NAMESPACE) == {FINGERPRINT: 1}
    assert store.table(NAMESPACE, FINGERPRINT).num_segments == 2
    np.testing.assert_array_equal(table_of(store)[first.id], vectors_of("other", 2).astype(np.float16))
    assert [video.id for video in store.page(NAMESPACE, VideoFilter(client_id="x"), limit=9).data] == []
    assert [video.id for video in store.page(NAMESPACE, VideoFilter(client_id="y"), limit=9).data] == [first.id]

    other = store.keep(new_video("a", sampling={"num_frames": 4}), FINGERPRINT, segments_of(1), vectors_of("a", 1))
    assert other.id != first.id
    assert store.usage(NAMESPACE) == (2, again.num_bytes + other.num_bytes)


def test_a_generation_of_another_encoder_is_added(store: KeptVideoStore) -> None:
    video_id = keep(store, "a")
    keep(store, "a", fingerprint="encoder-2", count=4)
    assert store.get(NAMESPACE, video_id).generations == {FINGERPRINT: 3, "encoder-2": 4}
    assert store.generations(NAMESPACE) == {FINGERPRINT: 1, "encoder-2": 1}
    for fingerprint, count in ((FINGERPRINT, 3), ("encoder-2", 4)):
        expected = stored_vectors("a", fingerprint=fingerprint, count=count)
        np.testing.assert_array_equal(table_of(store, fingerprint)[video_id], expected)
    store.remove(NAMESPACE, video_id)
    assert store.generations(NAMESPACE) == {}
    assert store.usage(NAMESPACE) == (0, 0)


def test_a_repeated_request_writes_no_features(store: KeptVideoStore, tmp_path: Path) -> None:
    video_id = keep(store, "a")
    size, revision = used_bytes(tmp_path / "videos"), store.table(NAMESPACE, FINGERPRINT).revision
    assert keep(store, "a", metadata={"n": 2}) == video_id
    assert used_bytes(tmp_path / "videos") == size
    assert store.table(NAMESPACE, FINGERPRINT).revision == revision
    assert store.get(NAMESPACE, video_id).metadata == {"n": 2}


def test_changes_are_in_the_audit_log(store: KeptVideoStore) -> None:
    with audit.recording() as changes:
        video_id = keep(store, "a", client_id="x")
        store.remove(NAMESPACE, video_id)
    kept, removed = changes.made
    assert (kept.action, kept.object, kept.namespace) == ("video.keep", video_id, NAMESPACE)
    assert kept.after == {"client_id": "x", "sha256": new_video("a").sha256, "expires_at_ms": None}
    assert (removed.action, removed.object, removed.namespace) == ("video.remove", video_id, NAMESPACE)


def test_a_removed_video_is_gone(store: KeptVideoStore) -> None:
    video_id, other = keep(store, "a", client_id="x"), keep(store, "b")
    store.remove(NAMESPACE, video_id)
    for action in (
        lambda: store.get(NAMESPACE, video_id),
        lambda: store.remove(NAMESPACE, video_id),
        lambda: store.features(NAMESPACE, video_id, FINGERPRINT),
        lambda: store.get(NAMESPACE, "vid_" + 24 * "i"),  # no id at all
    ):
        with pytest.raises(NotFound):
            action()
    assert list(table_of(store)) == [other]
    assert [video.id for video in store.get_many(NAMESPACE, [video_id, other, "nonsense"])] == [other]
    assert store.usage(NAMESPACE) == (1, store.get(NAMESPACE, other).num_bytes)
    assert keep(store, "a") != video_id


def test_a_full_quota_refuses_what_is_new_and_writes_nothing(client: redis.Redis, tmp_path: Path) -> None:
    size = kept_store(client, tmp_path / "measure").keep(
        new_video("a", namespace="measure"), FINGERPRINT, segments_of(3), vectors_of("a")
    ).num_bytes  # fmt: skip
    store = kept_store(client, tmp_path, VideoLimits(3 * size + size // 2, None))
    ids = [keep(store, name) for name in "abc"]
    before = used_bytes(tmp_path / "videos")
    for name in "de":
        with pytest.raises(ByteQuotaExceeded, match="VIDLEX_MAX_KEPT_BYTES"):
            keep(store, name)
    assert used_bytes(tmp_path / "videos") == before
    assert keep(store, "a", count=2) == ids[0]  # smaller than before
    assert keep(store, "d", namespace="another") in table_ids(store, "another")
    store.remove(NAMESPACE, ids[1])
    assert keep(store, "e") in table_of(store)


def table_ids(store: KeptVideoStore, namespace: str) -> list[str]:
    table = store.table(namespace, FINGERPRINT)
    return table.video_ids(range(table.num_videos))


def test_a_service_may_keep_nothing(client: redis.Redis, tmp_path: Path) -> None:
    store = kept_store(client, tmp_path, VideoLimits(0, None))
    with pytest.raises(ByteQuotaExceeded, match="keeps no videos"):
        keep(store, "a")
    assert not list(tmp_path.rglob("*.features"))


def test_a_full_disk_is_named_and_loses_nothing(store: KeptVideoStore, monkeypatch: pytest.MonkeyPatch) -> None:
    known = keep(store, "a")

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("vidlex.service.videos.parts.files.os.pwrite", full)
        with pytest.raises(StorageFull):
            keep(store, "b")
    assert list(table_of(store)) == [known]
    assert set(table_of(store)) < {known, keep(store, "b")}


def test_what_has_expired_is_swept(client: redis.Redis, tmp_path: Path) -> None:
    store = kept_store(client, tmp_path, VideoLimits(2**40, 3600))
    short, default = keep(store, "a", keep_seconds=0.001, client_id="x"), keep(store, "b")
    found = store.get(NAMESPACE, default)
    assert found.expires_at_ms == found.updated_at_ms + 3_600_000
    seconds, micros = client.time()
    while seconds * 1000 + micros // 1000 <= (store.get(NAMESPACE, short).expires_at_ms or 0):
        seconds, micros = client.time()
    assert store.sweep().expired == 1
    assert [video.id for video in store.page(NAMESPACE, VideoFilter(), limit=9).data] == [default]
    assert list(table_of(store)) == [default]
    assert store.sweep().expired == 0

    keep(store, "b", metadata={"n": 1})  # without a time: the old one stays
    assert store.get(NAMESPACE, default).expires_at_ms == found.expires_at_ms
    keep(store, "b", keep_seconds=7200)
    again = store.get(NAMESPACE, default)
    assert again.expires_at_ms == again.updated_at_ms + 7_200_000


def test_namespaces_do_not_see_each_other(store: KeptVideoStore, tmp_path: Path) -> None:
    mine, theirs = keep(store, "a", client_id="x"), keep(store, "a", namespace="theirs", client_id="x")
    assert mine != theirs
    for namespace, own, foreign in ((NAMESPACE, mine, theirs), ("theirs", theirs, mine)):
        assert table_ids(store, namespace) == [own]
        for wanted in (VideoFilter(), VideoFilter(client_id="x"), VideoFilter(sha256=new_video("a").sha256)):
            assert [video.id for video in store.page(namespace, wanted, limit=9).data] == [own]
        assert store.get_many(namespace, [foreign]) == []
        with pytest.raises(NotFound):
            store.get(namespace, foreign)
        with pytest.raises(NotFound):
            store.features(namespace, foreign, FINGERPRINT)
        with pytest.raises(NotFound):
            store.remove(namespace, foreign)
        assert store.usage(namespace)[0] == 1
    with pytest.raises(ValueError, match="namespace"):
        store.table("../theirs", FINGERPRINT)
    folders = {path.relative_to(tmp_path / "videos").parts[0] for path in tmp_path.rglob("*.features")}
    assert folders == {NAMESPACE, "theirs"}


def test_pages(store: KeptVideoStore) -> None:
    ids = [keep(store, str(number), client_id=f"c{number % 2}") for number in range(7)]
    newest_first = sorted(ids, reverse=True)
    seen, after = [], None
    while True:
        page = store.page(NAMESPACE, VideoFilter(), limit=3, after_id=after)
        seen += [video.id for video in page.data]
        if not page.has_more:
            break
        after = page.data[-1].id
    assert seen == newest_first

    def found(**wanted: object) -> list[str]:
        return [video.id for video in store.page(NAMESPACE, VideoFilter(**wanted), limit=100).data]  # type: ignore[arg-type]

    assert found(client_id="c1") == [i for i in newest_first if i in ids[1::2]]
    assert found(client_id="c") == []
    assert found(sha256=new_video("3").sha256) == [ids[3]]
    assert found(sha256=new_video("3").sha256, client_id="c0") == []
    assert found(sha256="nonsense") == []
    times = {video_id: store.get(NAMESPACE, video_id).created_at_ms for video_id in ids}
    low, high = times[ids[2]], times[ids[4]]
    assert found(created_from_ms=low, created_to_ms=high) == [i for i in newest_first if low <= times[i] <= high]
    assert found(created_from_ms=max(times.values()) + 1) == []
    keep(store, "2", fingerprint="encoder-2")
    assert found(missing_fingerprint="encoder-2") == [i for i in newest_first if i != ids[2]]
    assert found(missing_fingerprint=FINGERPRINT) == []
    assert found(missing_fingerprint="encoder-2", sha256=new_video("2").sha256) == []


def test_pages_with_much_metadata_end_early(store: KeptVideoStore) -> None:
    ids = [keep(store, str(number), metadata={"x": "y" * 15_000}) for number in range(150)]
    seen, after, num_pages = [], None, 0
    while True:
        page = store.page(NAMESPACE, VideoFilter(), limit=1000, after_id=after)
        seen += [video.id for video in page.data]
        num_pages += 1
        if not page.has_more:
            break
        after = page.data[-1].id
    assert seen == sorted(ids, reverse=True)
    assert num_pages == 2


def test_vectors_of_one_encoder_have_one_length(store: KeptVideoStore) -> None:
    video_id = keep(store, "a")
    with pytest.raises(ValueError, match="dimensions"):
        store.keep(new_video("b"), FINGERPRINT, segments_of(1), vectors_of("b", 1, DIM + 1))
    assert list(table_of(store)) == [video_id]
    assert len(store.page(NAMESPACE, VideoFilter(), limit=9).data) == 1
    keep(store, "c")


@pytest.mark.parametrize("lost", [redis.WatchError, redis.ConnectionError])
def test_a_lost_answer_of_the_store(
    store: KeptVideoStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: type[Exception]
) -> None:
    """The step is stored, and its writer does not hear of it; redis-py may name either error."""
    keep(store, "before")
    real, num_lost = Pipeline.execute, 0

    def lose(pipe: Pipeline, *arguments: Any, **options: Any) -> Any:
        nonlocal num_lost
        answer = real(pipe, *arguments, **options)
        if num_lost == 0 and pipe.explicit_transaction is False and len(answer) > 3:
            num_lost += 1
            raise lost("the connection broke")
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(Pipeline, "execute", lose)
        if lost is redis.WatchError:
            video_id = keep(store, "a")
        else:
            with pytest.raises(StoreUnavailable):
                keep(store, "a")
            size = used_bytes(tmp_path / "videos")
            video_id = keep(store, "a")
            assert used_bytes(tmp_path / "videos") == size
    assert num_lost == 1
    keep(store, "after")
    table = table_of(store)
    assert len(table) == 3
    np.testing.assert_array_equal(table[video_id], stored_vectors("a"))
    assert store.generations(NAMESPACE) == {FINGERPRINT: 3}


def test_a_store_that_lost_its_guard_takes_no_write(client: redis.Redis, tmp_path: Path) -> None:
    def refuse(_: object) -> None:
        raise StorageFull("refused")

    guarded = KeptVideoStore(client, tmp_path / "videos", VideoLimits(2**40, None), guard=refuse)
    with pytest.raises(StorageFull, match="refused"):
        keep(guarded, "a")
    assert client.keys("*") == []


def test_the_rights_of_a_deployed_user_suffice(server: RedisProcess, store: KeptVideoStore, tmp_path: Path) -> None:
    """Those of docker/valkey-start.sh."""
    (line,) = [
        line for line in (ROOT / "docker/valkey-start.sh").read_text().splitlines() if line.startswith("user vidlex on")
    ]
    rules = [rule for rule in line.split()[3:] if not rule.startswith("#")]
    admin: Any = server.client()
    admin.execute_command("ACL", "SETUSER", "vidlex", "on", ">secret", *rules)
    limited = kept_store(
        redis.Redis(unix_socket_path=str(server.socket), username="vidlex", password="secret"), tmp_path
    )
    video_id, short = keep(limited, "a", client_id="x"), keep(limited, "b", keep_seconds=0.001)
    for wanted in (VideoFilter(client_id="x"), VideoFilter(created_from_ms=0, missing_fingerprint="another")):
        assert video_id in [video.id for video in limited.page(NAMESPACE, wanted, limit=9).data]
    assert set(table_of(limited)) == {video_id, short}
    limited.remove(NAMESPACE, video_id)
    limited.sweep()
    assert table_of(limited) == {}
    assert limited.usage(NAMESPACE) == (0, 0)


def test_many_segments(store: KeptVideoStore) -> None:
    """More than a block of a table, of one video."""
    video_id = store.keep(new_video("long"), FINGERPRINT, segments_of(2500), vectors_of("long", 2500)).id
    keep(store, "b")
    blocks = list(store.table(NAMESPACE, FINGERPRINT).blocks(max_segments=1000))
    assert [len(block.vectors) for block in blocks] == [1000, 1000, 503]
    np.testing.assert_array_equal(table_of(store)[video_id], vectors_of("long", 2500).astype(np.float16))
    assert blocks[2].video_rows.tolist() == [0] * 500 + [1] * 3


def test_what_was_stored_by_a_kept_video_can_be_kept_again(store: KeptVideoStore) -> None:
    """A kept video is a new one too: re-encoding passes it on."""
    kept = store.get(NAMESPACE, keep(store, "a", keep_seconds=3600))
    again = store.keep(replace(kept, keep_seconds=None), "encoder-2", segments_of(3), vectors_of("a2"))
    assert (again.id, again.expires_at_ms) == (kept.id, kept.expires_at_ms)
