"""Tables of kept features: snapshots that follow the store, damaged files, an emptied store, upkeep next to readers."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

from support.kept_videos import (
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
from vidlex.service.errors import KeptVideoDamaged, NotFound, StoreUnavailable
from vidlex.service.videos import upkeep
from vidlex.service.videos.pages import VideoFilter
from vidlex.service.videos.parts import writer
from vidlex.service.videos.store import KeptVideoStore


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of four videos, each of which is moved as soon as one of them is removed."""
    monkeypatch.setattr(writer, "MAX_PART_ENTRIES", 4)
    monkeypatch.setattr(upkeep, "_MIN_DEAD_BYTES", 1)
    monkeypatch.setattr(upkeep, "_DEAD_SHARE", 0.01)


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.features"))


def test_a_table_is_what_was_kept_when_it_was_made(store: KeptVideoStore) -> None:
    ids = [keep(store, str(number), count=1 + number % 3) for number in range(10)]
    table = store.table(NAMESPACE, FINGERPRINT)
    before = [(block.vectors.copy(), block.video_rows.tolist()) for block in table.blocks()]
    keep(store, "new")
    keep(store, "3", count=7)  # replaced
    store.remove(NAMESPACE, ids[5])
    after = list(table.blocks())
    assert (table.num_videos, table.num_segments) == (10, 19)
    assert sorted(table.video_ids(range(10))) == sorted(ids)
    for (vectors, rows), block in zip(before, after, strict=True):
        np.testing.assert_array_equal(block.vectors, vectors)
        assert block.video_rows.tolist() == rows
    follower = store.table(NAMESPACE, FINGERPRINT)
    assert follower.revision != table.revision
    assert (follower.num_videos, follower.num_segments) == (10, 19 - 3 + 3 - 1 + 7)


def test_blocks_and_take_agree_and_the_first_are_views_of_the_file(store: KeptVideoStore) -> None:
    for number in range(6):
        keep(store, str(number), count=400)
    store.remove(NAMESPACE, store.page(NAMESPACE, VideoFilter(), limit=9).data[2].id)
    table = store.table(NAMESPACE, FINGERPRINT)
    blocks = list(table.blocks(max_segments=900))
    assert [len(block.vectors) for block in blocks] == [900, 300, 800]  # around the removed one; the rest is short
    assert [np.shares_memory(block.vectors, table.parts[0].rows) for block in blocks] == [True, True, False]
    whole = {
        name: np.concatenate([getattr(block, name) for block in blocks])
        for name in ("vectors", "video_rows", "start_ms", "end_ms")
    }
    assert (np.diff(whole["video_rows"]) >= 0).all()
    wanted = np.array([0, 1, 399, 400, 1199, 1200, 1999])
    taken = table.take(wanted)
    for name, values in whole.items():
        np.testing.assert_array_equal(getattr(taken, name), values[wanted])
    assert len(table.take(np.zeros(0, np.int64)).vectors) == 0
    for wrong in ([-1], [2000], [5, 4]):
        with pytest.raises(IndexError):
            table.take(np.array(wrong))


def test_a_table_of_nothing(store: KeptVideoStore) -> None:
    table = store.table(NAMESPACE, "unknown")
    assert (table.num_videos, table.num_segments, list(table.blocks()), table.video_ids([])) == (0, 0, [], [])
    assert len(table.take(np.zeros(0, np.int64)).vectors) == 0


def test_parts_are_rolled_and_revisions_differ(store: KeptVideoStore, tmp_path: Path, small_parts: None) -> None:
    revisions = [store.table(NAMESPACE, FINGERPRINT).revision]
    for number in range(10):
        keep(store, str(number))
        revisions.append(store.table(NAMESPACE, FINGERPRINT).revision)
    assert len(set(revisions)) == 11
    assert len(files(tmp_path)) == 3
    assert {name: vectors.tobytes() for name, vectors in table_of(store).items()} == {
        video.id: stored_vectors(str(number)).tobytes()
        for number, video in enumerate(reversed(store.page(NAMESPACE, VideoFilter(), limit=99).data))
    }


