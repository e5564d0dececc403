"""OUT in every format: rows, order, resume, what is refused."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import lance
import pandas as pd
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.bulk_runs import FakeEngine, comparable, tag_into, write_files
from vidlex.service.bulk import formats, output, target
from vidlex.service.bulk.options import TagOptions
from vidlex.service.bulk.output import TagOutput
from vidlex.service.bulk.results import (
    Receipt,
    Stretch,
    TagFailure,
    TaggedLabel,
    TaggedSegment,
    TagResult,
    VideoFacts,
)
from vidlex.service.bulk.rows import Row, result_of, row_of, rows_of, schema, table_of
from vidlex.service.bulk.target import OutputError

NAMES = ("tags.parquet", "tags.jsonl", "tags.csv", "tags.lance", "tags/")
WITH_SEGMENTS = TagOptions(segments=True, features=True)


def rows(out: Path | str) -> list[Row]:
    """As written: read by ``formats``."""
    path = Path(str(out).rstrip("/"))
    kind = formats.SUFFIXES[path.suffix]
    return [row for table in formats.read(kind, path) for row in rows_of(table)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_files(tmp_path / "videos", 50)


@pytest.mark.parametrize("name", NAMES)
def test_one_row_per_video_in_the_order_of_the_sources(tmp_path: Path, folder: Path, name: str) -> None:
    tag_into(f"{tmp_path}/{name}", [folder], FakeEngine(), options=WITH_SEGMENTS, checkpoint_rows=7)
    found = rows(tmp_path / name)
    assert [row["uri"] for row in found] == sorted(map(str, folder.iterdir()))
    assert [i for i, row in enumerate(found) if row["error_code"]] == [9, 19, 29, 39, 49]
    reference = f"{tmp_path}/reference.parquet"
    tag_into(reference, [folder], FakeEngine(), options=WITH_SEGMENTS)
    assert comparable(found) == comparable(rows(reference))
    stem, suffix = Path(name).stem, Path(name).suffix
    assert {p.name for p in tmp_path.iterdir() if p.name.startswith((".", "tags"))} == {
        name.rstrip("/"),
        f"{stem}.segments{suffix}",
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_finished_file_is_continued(tmp_path: Path, folder: Path, name: str) -> None:
    out = f"{tmp_path}/{name}"
    tag_into(out, [folder], FakeEngine(), options=WITH_SEGMENTS)
    write_files(folder / "more", 5, prefix="more ")
    engine = FakeEngine()
    tag_into(out, [folder], engine, options=WITH_SEGMENTS, resume=True)
    assert sorted(engine.tagged) == sorted(map(str, (folder / "more").iterdir()))
    reference = f"{tmp_path}/reference.parquet"
    tag_into(reference, [folder], FakeEngine(), options=WITH_SEGMENTS)
    assert comparable(rows(out)) == comparable(rows(reference))


def test_an_interrupted_run_is_continued(tmp_path: Path, folder: Path) -> None:
    out = tmp_path / "tags.parquet"
    first = FakeEngine()
    tag_into(out, [folder], first, stop_after=20)
    assert not out.exists() and (tmp_path / ".tags.parquet.parts").is_dir()
    second = FakeEngine()
    tag_into(out, [folder], second, resume=True)
    num_contents = len({path.read_bytes() for path in folder.iterdir()})
    assert len(second.tagged) < num_contents and len(rows(out)) == 50
    reference = tmp_path / "reference.parquet"
    tag_into(reference, [folder], FakeEngine())
    assert comparable(rows(out)) == comparable(rows(reference))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["reference.parquet", "tags.parquet", "videos"]


def test_a_copy_far_behind_is_known(tmp_path: Path) -> None:
    """In the part that is not written yet, as rows and as a chunk, and in one that is."""
    folder = write_files(tmp_path / "v", 2 * output.CHUNK_ROWS + 20)
    for path in sorted(folder.iterdir()):
        (folder / f"x{path.name}").write_bytes(path.read_bytes())
    for name, checkpoint_rows in (("one.parquet", 10_000), ("many.parquet", 30)):
        engine = FakeEngine(concurrency=1)
        tag_into(tmp_path / name, [folder], engine, checkpoint_rows=checkpoint_rows)
        good = [path for path in folder.iterdir() if not path.read_bytes().startswith(b"broken")]
        tagged = [uri for uri in engine.tagged if not Path(uri).read_bytes().startswith(b"broken")]
        assert len(tagged) == len({path.read_bytes() for path in good})
        found = rows(tmp_path / name)
        half = len(found) // 2
        assert [row["labels"] for row in found[:half]] == [row["labels"] for row in found[half:]]


def test_moved_and_copied_files_are_known_by_their_content(tmp_path: Path, folder: Path) -> None:
    out = tmp_path / "tags.parquet"
    tag_into(out, [folder], FakeEngine())
    folder.rename(tmp_path / "moved")
    for path in (tmp_path / "moved").iterdir():
        os.utime(path, (5, 5))
    engine = FakeEngine()
    tag_into(out, [tmp_path / "moved"], engine, resume=True)
    assert engine.tagged == [] and rows(out)[0]["uri"] == f"{tmp_path}/moved/00000.mp4"


def test_a_changed_file_is_tagged_again(tmp_path: Path, folder: Path) -> None:
    out = tmp_path / "tags.parquet"
    tag_into(out, [folder], FakeEngine())
    (folder / "00003.mp4").write_bytes(b"changed")
    engine = FakeEngine()
    tag_into(out, [folder], engine, resume=True)
    assert engine.tagged == [str(folder / "00003.mp4")]


@pytest.mark.parametrize("change", ["vocabulary", "options"])
def test_other_labels_or_another_sampling_are_another_result(tmp_path: Path, folder: Path, change: str) -> None:
    out = tmp_path / "tags.parquet"
    tag_into(out, [folder], FakeEngine())
    engine = FakeEngine(vocabulary="v2" if change == "vocabulary" else "v1")
    options = TagOptions(num_frames=4) if change == "options" else TagOptions()
    tag_into(out, [folder], engine, options=options, resume=True)
    assert len(engine.tagged) == len({path.read_bytes() for path in folder.iterdir()})


def test_failures_are_tried_again_on_request_only(tmp_path: Path, folder: Path) -> None:
    out = tmp_path / "tags.parquet"
    broken = sorted(folder.iterdir())[9::10]
    (tmp_path / "list.txt").write_text(f"{folder}/nothing.mp4\n")
    sources = [folder, tmp_path / "list.txt"]
    tag_into(out, sources, FakeEngine())
    assert rows(out)[-1]["error_code"] == "file_not_readable"
    engine = FakeEngine()
    tag_into(out, sources, engine, resume=True)
    assert engine.tagged == [] and sum(row["error_code"] is not None for row in rows(out)) == 6
    tag_into(out, sources, engine, resume=True, retry_failed=True)
    assert sorted(engine.tagged) == sorted(map(str, broken))
    (folder / "nothing.mp4").write_bytes(b"now there")
    tag_into(out, sources, engine, resume=True)
    assert rows(out)[-1]["error_code"] is None


def test_rows_are_kept_before_the_end(tmp_path: Path, folder: Path) -> None:
    """The state that kill -9 leaves: only parts that were renamed count."""
    engine = FakeEngine()
    out = TagOutput(str(tmp_path / "tags.parquet"), checkpoint_rows=10)
    out.start(engine.identity, TagOptions())
    parts = tmp_path / ".tags.parquet.parts"
    for tagged in tag_into(tmp_path / "other.parquet", [folder], engine)[:25]:
        out.add(tagged)
    assert sorted(p.name for p in parts.iterdir()) == ["lock", *(f"part-0001-{i:08}.parquet" for i in range(2))]
    (parts / ".part-0001-00000002.parquet.new").write_bytes(b"torn")
    assert out._lock is not None
    out._lock.close()
    with TagOutputContext(tmp_path / "tags.parquet", resume=True) as again:
        assert again.start(engine.identity, TagOptions()) == 20
    out.close()


class TagOutputContext:
    def __init__(self, path: Path | str, **changes: Any) -> None:
        self.output = TagOutput(str(path), **changes)

    def __enter__(self) -> TagOutput:
        return self.output

    def __exit__(self, *_: object) -> None:
        self.output.close()


def test_what_exists_is_not_overwritten(tmp_path: Path, folder: Path) -> None:
    out = tmp_path / "tags.parquet"
    tag_into(out, [folder], FakeEngine(), stop_after=5)
    with pytest.raises(OutputError, match=r"was not finished.*--resume.*--overwrite"):
        TagOutput(str(out))
    tag_into(out, [folder], FakeEngine(), overwrite=True)
    before = out.read_bytes()
    with pytest.raises(OutputError, match="exists"):
        TagOutput(str(out))
    assert out.read_bytes() == before and not (tmp_path / ".tags.parquet.parts").exists()
    engine = FakeEngine()
    tag_into(out, [folder], engine, overwrite=True)
    assert engine.tagged and len(rows(out)) == 50


def test_a_table_of_segments_is_not_overwritten_either(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "tags.segments.parquet").write_text("other")
    with pytest.raises(OutputError, match=r"tags.segments.parquet exists"):
        tag_into(tmp_path / "tags.parquet", [folder], FakeEngine(), options=WITH_SEGMENTS)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tags.segments.parquet", "videos"]


def test_two_runs_do_not_write_to_one_file(tmp_path: Path) -> None:
    with TagOutputContext(tmp_path / "tags.parquet"), pytest.raises(OutputError, match="another run"):
        TagOutput(str(tmp_path / "tags.parquet"))
    TagOutput(str(tmp_path / "tags.parquet")).close()
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target, "find_spec", lambda name: None)
    with pytest.raises(OutputError, match="needs pylance: pip install pylance"):
        TagOutput(str(tmp_path / "tags.lance"))


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("tags.txt", "OUT ends in .parquet"),
        ("others/", "a folder of other files"),
        ("file/tags.parquet", "cannot be written"),
        ("file/", "is a file, not a folder"),
        ("s3://bucket/tags.lance", "this machine only"),
        ("s3://bucket", "name a file or a folder"),
        ("https://host/tags.parquet", "https:// cannot be written"),
        ("ftp://host/tags.parquet", "ftp:// cannot be written"),
    ],
)
def test_what_cannot_be_written_is_refused_at_the_start(tmp_path: Path, name: str, problem: str) -> None:
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "x.txt").write_text("x")
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match=problem):
        TagOutput(name if "://" in name else f"{tmp_path}/{name}")


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "csv"])
def test_a_file_of_something_else_is_not_continued(tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"x.{suffix}"
    pd.DataFrame({"a": [1]}).to_parquet(out) if suffix == "parquet" else out.write_text("a\n1\n")
    with TagOutputContext(out, resume=True) as again, pytest.raises(OutputError, match="cannot be continued"):
        again.start(FakeEngine().identity, TagOptions())
    assert out.exists()


def test_rows_that_come_far_apart_are_merged_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "GROUP_ROWS", 10)
    folder = write_files(tmp_path / "v", 100)
    tagged = tag_into(tmp_path / "reference.parquet", [folder], FakeEngine())
    shuffled = sorted(tagged, key=lambda t: (t.order * 37) % 100)
    with TagOutputContext(tmp_path / "tags.parquet", checkpoint_rows=3) as out:
        out.start(FakeEngine().identity, TagOptions())
        for item in shuffled:
            out.add(item)
        out.finish()
    assert [row["uri"] for row in rows(tmp_path / "tags.parquet")] == sorted(map(str, folder.iterdir()))


def test_a_run_without_videos_is_an_empty_table(tmp_path: Path) -> None:
    for name in NAMES:
        with TagOutputContext(f"{tmp_path}/{name}") as out:
            out.start(FakeEngine().identity, TagOptions())
            out.finish()
    assert pq.read_table(tmp_path / "tags.parquet").schema.names == schema().names


def test_the_readers_that_users_have(tmp_path: Path, folder: Path) -> None:
    for name in NAMES:
        tag_into(f"{tmp_path}/{name}", [folder], FakeEngine(), options=WITH_SEGMENTS)
    frame = pd.read_parquet(tmp_path / "tags.parquet")
    assert len(frame) == 50 and frame.error_code.notna().sum() == 5
    matched = frame[frame.error_code.isna()].explode("matched")["matched"].dropna()
    assert set(matched) <= {"label 0", "label 1"} and len(matched)
    assert len(ds.dataset(tmp_path / "tags").to_table()) == 50
    assert lance.dataset(str(tmp_path / "tags.lance")).count_rows() == 50
    assert lance.dataset(str(tmp_path / "tags.segments.lance")).count_rows() == 45
    segments = pd.read_json(tmp_path / "tags.segments.jsonl", lines=True)
    assert list(segments.features.map(len).unique()) == [4] and len(segments) == 45
    with (tmp_path / "tags.csv").open(newline="") as file:
        first = next(csv.DictReader(file))
    assert json.loads(first["labels"])[0]["name"] == "label 0" and first["width"] == "160"


FINITE = st.floats(0, 1)
WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
NAME = WORDS.filter(bool)
LABELS = st.lists(
    st.builds(
        TaggedLabel,
        st.none() | NAME,
        NAME,
        FINITE,
        FINITE,
        st.booleans(),
        st.lists(st.builds(Stretch, *[st.integers(0, 2**40)] * 3, FINITE), max_size=2),
    ),
    max_size=3,
)
DONE = st.builds(
    TagResult,
    NAME,
    st.just("a" * 64),
    st.none() | NAME,
    st.just("b" * 64),
    st.integers(0, 2**50),
    st.builds(VideoFacts, *[st.integers(0, 2**30)] * 4, st.floats(0, 1000), NAME),
    LABELS,
    st.lists(
        st.builds(
            TaggedSegment,
            st.integers(0, 9),
            st.integers(0, 9),
            LABELS,
            st.none() | st.lists(st.floats(0, 1, width=32), min_size=1, max_size=3),
        ),
        max_size=2,
    ),
    st.builds(
        Receipt, NAME, NAME, NAME, NAME, st.none() | NAME, NAME, st.none() | st.integers(0, 9), NAME, *[st.just(3)] * 2
    ),
    st.lists(st.tuples(NAME, NAME), max_size=2),
    st.dictionaries(st.sampled_from(["fetch", "decode", "match"]), FINITE),
    st.none(),
    st.dictionaries(NAME, WORDS, max_size=2),
)
FAILED = st.builds(TagResult, NAME, failure=st.builds(TagFailure, NAME, WORDS))


@pytest.mark.parametrize("kind", ["table", "parquet", "jsonl", "csv"])
@settings(max_examples=40)
@given(results=st.lists(DONE | FAILED, max_size=4))
def test_a_result_is_the_same_after_a_file(
    tmp_path_factory: pytest.TempPathFactory, kind: Any, results: list[TagResult]
) -> None:
    table = table_of(row_of(result, "1:2") for result in results)
    if kind != "table":
        path = tmp_path_factory.mktemp("rows") / "file"
        formats.write(kind, path, [table], schema())
        found = [row for read in formats.read(kind, path) for row in rows_of(read)]
    else:
        found = list(rows_of(table))
    assert [row_of(result_of(row)) for row in found] == [row_of(result) for result in results]
