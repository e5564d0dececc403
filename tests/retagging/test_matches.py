"""What matches labels: replies of the store that are lost, backfills at the same time, pages of large files."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from support.matches import match_record, match_store, matched_videos
from support.stores import label_id, running_store
from vidlex.service.errors import StoreLost, StoreUnavailable
from vidlex.service.labels.store.redis_keys import STORE_ID_KEY
from vidlex.service.retagging import match_files
from vidlex.service.retagging.match_files import MatchFiles, save
from vidlex.service.retagging.matches import MatchStore

NAMESPACE, LABEL = "team", label_id(1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[redis.Redis]:
    with running_store(tmp_path_factory.mktemp("store")) as client:
        yield client


@pytest.fixture
def client(server: redis.Redis) -> redis.Redis:
    server.flushall()
    return server


@pytest.fixture
def matches(client: redis.Redis, tmp_path: Path) -> MatchStore:
    return match_store(client, tmp_path)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob(f".matches/{NAMESPACE}/*"))


def lose_reply(monkeypatch: pytest.MonkeyPatch, error: redis.RedisError) -> None:
    """Of the next transaction, which is stored."""
    kind: Any = redis.client.Pipeline
    execute, errors = kind._execute_transaction, [error]

    def lost(self: Any, *args: Any) -> Any:
        result = execute(self, *args)
        if errors:
            self.watching = True  # as while the reply to EXEC is read
            raise errors.pop()
        return result

    monkeypatch.setattr(kind, "_execute_transaction", lost)


@pytest.mark.parametrize("is_first", [True, False])
def test_a_transaction_whose_reply_is_lost_with_its_connection_counts(
    matches: MatchStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_first: bool
) -> None:
    if not is_first:
        assert matches.replace(NAMESPACE, match_record(LABEL, "1"), matched_videos(2), before=None)
    before = matches.record(NAMESPACE, LABEL)
    lose_reply(monkeypatch, redis.ConnectionError("Connection closed by server"))
    assert matches.replace(NAMESPACE, match_record(LABEL, "2"), matched_videos(5), before=before)
    found = matches.read(NAMESPACE, LABEL)
    assert found is not None and found[0].job_id == "2" and len(found[1].ids) == 5
    assert files(tmp_path) == [found[0].file] and matches.num_bytes(NAMESPACE) == found[0].num_bytes


def test_a_file_stays_if_it_is_not_known_whether_it_counts(
    matches: MatchStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert matches.replace(NAMESPACE, match_record(LABEL, "1"), matched_videos(2), before=None)
    before = matches.record(NAMESPACE, LABEL)
    lose_reply(monkeypatch, redis.TimeoutError("Timeout reading from socket"))
    with pytest.raises(StoreUnavailable):
        matches.replace(NAMESPACE, match_record(LABEL, "2"), matched_videos(5), before=before)
    found = matches.read(NAMESPACE, LABEL)
    assert found is not None and found[0].job_id == "2" and len(found[1].ids) == 5
    matches.forget(NAMESPACE, [LABEL])
    assert files(tmp_path) == [] and matches.num_bytes(NAMESPACE) == 0


def test_of_two_backfills_at_a_time_one_counts(matches: MatchStore, tmp_path: Path) -> None:
    assert matches.replace(NAMESPACE, match_record(LABEL, "1"), matched_videos(2), before=None)
    assert not matches.replace(NAMESPACE, match_record(LABEL, "2"), matched_videos(5), before=None)
    found = matches.read(NAMESPACE, LABEL)
    assert found is not None and found[0].job_id == "1" and len(found[1].ids) == 2
    assert files(tmp_path) == [found[0].file]


def test_forgetting_counts_what_is_stored_at_that_moment(matches: MatchStore, tmp_path: Path) -> None:
    other = label_id(2)
    for label, num in ((LABEL, 2), (other, 3)):
        assert matches.replace(NAMESPACE, match_record(label, "1"), matched_videos(num), before=None)
    before = matches.record(NAMESPACE, LABEL)
    run = matches._transactions.run

    def replace_first(watched: str, body: Any) -> Any:
        matches._transactions.run = run  # type: ignore[method-assign]
        assert matches.replace(NAMESPACE, match_record(LABEL, "2"), matched_videos(9), before=before)
        return run(watched, body)

    matches._transactions.run = replace_first  # type: ignore[method-assign]
    matches.forget(NAMESPACE, [LABEL, LABEL, label_id(3)])
    left = matches.records(NAMESPACE)
    assert set(left) == {other} and files(tmp_path) == [left[other].file]
    assert matches.num_bytes(NAMESPACE) == left[other].num_bytes


def test_another_store_is_not_written(matches: MatchStore, client: redis.Redis) -> None:
    record = match_record(LABEL, "1")
    assert matches.replace(NAMESPACE, record, matched_videos(2), before=None)
    client.set(STORE_ID_KEY, "another")
    for write in (
        lambda: matches.replace(NAMESPACE, match_record(label_id(2), "1"), matched_videos(2), before=None),
        lambda: matches.mark_told(NAMESPACE, record),
        lambda: matches.forget(NAMESPACE, [LABEL]),
    ):
        with pytest.raises(StoreLost):
            write()
    stored = matches.record(NAMESPACE, LABEL)
    assert stored is not None and not stored.is_told and set(matches.records(NAMESPACE)) == {LABEL}


@pytest.mark.parametrize("change", [None, "gained", "lost"])
def test_pages(tmp_path: Path, change: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(match_files, "_CHUNK", 2)
    videos = matched_videos(7, num_gained=3, num_lost=4)
    save(tmp_path / "file", videos)
    read = MatchFiles().read(tmp_path / "file")
    expected = match_files.texts_of({None: videos.ids, "gained": videos.gained_ids, "lost": videos.lost_ids}[change])
    for limit in (1, 2, 3, 7, 100):
        seen: list[str] = []
        after, has_more = None, True
        while has_more:
            page, has_more = read.page(change, after_id=after, limit=limit)
            assert 0 < len(page) <= limit
            seen += [video.video_id for video in page]
            after = seen[-1]
            assert {video.change for video in page} <= ({change} if change else {None, "gained"})
        assert seen == expected
        assert read.page(change, after_id=after, limit=limit) == ([], False)
    first = read.page(None, after_id=None, limit=1)[0][0]
    assert (first.score, first.start_ms, first.end_ms, first.change) == (0.5, 0, 1, None)


def test_a_page_of_a_large_file_reads_little_of_it(matches: MatchStore, monkeypatch: pytest.MonkeyPatch) -> None:
    num = 100_000
    assert matches.replace(NAMESPACE, match_record(LABEL, "1"), matched_videos(num, num_gained=num), before=None)

    def peak_of_page(change: str | None) -> int:
        tracemalloc.start()
        try:
            found = matches.read(NAMESPACE, LABEL)
            assert found is not None and len(found[1].page(change, after_id=None, limit=1)[0]) == 1
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak_of_page(None) < 500_000
    # The checksum was computed by the first read.
    monkeypatch.setattr(
        "vidlex.service.retagging.match_files.zlib.crc32", lambda content: pytest.fail("the file is read again")
    )
    assert peak_of_page(None) < 200_000
    assert peak_of_page("gained") < 500_000


def test_a_file_that_changes_is_checked_again(tmp_path: Path) -> None:
    path, reader = tmp_path / "file", MatchFiles()
    save(path, matched_videos(9))
    assert len(reader.read(path).ids) == 9
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    other = tmp_path / "other"
    other.write_bytes(content)
    other.replace(path)
    with pytest.raises(ValueError, match="checksum"):
        reader.read(path)
