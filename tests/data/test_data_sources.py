"""Readers of annotation files: published formats, and errors with file, line and remedy."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from support.annotations import activitynet_json, kinetics_csv, rareact_csv, record, tao_json, vocabulary_csv
from vidlex.model.data import activitynet, kinetics, rareact, tao, youtube8m
from vidlex.model.data.annotations import AnnotationError, json_line, read_csv, read_json
from vidlex.model.data.tfrecord import masked_crc, parse_features, read_records

GOOD = {
    "youtube8m": (vocabulary_csv(), youtube8m.read_vocabulary),
    "kinetics": (kinetics_csv(), lambda path: kinetics.build(annotations=(path,), videos=path.parent, num_classes=0)),
    "rareact": (rareact_csv(), rareact.read_ratings),
}


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize(
    ("fault", "line", "problem", "remedy"),
    [
        ("bom", 1, "byte order mark", "sed"),
        ("crlf", 1, "CRLF", "sed"),
        ("column", 1, "no column", "take"),
        ("short", 3, "fields where the header has", "as published"),
        ("quote", 3, "not a CSV line", "as published"),
        ("latin", 3, "not UTF-8", "as published"),
    ],
)
def test_errors_name_file_line_and_remedy(
    *, tmp_path: Path, name: str, fault: str, line: int, problem: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text, read = GOOD[name]
    lines = text.splitlines(keepends=True)
    raw = text.encode()
    if fault == "bom":
        raw = b"\xef\xbb\xbf" + raw
    elif fault == "crlf":
        raw = raw.replace(b"\n", b"\r\n")
    elif fault == "column":
        raw = raw.replace(b"Name", b"Title").replace(b"label,", b"class,", 1).replace(b"annotation", b"code", 1)
    else:
        change = {"short": b"alone\n", "quote": b'a,"b"c\n', "latin": b"caf\xe9\n"}[fault]
        raw = b"".join([*(x.encode() for x in lines[:2]), change, *(x.encode() for x in lines[3:])])
    path = tmp_path / "source.csv"
    path.write_bytes(raw)
    with pytest.raises(AnnotationError, match=rf"source\.csv:{line}: .*{problem}.*Remedy: .*{remedy}"):
        read(path)


def test_line_numbers_include_quoted_line_breaks(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('a,b\n"x\ny",1\nlast,2\n')
    assert [(row.line, row["a"], row.integer("b")) for row in read_csv(path, ("a", "b"))] == [
        (2, "x\ny", 1),
        (4, "last", 2),
    ]


def test_missing_and_empty_files_raise(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match=r"a\.csv: file not found"):
        read_csv(tmp_path / "a.csv", ("a",))
    (tmp_path / "a.csv").write_text("")
    with pytest.raises(AnnotationError, match=r"a\.csv:1: the file is empty"):
        read_csv(tmp_path / "a.csv", ("a",))


class _Document(BaseModel):
    database: dict[str, dict[str, float]]


def test_json_errors_name_the_line(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for text, message in (
        ('{"database": {\n "a": {"x": 1},\n "b": {"x": "one"}}}', r"a\.json:3: database\.b\.x: "),
        ('{"database":\n {"a": {"x": 1}\n', r"a\.json:\d: not JSON"),
        ('{"other": {}}', r"a\.json:1: database: Field required"),
    ):
        path.write_text(text)
        with pytest.raises(AnnotationError, match=message):
            read_json(path, _Document)


leaves = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
trees = st.recursive(leaves, lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=4), x, max_size=3))


@settings(deadline=None)
@given(trees, st.data())
def test_json_line_finds_any_member(document: object, data: st.DataObject) -> None:
    text = json.dumps(document, indent=1)
    keys: list[int | str] = []
    inner = document
    while isinstance(inner, list | dict) and inner and data.draw(st.booleans()):
        key: int | str = data.draw(st.sampled_from(sorted(inner) if isinstance(inner, dict) else range(len(inner))))
        keys.append(key)
        inner = inner[key]  # type: ignore[index, call-overload]
    line = json_line(text, keys)
    shown = text.splitlines()[line - 1]
    expected = json.dumps(inner, indent=1).splitlines()[0]
    assert expected in shown


# --- YouTube-8M --------------------------------------------------------------------------------------------------


def test_youtube8m_classes_are_identified_by_index(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.csv"
    path.write_text(vocabulary_csv())
    classes = youtube8m.read_vocabulary(path)
    assert len(classes) == 3862
    assert classes[3084].name == "Nova" and classes[271].name == "Nike, Inc."
    assert classes[2533].name == 'Toys "R" Us' and classes[120].name == ""
    without = youtube8m.select_classes(classes, drop_unnamed=False)
    assert 0 not in {c.index for c in without} and 4 not in {c.index for c in without}  # Games first, Games second
    assert len(youtube8m.select_classes(classes)) == len(without) - 1
    top = youtube8m.select_classes(classes, top_classes=10)
    assert len(top) == 10 and min(c.num_train_videos for c in top) > max(
        c.num_train_videos for c in youtube8m.select_classes(classes) if c not in top
    )


def test_youtube8m_rejects_other_vocabularies(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.csv"
    lines = vocabulary_csv().splitlines(keepends=True)
    path.write_text("".join([*lines[:40], lines[40].replace(lines[40].split(",")[0], "4711", 1), *lines[41:]]))
    with pytest.raises(AnnotationError, match=r"vocabulary\.csv:41: Index 4711: the numbering of 2017.*Remedy: take"):
        youtube8m.read_vocabulary(path)
    path.write_text("".join(lines[:1001]))
    with pytest.raises(AnnotationError, match="1000 classes, not 3862"):
        youtube8m.read_vocabulary(path)
    path.write_bytes(b"label_id,label_name\r\n0,Game\r\n4711,Food\r\n")
    with pytest.raises(AnnotationError, match=r"vocabulary\.csv:3: label id 4711: the numbering of 2017"):
        youtube8m.read_vocabulary(path)
    path.write_bytes(b"label_id,label_name\n0,Game\n271,Nike, Inc.\n")
    with pytest.raises(AnnotationError, match="without verticals"):
        youtube8m.read_vocabulary(path)


def test_youtube8m_duplicate_names_have_the_entity_as_key(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.csv"
    path.write_text(vocabulary_csv())
    names = tmp_path / "unnamed.csv"
    names.write_text("Index,KnowledgeGraphId,name_from_category_list\n120,/m/120,Nova\n271,/m/271,Another\n")
    classes = youtube8m.fill_names(youtube8m.read_vocabulary(path), names)
    assert classes[120].name == "Nova" and classes[271].name == "Nike, Inc."
    keys = youtube8m.label_keys(youtube8m.select_classes(classes))
    assert {keys[120], keys[3084]} == {"Nova", "/m/120"} or {keys[120], keys[3084]} == {"Nova", "/m/3084"}
    assert len(set(keys.values())) == len(keys)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"id": [b"nXSc"], "labels": [3, 4000]}, "label 4000: the numbering of 2017"),
        ({"video_id": [b"nXSc"], "labels": [3]}, "video_id belongs to the numbering of 2017"),
        ({"labels": [3]}, "no id"),
        ({"id": [b"nXSc"], "segment_labels": [3], "segment_scores": [1.0]}, "1 segment labels, 0 starts"),
    ],
)
def test_youtube8m_invalid_records_raise_with_their_number(
    tmp_path: Path, content: dict[str, list[int]], problem: str
) -> None:
    shard = tmp_path / "train0001.tfrecord"
    shard.write_bytes(record({"id": [b"aaaa"], "labels": [1]}) + record(content))  # type: ignore[dict-item]
    with pytest.raises(AnnotationError, match=rf"tfrecord:2: .*{problem}.*Remedy: take the records of the 2018"):
        list(youtube8m.read_shard(shard))


def test_damaged_tfrecords_raise(tmp_path: Path) -> None:
    whole = record({"id": [b"aaaa"], "labels": [1]})
    shard = tmp_path / "train0001.tfrecord"
    huge = struct.pack("<Q", 1 << 40)
    for raw, problem in (
        (whole + whole[:-1], r":2: the file is truncated in a record"),
        (whole + whole[:5], r":2: the file is truncated in the header of a record"),
        (whole[:14] + b"?" + whole[15:], r":1: wrong checksum of a record"),
        (b"?" + whole[1:], r":1: not a TFRecord"),
        (huge + struct.pack("<I", masked_crc(huge)), r":1: a record of 1099511627776 bytes"),
    ):
        shard.write_bytes(raw)
        with pytest.raises(AnnotationError, match=problem):
            list(youtube8m.read_shard(shard))


def test_masked_crc_equals_the_check_value() -> None:
    """CRC-32C of "123456789" is 0xe3069283 (RFC 3720, B.4)."""
    assert masked_crc(b"123456789") == (((0xE3069283 >> 15) | (0xE3069283 << 17)) + 0xA282EAD8) & 0xFFFFFFFF


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_parse_features_raises_only_value_error(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        parse_features(data)


names = st.text(min_size=1, max_size=8)
values = (
    st.lists(st.binary(max_size=5), min_size=1, max_size=4)
    | st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=4)
    | st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=4)
)


@settings(deadline=None)
@given(st.dictionaries(names, values, max_size=4), st.booleans())
def test_features_round_trip(content: dict[str, list[int]], packed: bool) -> None:
    raw = record(content, packed=packed)  # type: ignore[arg-type]
    assert parse_features(raw[12:-4]) == content


def test_records_are_numbered_from_one(tmp_path: Path) -> None:
    path = tmp_path / "x.tfrecord"
    path.write_bytes(record({"a": [1]}) + record({"a": [2]}))
    assert [(n, parse_features(payload)) for n, payload in read_records(path)] == [(1, {"a": [1]}), (2, {"a": [2]})]


# --- other datasets -----------------------------------------------------------------------------------------------


def test_tao_rejects_inconsistent_files(tmp_path: Path) -> None:
    path = tmp_path / "validation.json"
    document = json.loads(tao_json())
    document["tracks"][0]["category_id"] = 99_999
    path.write_text(json.dumps(document, indent=1))
    with pytest.raises(AnnotationError, match="category 99999"):
        tao.read_videos(path)
    del document["videos"][1]["neg_category_ids"]
    path.write_text(json.dumps(document, indent=1))
    with pytest.raises(AnnotationError, match=r"validation\.json:\d+: videos\.1\.neg_category_ids: Field required"):
        tao.read_videos(path)


def test_activitynet_errors_name_line_and_option(tmp_path: Path) -> None:
    path = tmp_path / "anet.json"
    path.write_text(activitynet_json().replace('"validation"', '"val"'))
    with pytest.raises(AnnotationError, match=r"anet\.json:\d+: database\.\S+\.subset: .*training"):
        activitynet.read_videos(path)
    path.write_text(activitynet_json())
    with pytest.raises(AnnotationError, match="3 activities, not 200"):
        activitynet.build(annotations=path, videos=tmp_path, out=tmp_path / "out")
    path.write_text('{"v_abcdefghijk": {"duration_second": 3.5, "annotations": []}}')
    with pytest.raises(AnnotationError, match="--info"):
        activitynet.read_videos(path)


def test_rareact_rejects_rows_out_of_order(tmp_path: Path) -> None:
    path = tmp_path / "rareact.csv"
    lines = rareact_csv().splitlines(keepends=True)
    path.write_text("".join([lines[0], lines[2], lines[1], *lines[3:]]))
    with pytest.raises(AnnotationError, match=r"rareact\.csv:2: id 1 where 0 should be"):
        rareact.read_ratings(path)


# --- the published files -----------------------------------------------------------------------------------------

ANNOTATIONS = os.environ.get("VIDLEX_ANNOTATIONS", "")
needs_published_files = pytest.mark.skipif(
    not ANNOTATIONS, reason="needs VIDLEX_ANNOTATIONS, a folder with the published files"
)


def published(pattern: str) -> Path:
    return next(iter(sorted(Path(ANNOTATIONS).rglob(pattern))))


@needs_published_files
def test_counts_of_the_published_youtube8m(tmp_path: Path) -> None:
    classes = youtube8m.read_vocabulary(published("vocabulary*.csv"))
    assert len(classes) == 3862
    assert len(youtube8m.select_classes(classes, drop_unnamed=False)) == 3019
    assert len(youtube8m.select_classes(classes)) == 2967
    assert len(youtube8m.select_classes(classes, top_classes=2429)) == 2429
    assert classes[3084].name == "Nova" and classes[271].name == "Nike, Inc." and classes[2533].name == 'Toys "R" Us'
    filled = youtube8m.fill_names(classes, published("unnamed*.csv"))
    assert all(c.name for c in filled.values())
    assert len(set(youtube8m.label_keys([*filled.values()]).values())) == 3862
    with pytest.raises(AnnotationError, match="numbering of 2017"):
        youtube8m.read_vocabulary(published("label_names*OLD*.csv"))


@needs_published_files
def test_counts_of_the_published_kinetics(tmp_path: Path) -> None:
    built = kinetics.build(annotations=(published("*_val*.csv"),), videos=tmp_path, out=tmp_path)
    assert built["num_labels"] == 400
    assert built["num_missing_videos"] == built["num_annotated_clips"] > 0
    with pytest.raises(AnnotationError, match="no column 'label'"):
        kinetics.build(annotations=(published("*_test*.csv"),), videos=tmp_path, out=tmp_path)


@needs_published_files
def test_counts_of_the_published_rareact(tmp_path: Path) -> None:
    built = rareact.build(annotations=published("rareact.csv"), videos=tmp_path, out=tmp_path)
    assert (built["num_classes"], built["num_rows"], built["num_classes_with_a_positive"]) == (149, 7607, 128)
    assert (built["num_segments"], built["num_missing_videos"]) == (7463, 905)
    ratings = rareact.read_ratings(published("rareact.csv"))
    truth = rareact.segment_truth(ratings).values()
    positive = {kind: sum(any(yes and k.startswith(kind) for k, yes in t.items()) for t in truth) for kind in
                ("action", "verb", "noun")}  # fmt: skip
    assert positive == {"action": 1958, "verb": 2568, "noun": 5293}
    rows = list(csv.DictReader(io.StringIO(published("rareact.csv").read_text())))
    assert len(rows) == len(ratings)
