"""Lists of videos: every format, and what is wrong with them, by file and line."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidlex.service.bulk import lists
from vidlex.service.bulk.lists import SourceError, read_list
from vidlex.service.bulk.source import VideoSource
from vidlex.service.bulk.sources import Sources

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
NAME = st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF, exclude_characters="/:"), min_size=1, max_size=20)
ROWS = st.lists(st.fixed_dictionaries({"uri": NAME, "id": NAME, "note": TEXT}), min_size=1, max_size=8)
SUFFIXES = ("csv", "jsonl", "parquet")


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
@given(rows=ROWS)
def test_every_row_is_a_source(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, rows: list[dict[str, str]]
) -> None:
    path = write(tmp_path_factory.mktemp("list") / f"list.{suffix}", rows)
    names = [row["uri"] for row in rows]
    if any(name.strip() in (".", "..") or not name.strip() for name in names):
        return
    found = list(read_list(str(path)))
    assert [source.uri for source in found] == [f"{path.parent}/{name.strip()}" for name in names]
    assert [source.client_id for source in found] == [row["id"] for row in rows]
    assert [source.metadata for source in found] == [{"note": row["note"]} for row in rows]


@given(content=st.binary(max_size=200), suffix=st.sampled_from((*SUFFIXES, "txt")))
def test_any_bytes_are_sources_or_an_error_with_file_and_line(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, suffix: str
) -> None:
    path = tmp_path_factory.mktemp("list") / f"list.{suffix}"
    path.write_bytes(content)
    try:
        found = list(read_list(str(path)))
    except SourceError as error:
        assert str(error).startswith(f"{path}:")
    else:
        for source in found:
            source.uri.encode()
            assert source.uri


def test_a_text_list(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("\ufeffa.mp4\r\n\n s3://bucket/b c.mp4 \n/absolute/d.mp4\nfile:///e%20f.mp4\n../g.mp4\n# h.mp4\n")
    assert [source.uri for source in read_list(str(path))] == [
        f"{tmp_path}/a.mp4",
        "s3://bucket/b c.mp4",
        "/absolute/d.mp4",
        "/e f.mp4",
        f"{tmp_path.parent}/g.mp4",
        f"{tmp_path}/# h.mp4",
    ]


def test_other_columns_are_metadata(tmp_path: Path) -> None:
    row = {"path": "a.mp4", "id": 7, "tags": ["x", "y"], "n": 1.5, "none": None, "ok": True}
    for suffix in ("jsonl", "parquet"):
        (source,) = read_list(str(write(tmp_path / f"list.{suffix}", [row])))
        metadata = {"tags": '["x","y"]', "n": "1.5", "ok": "true"}
        assert source == VideoSource(f"{tmp_path}/a.mp4", "7", metadata)


def test_the_first_known_column_is_the_address(tmp_path: Path) -> None:
    (source,) = read_list(str(write(tmp_path / "list.csv", [{"video": "v.mp4", "uri": "u.mp4"}])))
    assert (source.uri, source.metadata) == (f"{tmp_path}/u.mp4", {"video": "v.mp4"})


BAD = {
    "columns.csv": ("name,size\na.mp4,1\n", ":1: no column uri, path or video; there are name, size"),
    "fields.csv": ("uri,id\na.mp4,1\nb.mp4\n", ":3: 1 fields where the header has 2"),
    "twice.csv": ("uri,uri\na,b\n", ":1: two columns have the same name"),
    "empty.csv": ("", ":1: no header"),
    "blank.csv": ("uri,id\na.mp4,1\n\n ,2\n", ":4: uri is empty"),
    "quote.csv": ('uri,id\n"a.mp4,1\nb.mp4,2\n', ":2: not a CSV line"),
    "several.csv": ('uri,id\na.mp4,"1\n2"\nb.mp4\n', ":4: 1 fields"),
    "text.jsonl": ('{"uri": "a.mp4"}\nb.mp4\n', ":2: not JSON"),
    "array.jsonl": ('["a.mp4"]\n', ":1: not a JSON object"),
    "number.jsonl": ('{"uri": 5}\n', ":1: uri is empty or not text"),
    "surrogate.jsonl": ('{"uri": "\\ud800.mp4"}\n', ":1: uri is longer than .* or not valid text"),
    "deep.jsonl": ("[" * 100_000 + "\n", ":1: not JSON"),
    "scheme.txt": ("a.mp4\nftp://host/b.mp4\n", ":2: ftp:// is not read"),
    "null.txt": ("a.mp4\nb\0.mp4\n", ":2: uri"),
    "long.txt": ("a.mp4\n" + "x" * 9000 + "\n", ":2: uri is longer"),
    "line.txt": ("a.mp4\n" + "x" * (lists.MAX_LINE_BYTES + 1) + "\n", ":2: the line is longer"),
    "much.jsonl": (json.dumps({"uri": "a.mp4", "x": "y" * 20_000}), ":1: the other columns have more"),
    "wide.csv": (",".join(f"c{i}" for i in range(300)) + "\n", ":1: more than 256 columns"),
    "garbage.parquet": ("PAR1 no PAR1", ": not a Parquet file"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_line_is_named_before_anything_is_tagged(tmp_path: Path, name: str) -> None:
    content, problem = BAD[name]
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(SourceError, match=f"{name}{problem}"):
        Sources([str(path)])


def test_lines_that_are_not_utf8_and_rows_of_parquet_have_numbers(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"a.mp4\n\xe9.mp4\n")
    with pytest.raises(SourceError, match=r"latin.txt:2: the line is not UTF-8"):
        list(read_list(str(tmp_path / "latin.txt")))
    pq.write_table(pa.table({"uri": ["a.mp4", None]}), tmp_path / "list.parquet")
    with pytest.raises(SourceError, match=r"list.parquet: row 2: uri is empty"):
        list(read_list(str(tmp_path / "list.parquet")))


def test_an_unclosed_quote_does_not_read_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    with path.open("w") as file:
        file.write('uri\n"a.mp4\n')
        for _ in range(5):
            file.write("x" * 1000 + "\n" + "y\n" * 100_000)
    with pytest.raises(SourceError, match=r"list.csv:2: not a CSV line"):
        list(read_list(str(path)))
