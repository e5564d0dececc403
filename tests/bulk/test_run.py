"""The loop over an engine: order, concurrency, equal content, failures, the end of an engine."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.bulk_runs import BROKEN, FakeEngine, tag_into, write_files
from vidlex.service.bulk import run as run_module
from vidlex.service.bulk.engine import EngineUnavailable, LocalFile
from vidlex.service.bulk.fetch import Fetcher
from vidlex.service.bulk.lists import SourceError
from vidlex.service.bulk.options import TagOptions
from vidlex.service.bulk.results import result_id_of
from vidlex.service.bulk.run import run, run_numbered
from vidlex.service.bulk.source import VideoSource
from vidlex.service.bulk.sources import Sources

OPTIONS = TagOptions()


def sources_of(folder: Path) -> Sources:
    return Sources([str(folder)])


def test_results_come_in_order_and_files_are_tagged_concurrently(tmp_path: Path) -> None:
    """The first file waits until two others are being tagged: it is not last to be given, and nothing deadlocks."""
    write_files(tmp_path, 20)
    others = threading.Semaphore(0)

    def before(file: LocalFile) -> None:
        if file.uri.endswith("00000.mp4"):
            assert others.acquire(timeout=30) and others.acquire(timeout=30)
        else:
            others.release()

    engine = FakeEngine(before=before)
    found = list(run(sources_of(tmp_path), engine, OPTIONS))
    assert [result.uri for result in found] == [source.uri for source in sources_of(tmp_path)]
    assert min(Path(uri).name for uri in engine.tagged) == "00000.mp4"


def test_results_as_completed_do_not_wait_for_a_slow_one(tmp_path: Path) -> None:
    write_files(tmp_path, 30)
    last = threading.Event()

    def before(file: LocalFile) -> None:
        if file.uri.endswith("00000.mp4"):
            assert last.wait(30)

    found = []
    for result in run(sources_of(tmp_path), FakeEngine(before=before), OPTIONS, ordered=False):
        found.append(result.uri)
        if len(found) == 29:
            last.set()
    assert found[-1].endswith("00000.mp4") and len(set(found)) == 30


def test_a_slow_file_does_not_let_the_others_run_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "MAX_HELD", 10)
    write_files(tmp_path, 200)
    asked = 0
    slow = threading.Event()

    def sources() -> Iterator[VideoSource]:
        nonlocal asked
        for source in sources_of(tmp_path):
            asked += 1
            yield source

    def before(file: LocalFile) -> None:
        if file.uri.endswith("00000.mp4"):
            assert slow.wait(30)

    results = run(sources(), FakeEngine(before=before), OPTIONS)
    timer = threading.Timer(0.5, slow.set)
    timer.start()
    next(results)
    assert asked <= 10 + 2 * 3 + 1
    assert len(list(results)) == 199 and asked == 200


def test_every_result_has_content_and_an_id(tmp_path: Path) -> None:
    write_files(tmp_path, 10)
    engine = FakeEngine()
    results = list(run(sources_of(tmp_path), engine, OPTIONS))
    for result in results:
        assert result.sha256 is not None and result.num_bytes == Path(result.uri).stat().st_size
        assert result.result_id == result_id_of(result.sha256, "fake-1", "v1", OPTIONS.digest_text)
        assert result.failure is not None or result.timings_ms["fetch"] >= 0
    assert [result.failure is not None for result in results] == [False] * 9 + [True]


def test_equal_content_is_tagged_once_and_keeps_its_own_names(tmp_path: Path) -> None:
    write_files(tmp_path, 40)
    engine = FakeEngine()
    listed = [VideoSource(source.uri, f"id {i}", {"row": str(i)}) for i, source in enumerate(sources_of(tmp_path))]
    results = list(run(listed, engine, OPTIONS))
    contents = {Path(source.uri).read_bytes() for source in listed}
    assert len(engine.tagged) == len(contents) < 40
    assert [(r.uri, r.client_id, r.metadata) for r in results] == [(s.uri, s.client_id, s.metadata) for s in listed]
    assert results[5].labels == results[6].labels and results[5].result_id == results[6].result_id


def test_files_that_cannot_be_read_are_results(tmp_path: Path) -> None:
    (tmp_path / "good.mp4").write_bytes(b"1")
    (tmp_path / "folder.mp4").mkdir()
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "large.mp4").write_bytes(b"x" * 11)
    (tmp_path / "loop.mp4").symlink_to(tmp_path / "loop.mp4")
    names = ("good", "nothing", "folder", "pipe", "large", "loop", "nul\0")
    listed = [VideoSource(f"{tmp_path}/{name}.mp4") for name in names]
    results = list(run(listed, FakeEngine(), OPTIONS, fetcher=Fetcher(max_file_bytes=10)))
    codes = [result.failure.code if result.failure else None for result in results]
    assert codes == [None, *["file_not_readable"] * 3, "file_too_large", *["file_not_readable"] * 2]
    for result in results[1:]:
        assert result.failure is not None and str(tmp_path) not in result.failure.detail


def test_a_file_that_changes_while_it_is_tagged_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"1")

    def tag_then_change(file: LocalFile) -> None:
        os.utime(file.path, (1, 1))

    (result,) = run(sources_of(tmp_path), FakeEngine(before=tag_then_change), OPTIONS)
    assert result.failure is not None and result.failure.code == "file_changed"


def test_a_fault_of_the_engine_costs_one_row(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_files(tmp_path, 8)

    def before(file: LocalFile) -> None:
        if file.uri.endswith("00003.mp4"):
            raise RuntimeError(f"secret {file.path}")

    results = list(run(sources_of(tmp_path), FakeEngine(before=before), OPTIONS))
    assert [i for i, result in enumerate(results) if result.failure] == [3]
    assert results[3].failure is not None and results[3].failure.code == "internal_error"
    assert "secret" not in results[3].failure.detail and "tagging failed" in caplog.text


def test_an_engine_that_ends_keeps_what_is_done(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "v", 200)
    num_tagged = threading.Semaphore(50)

    def before(file: LocalFile) -> None:
        if not num_tagged.acquire(blocking=False):
            raise EngineUnavailable("The service is gone")

    with pytest.raises(EngineUnavailable):
        tag_into(tmp_path / "out.parquet", [folder], FakeEngine(before=before))
    assert not (tmp_path / "out.parquet").exists()
    engine = FakeEngine()
    resumed = tag_into(tmp_path / "out.parquet", [folder], engine, resume=True)
    num_contents = len({path.read_bytes() for path in folder.iterdir()})
    assert len(resumed) == 200 and len(engine.tagged) == num_contents - 50


def test_closing_ends_the_threads_and_removes_nothing_else(tmp_path: Path) -> None:
    write_files(tmp_path, 100)
    results = run(sources_of(tmp_path), FakeEngine(), OPTIONS)
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert not [t for t in threading.enumerate() if t.name.startswith(("fetch", "tag"))]


def test_cancelling_ends_the_run_without_false_failures(tmp_path: Path) -> None:
    write_files(tmp_path, 100)
    cancelled = threading.Event()
    found = []
    for tagged in run_numbered(sources_of(tmp_path), FakeEngine(), OPTIONS, cancelled=cancelled):
        found.append(tagged)
        cancelled.set()
    assert 0 < len(found) < 100
    for tagged in found:
        is_broken = Path(tagged.result.uri).read_bytes().startswith(BROKEN)
        assert (tagged.result.failure is not None) == is_broken


def test_sources_that_fail_in_the_middle_do_so_after_the_results(tmp_path: Path) -> None:
    write_files(tmp_path, 5)

    def sources() -> Iterator[VideoSource]:
        yield from sources_of(tmp_path)
        raise SourceError("a folder disappeared")

    found = []
    with pytest.raises(SourceError):
        for result in run(sources(), FakeEngine(), OPTIONS):
            found.append(result)
    assert len(found) == 5