@pytest.mark.parametrize("damage", ["missing", "short", "other header", "no header", "changed"])
def test_a_damaged_file_concerns_its_own_videos_only(
    store: KeptVideoStore, client: redis.Redis, tmp_path: Path, damage: str
) -> None:
    bad = keep(store, "bad")
    (path,) = files(tmp_path)
    good = keep(kept_store(client, tmp_path), "good")  # another process, so another file
    (other,) = (found for found in files(tmp_path) if found != path)
    table = store.table(NAMESPACE, FINGERPRINT)
    assert table.num_videos == 2
    size = path.stat().st_size
    if damage == "missing":
        path.rename(path.with_suffix(".away"))
    elif damage == "short":
        os.truncate(path, size - 1)
    elif damage == "other header":
        path.write_bytes(other.read_bytes())
    elif damage == "no header":
        path.write_bytes(b"\0" * size)
    else:
        raw = bytearray(path.read_bytes())
        raw[-3] ^= 1
        path.write_bytes(raw)
    for reader in (store, kept_store(client, tmp_path)):
        with pytest.raises(KeptVideoDamaged, match=bad) as error:
            reader.features(NAMESPACE, bad, FINGERPRINT)
        assert str(tmp_path) not in str(error.value)
        features = reader.features(NAMESPACE, good, FINGERPRINT)
        assert features is not None
        np.testing.assert_array_equal(features.vectors, stored_vectors("good"))
        assert reader.get(NAMESPACE, bad).id == bad
        if damage in ("missing", "short"):
            assert list(table_of(reader)) == [good]
            page = reader.page(NAMESPACE, VideoFilter(missing_fingerprint=FINGERPRINT), limit=9)
            assert [video.id for video in page.data] == [bad]
        if damage != "changed":
            assert list(table_of(kept_store(client, tmp_path))) == [good]
    assert keep(store, "bad") == bad
    np.testing.assert_array_equal(table_of(store)[bad], stored_vectors("bad"))
    store.remove(NAMESPACE, bad)
    assert list(table_of(store)) == [good]


def test_a_file_that_comes_back_is_read_again(store: KeptVideoStore, tmp_path: Path) -> None:
    video_id = keep(store, "a")
    (path,) = files(tmp_path)
    path.rename(path.with_suffix(".away"))
    assert store.table(NAMESPACE, FINGERPRINT).num_videos == 0
    path.with_suffix(".away").rename(path)
    assert list(table_of(store)) == [video_id]


def test_an_emptied_store_shows_nothing_and_a_restored_one_what_it_knew(
    store: KeptVideoStore, client: Any, tmp_path: Path
) -> None:
    first = keep(store, "first")
    gone = keep(store, "gone")
    backup = {key: client.dump(key) for key in client.keys("*")}
    later = keep(store, "later")  # appended to the file, and lost with the store
    store.remove(NAMESPACE, gone)
    before = store.table(NAMESPACE, FINGERPRINT)
    client.flushall()
    for reader in (store, kept_store(client, tmp_path)):
        assert reader.table(NAMESPACE, FINGERPRINT).num_videos == 0
        with pytest.raises(NotFound):
            reader.features(NAMESPACE, first, FINGERPRINT)
    # The same process goes on with the empty store.
    fresh = keep(store, "fresh")
    assert list(table_of(store)) == [fresh]
    assert fresh != first
    assert store.sweep().removed_files == 0  # files of the other history stay

    client.flushall()
    for key, value in backup.items():
        client.restore(key, 0, value)
    for reader in (store, kept_store(client, tmp_path)):
        assert set(table_of(reader)) == {first, gone}
        np.testing.assert_array_equal(table_of(reader)[first], stored_vectors("first"))
    again = keep(store, "again")  # must not overwrite, or be taken for, the rows of `later`
    for reader in (store, kept_store(client, tmp_path)):
        found = table_of(reader)
        assert set(found) == {first, gone, again}
        np.testing.assert_array_equal(found[again], stored_vectors("again"))
    assert len(list(before.blocks())) == 1
    assert later not in found


