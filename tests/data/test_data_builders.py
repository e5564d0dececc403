"""The five dataset builders on small annotation files: entries, labels, missing videos."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.annotations import activitynet_json, kinetics_csv, rareact_csv, record, tao_json, vocabulary_csv
from vidlex.model.data import activitynet, kinetics, rareact, tao, youtube8m
from vidlex.model.data.dataset import DatasetError, LabelInfo, VideoFiles, read_dataset_info, read_labels
from vidlex.model.data.manifest import Entry, read_manifest


def touch_files(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    root.mkdir(exist_ok=True)
    return root


def write_source(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def entries_of(out: Path) -> dict[str, Entry]:
    return {entry.native_id or "": entry for entry in read_manifest(out / "manifest.jsonl")}


def test_video_files_are_found_by_stem_and_by_path(tmp_path: Path) -> None:
    root = touch_files(tmp_path / "v", "x/-aaaaaaaaaa.mp4", "_bbbbbbbbbb.webm", "notes.txt", "x/a.b.MKV")
    files = VideoFiles(root)
    assert files.find("nothing", "-aaaaaaaaaa") == root / "x/-aaaaaaaaaa.mp4"
    assert set(files.by_stem) == {"-aaaaaaaaaa", "_bbbbbbbbbb", "a.b"}
    assert set(files.by_path) == {"x/-aaaaaaaaaa", "_bbbbbbbbbb", "x/a.b"}
    with pytest.raises(FileNotFoundError, match="not a folder"):
        VideoFiles(tmp_path / "gone")


def test_youtube8m_writes_entries_labels_and_missing_videos(tmp_path: Path) -> None:
    vocabulary = write_source(tmp_path, "vocabulary.csv", vocabulary_csv())
    ids = write_source(tmp_path, "ids.csv", "yt8m_id,youtube_id\nnXSc,-aaaaaaaaaa\nabcd,bbbbbbbbbbb\n")
    records = tmp_path / "records" / "2"
    records.mkdir(parents=True)
    train = [
        {"id": [b"nXSc"], "labels": [0, 271, 3084], "mean_rgb": [0.5, 1.0]},
        {"id": [b"Only"], "labels": [0]},  # only a game
        {"id": [b"abcd"], "labels": [2533]},  # no video
        {"id": [b"here"], "labels": [7]},  # file named by the 4-character id
    ]
    (records / "train0093.tfrecord").write_bytes(b"".join(record(r) for r in train))  # type: ignore[arg-type]
    (records / "testAB.tfrecord").write_bytes(record({"id": [b"Kept"], "labels": []}))
    videos = touch_files(tmp_path / "videos", "-aaaaaaaaaa.mp4", "here.mp4")
    out = tmp_path / "out"
    built = youtube8m.build(vocabulary=vocabulary, videos=videos, out=out, records=tmp_path / "records", ids=ids)
    assert built["num_annotated_videos"] == 5 and built["num_unlabelled"] == 2 and built["num_missing_videos"] == 1
    assert (out / "missing.txt").read_text() == "abcd\n"
    entries = entries_of(out)
    assert entries["nXSc"] == Entry(
        "../videos/-aaaaaaaaaa.mp4", ("Nike, Inc.", "Nova"), split="train", native_id="nXSc"
    )
    assert (out / entries["nXSc"].video).is_file() and entries["here"].positives == ("Thing 7",)
    labels = read_labels(out / "labels.json")
    assert labels["Nike, Inc."] == LabelInfo("Nike, Inc.", None, "271") and "Game" not in labels
    facts = read_dataset_info(out)
    assert facts.unlabelled == "unknown" and len(facts.sources["vocabulary.csv"]) == 64
    built = youtube8m.build(vocabulary=vocabulary, videos=videos, out=out, top_classes=100)
    assert built["num_labels"] == 100 and "approximate" in read_dataset_info(out).note


def test_youtube8m_segments_have_verified_negatives(tmp_path: Path) -> None:
    vocabulary = write_source(tmp_path, "vocabulary.csv", vocabulary_csv())
    rated = {
        "id": [b"nXSc"],
        "labels": [7, 8],
        "segment_labels": [8, 7, 7, 0],
        "segment_start_times": [40, 40, 5, 5],
        "segment_scores": [0.0, 1.0, 0.0, 1.0],
    }
    records = tmp_path / "records"
    records.mkdir()
    (records / "validate0000.tfrecord").write_bytes(record(rated))  # type: ignore[arg-type]
    videos = touch_files(tmp_path / "videos", "nXSc.mp4")
    youtube8m.build(vocabulary=vocabulary, videos=videos, out=tmp_path, records=records, segments=True)
    assert [
        (e.start_ms, e.end_ms, e.positives, e.negatives, e.split) for e in read_manifest(tmp_path / "manifest.jsonl")
    ] == [
        (5000, 10000, (), ("Thing 7",), "val"),
        (40000, 45000, ("Thing 7",), ("Thing 8",), "val"),
    ]


def test_kinetics_entries_have_times_unless_the_file_is_trimmed(tmp_path: Path) -> None:
    annotations = write_source(tmp_path, "val.csv", kinetics_csv())
    videos = touch_files(
        tmp_path / "videos",
        "abseiling/0wR5jVB-WPk_000417_000427.mp4",  # trimmed
        "--nQbRBEz2s.mkv",  # whole
        "replacement/_aaaaaaaaa-_000003_000013.mp4",  # trimmed, with other times
    )
    built = kinetics.build(annotations=(annotations,), videos=videos, out=tmp_path, num_classes=3)
    assert (built["num_labels"], built["num_missing_videos"], built["num_entries"]) == (3, 1, 3)
    assert (tmp_path / "missing.txt").read_text() == "Zbbbbbbbbbb_000007_000017\n"
    entries = [(e.positives, e.split, e.start_ms, e.end_ms) for e in read_manifest(tmp_path / "manifest.jsonl")]
    assert entries == [
        (("abseiling",), "val", None, None),
        (("air drumming",), "val", 104_000, 114_000),
        (("massaging person's head",), "train", None, None),
    ]
    assert [text.native_id for text in read_labels(tmp_path / "labels.json").values()] == ["0", "1", "2"]
    assert read_dataset_info(tmp_path).unlabelled == "absent"
    kinetics.build(annotations=(annotations,), videos=videos, out=tmp_path, num_classes=3, files="clips")
    assert all(e.start_ms is None for e in read_manifest(tmp_path / "manifest.jsonl"))
    with pytest.raises(ValueError, match="3 classes, not 400"):
        kinetics.build(annotations=(annotations,), videos=videos, out=tmp_path)


def test_tao_negatives_are_verified(tmp_path: Path) -> None:
    # a: person has a track; bat is absent; mug is absent, so cup is. b: the mug track is a cup, so cup is no negative;
    # person is absent. c: bat is listed both as absent and as not exhaustive, without a track: unknown.
    annotations = write_source(tmp_path, "validation.json", tao_json())
    videos = touch_files(tmp_path / "videos", "val/HACS/a.mp4", "videos/val/LaSOT/b.mov", "val/LaSOT/c.mp4")
    built = tao.build(annotations=annotations, videos=videos, out=tmp_path)
    parsed, _ = tao.read_videos(annotations)
    assert [(sorted(v.positives), sorted(v.negatives)) for v in parsed] == [
        ([805], [57, 347]),
        ([139, 347], [805]),
        ([805], []),
    ]
    entries = entries_of(tmp_path)
    assert entries["val/HACS/a"].positives == ("baby",) and entries["val/HACS/a"].negatives == ("cup",)
    assert entries["val/LaSOT/b"].positives == ("bow_(weapon)", "cup") and entries["val/LaSOT/b"].negatives == ("baby",)
    assert entries["val/LaSOT/c"].negatives == () and not any(e.closed for e in entries.values())
    labels = read_labels(tmp_path / "labels.json")  # bat has no track
    assert {key: text.prompt for key, text in labels.items()} == {
        "baby": "person",
        "bow_(weapon)": "bow (weapon)",
        "cup": "cup",
    }
    assert built["num_labels"] == 3 and read_dataset_info(tmp_path).protocol == "tao"


@pytest.mark.parametrize("file_format", ["official", "bsn"])
def test_activitynet_reads_both_formats(tmp_path: Path, file_format: str) -> None:
    document = json.loads(activitynet_json())["database"]
    info = None
    if file_format == "official":
        annotations = write_source(tmp_path, "a.json", activitynet_json())
    else:
        bsn = {
            f"v_{name}": {"duration_second": v["duration"], "duration_frame": 3, "annotations": v["annotations"]}
            for name, v in document.items()
        }
        annotations = write_source(tmp_path, "a.json", json.dumps(bsn))
        rows = [f"v_{name},9,{v['duration']},25,25,{v['subset']},9" for name, v in document.items()]
        header = "video,numFrame,seconds,fps,rfps,subset,featureFrame"
        info = write_source(tmp_path, "info.csv", "\n".join([header, *rows]) + "\n")
    videos = touch_files(tmp_path / "videos", "v_aaaaaaaaaaa.mp4", "-bbbbbbbbbb.webm")
    build = {"annotations": annotations, "videos": videos, "out": tmp_path, "info": info, "num_classes": 3}
    built = activitynet.build(**build)  # type: ignore[arg-type]
    assert (built["num_unlabelled"], built["num_missing_videos"]) == (1, 0)
    entries = entries_of(tmp_path)
    assert entries["aaaaaaaaaaa"].positives == ("BMX", "Mooping floor") and entries["aaaaaaaaaaa"].split == "train"
    assert entries["-bbbbbbbbbb"].positives == ("BMX", "Ping-pong")  # the segment of Ping-pong is empty
    assert read_labels(tmp_path / "labels.json")["Mooping floor"].prompt == "Mopping floor"
    activitynet.build(**build, level="segment")  # type: ignore[arg-type]
    segments = [(e.positives[0], e.start_ms, e.end_ms) for e in read_manifest(tmp_path / "manifest.jsonl")]
    assert segments == [
        ("Mooping floor", 6195, 82700),  # clamped
        ("BMX", 1000, 2500),
        ("BMX", 3000, 4000),
        ("BMX", 5000, 6000),
    ]


def test_rareact_codes_become_positives_and_negatives(tmp_path: Path) -> None:
    """Rows 5 and 6 rate the same segment and class 0 and 3: the 3 applies."""
    annotations = write_source(tmp_path, "source.csv", rareact_csv())
    videos = touch_files(tmp_path / "videos", *(f"-{letter * 10}.mp4" for letter in "ABC"))
    built = rareact.build(annotations=annotations, videos=videos, out=tmp_path / "out", num_rows=0)
    assert (built["num_rows"], built["num_classes"], built["num_classes_with_a_positive"]) == (10, 4, 3)
    assert (tmp_path / "out/missing.txt").read_text() == "-DDDDDDDDDD\n"
    truth = rareact.segment_truth(rareact.read_ratings(annotations))
    a, b, c, d = (f"-{letter * 10}" for letter in "ABCD")
    others = {f"action:{x}": False for x in ("cut laptop", "cut phone", "wash laptop", "drop shoes")}
    assert truth[(a, 0, 10)] == {**others, "action:cut laptop": True, "verb:cut": True, "noun:laptop": True}
    assert truth[(a, 10, 20)] == {"action:cut laptop": False, "verb:cut": True, "noun:laptop": False}
    assert truth[(b, 0, 10)] == {**others, "action:cut phone": True, "verb:cut": True, "noun:phone": True}
    assert truth[(c, 0, 10)] == {
        **others, "action:wash laptop": True, "verb:wash": True, "noun:laptop": True, "verb:cut": False,
        "noun:phone": True,
    }  # fmt: skip
    assert truth[(d, 20, 30)] == {"action:cut laptop": False, "verb:cut": True, "noun:laptop": True}
    assert truth[(d, 30, 40)] == {"action:drop shoes": False}  # code 0: verb and noun are unknown
    labels = read_labels(tmp_path / "out/labels.json")
    assert labels["action:cut laptop"] == LabelInfo("cut a laptop", "action", "0")
    assert labels["action:drop shoes"].prompt == "drop shoes" and labels["noun:laptop"].kind == "noun"
    assert (tmp_path / "out/rareact.csv").read_bytes() == annotations.read_bytes()


def test_labels_are_read_in_every_format(tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    for text, expected in (
        ('["a"]', {"a": LabelInfo("a")}),
        ('{"a": "noun", "b": null}', {"a": LabelInfo("a", "noun"), "b": LabelInfo("b")}),
        ('{"a": {"prompt": "an a", "kind": "noun"}}', {"a": LabelInfo("an a", "noun")}),
    ):
        path.write_text(text)
        assert read_labels(path) == expected
    for text in ("{", "3", '{"a": 3}', '{"a": {"kind": "noun"}}'):
        path.write_text(text)
        with pytest.raises(DatasetError, match=r"labels\.json"):
            read_labels(path)
    assert read_dataset_info(tmp_path).unlabelled == "unknown"
    (tmp_path / "dataset.json").write_text('{"name": "x", "unlabelled": "maybe"}')
    with pytest.raises(DatasetError, match="maybe"):
        read_dataset_info(tmp_path)