def test_a_restored_store_with_as_many_removals_as_before(store: KeptVideoStore, client: Any) -> None:
    """The number of steps and removals is the same as what was read before; the removals are not."""
    ids = [keep(store, str(number)) for number in range(3)]
    backup = {key: client.dump(key) for key in client.keys("*")}
    store.remove(NAMESPACE, ids[0])
    assert set(table_of(store)) == {ids[1], ids[2]}
    client.flushall()
    for key, value in backup.items():
        client.restore(key, 0, value)
    store.remove(NAMESPACE, ids[2])
    assert set(table_of(store)) == {ids[0], ids[1]}


def test_upkeep_gives_space_back_next_to_readers(
    store: KeptVideoStore, client: redis.Redis, tmp_path: Path, small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = {str(number): keep(store, str(number)) for number in range(12)}
    reader = kept_store(client, tmp_path)
    table = reader.table(NAMESPACE, FINGERPRINT)
    old_blocks = list(table.blocks())
    old = [block.vectors.copy() for block in old_blocks]
    before = files(tmp_path)
    for name in ("0", "5", "9"):
        store.remove(NAMESPACE, ids.pop(name))
    swept = store.sweep()
    assert (swept.moved, swept.dropped_parts, swept.removed_files) == (9, 3, 0)
    expected = {video_id: stored_vectors(name).tobytes() for name, video_id in ids.items()}
    for found in (store, reader, kept_store(client, tmp_path)):
        assert {video_id: vectors.tobytes() for video_id, vectors in table_of(found).items()} == expected
        for name, video_id in ids.items():
            features = found.features(NAMESPACE, video_id, FINGERPRINT)
            assert features is not None
            np.testing.assert_array_equal(features.vectors, stored_vectors(name))
    assert set(before) < set(files(tmp_path))  # for those who are about to open them

    monkeypatch.setattr(upkeep, "RETIRED_SECONDS", -60.0)
    assert store.sweep().removed_files == 3
    assert not set(before) & set(files(tmp_path))
    for block, vectors in zip(table.blocks(), old, strict=True):  # and those who have opened them
        np.testing.assert_array_equal(block.vectors, vectors)
    assert keep(store, "after") in table_of(reader)
    assert store.sweep() == upkeep.Swept()


def test_upkeep_forgets_what_nothing_is_left_of(
    store: KeptVideoStore, client: redis.Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    video_id = keep(store, "a")
    store.remove(NAMESPACE, video_id)
    monkeypatch.setattr(upkeep, "RETIRED_SECONDS", -60.0)
    assert store.sweep().dropped_parts == 1
    store.sweep()
    assert files(tmp_path) == []
    left = {key.decode().rpartition(":")[2] for key in client.keys("*")}  # type: ignore[union-attr]
    assert left <= {"changes", "history", "bytes"}
    keep(store, "b")
    assert len(table_of(store)) == 1


def test_many_small_parts_become_one(store: KeptVideoStore, client: redis.Redis, tmp_path: Path) -> None:
    ids = {keep(kept_store(client, tmp_path), str(number)) for number in range(10)}
    assert len(files(tmp_path)) == 10
    swept = store.sweep()
    assert (swept.moved, swept.dropped_parts) == (10, 10)
    assert set(table_of(store)) == ids
    assert len(store.table(NAMESPACE, FINGERPRINT).parts) == 1


def test_damaged_rows_do_not_stop_upkeep_and_are_not_dropped(
    store: KeptVideoStore, tmp_path: Path, small_parts: None
) -> None:
    ids = [keep(store, str(number)) for number in range(4)]
    (path,) = files(tmp_path)
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 1  # of the last video
    path.write_bytes(raw)
    store.remove(NAMESPACE, ids[0])
    swept = store.sweep()
    assert (swept.moved, swept.dropped_parts) == (2, 0)
    for video_id, name in zip(ids[1:3], "12", strict=True):
        np.testing.assert_array_equal(table_of(store)[video_id], stored_vectors(name))
    with pytest.raises(KeptVideoDamaged):
        store.features(NAMESPACE, ids[3], FINGERPRINT)
    assert store.sweep() == upkeep.Swept()  # it is not tried again and again
    store.remove(NAMESPACE, ids[3])
    assert set(table_of(store)) == set(ids[1:3])


def test_files_of_crashed_processes_go_after_a_day(store: KeptVideoStore, tmp_path: Path) -> None:
    video_id = keep(store, "a")
    (path,) = files(tmp_path)
    young, old = path.with_name(f"{'a' * 16}.features"), path.with_name(f"{'b' * 16}.features")
    for orphan in (young, old):
        orphan.write_bytes(path.read_bytes())
    yesterday = time.time() - 1.1 * upkeep.ORPHAN_SECONDS
    for aged in (old, path):
        os.utime(aged, (yesterday, yesterday))
    assert store.sweep().removed_files == 1
    assert files(tmp_path) == sorted([path, young])
    assert list(table_of(store)) == [video_id]


def test_one_process_tidies_up_at_a_time(store: KeptVideoStore, client: redis.Redis) -> None:
    keep(store, "a", keep_seconds=0.001)
    client.set(f"vidlex-videos:{{{NAMESPACE}}}:upkeep", "another", px=60_000)
    time.sleep(0.01)
    assert store.sweep().expired == 0
    client.delete(f"vidlex-videos:{{{NAMESPACE}}}:upkeep")
    assert store.sweep().expired == 1


def test_a_sealed_part_is_not_appended_to(store: KeptVideoStore, client: redis.Redis, tmp_path: Path) -> None:
    """The process that writes it has not heard of it."""
    for number in range(9):
        keep(kept_store(client, tmp_path), f"other {number}")
    keep(store, "a")
    kept_store(client, tmp_path).sweep()
    mine = keep(store, "b")
    np.testing.assert_array_equal(table_of(store)[mine], stored_vectors("b"))
    assert len(table_of(kept_store(client, tmp_path))) == 11


def test_rows_of_an_unstored_step_are_not_seen(store: KeptVideoStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("the process dies here")

    keep(store, "a")
    space = store._space(NAMESPACE)
    with monkeypatch.context() as patch:
        patch.setattr(space.steps, "run", fail)
        with pytest.raises(RuntimeError):
            keep(store, "b")
    assert len(table_of(store)) == 1
    third = keep(store, "c")
    assert len(table_of(store)) == 2
    np.testing.assert_array_equal(table_of(store)[third], stored_vectors("c"))
    assert store.keep(new_video("b"), FINGERPRINT, segments_of(1), vectors_of("b", 1)).id in table_of(store)


def test_another_folder_is_not_written_to(store: KeptVideoStore, client: redis.Redis, tmp_path: Path) -> None:
    """A replica or worker whose VIDLEX_VIDEOS_DIR is not the shared one."""
    video_id = keep(store, "a")
    other = kept_store(client, tmp_path / "other")
    with pytest.raises(StoreUnavailable, match="VIDLEX_VIDEOS_DIR") as error:
        keep(other, "b")
    assert str(tmp_path) not in str(error.value)
    assert not files(tmp_path / "other")
    with pytest.raises(KeptVideoDamaged):
        other.features(NAMESPACE, video_id, FINGERPRINT)
    assert list(table_of(store)) == [video_id]


def test_replicas_share_the_work_of_tidying_up(store: KeptVideoStore, client: redis.Redis, tmp_path: Path) -> None:
    keep(store, "a")
    store.sweep(at_most_every_seconds=60)
    keep(store, "b", keep_seconds=0.001)
    time.sleep(0.01)
    other = kept_store(client, tmp_path)
    assert other.sweep(at_most_every_seconds=60).expired == 0
    client.delete(f"vidlex-videos:{{{NAMESPACE}}}:upkeep")  # a minute later
    assert other.sweep(at_most_every_seconds=60).expired == 1
