"""Results in the formats of other programs, and corrections from them."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import av
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidlex.service.exports import fiftyone, label_studio, stretch_rows, webvtt
from vidlex.service.exports.corrections import Correction, NotCorrections
from vidlex.service.exports.tagged import NotAResult, TaggedName, TaggedStretch, TaggedVideo, from_json, read_results

DOG = TaggedName(
    "lbl_1", "dog", 0.93, matched=True, stretches=[TaggedStretch(0, 2000, 0.93), TaggedStretch(6000, 8000, 0.7)]
)
WIDE = TaggedName("lbl_2", "outdoors", 0.8, matched=True)
CAT = TaggedName("lbl_3", "cat", 0.2, matched=False)
VIDEO = TaggedVideo(
    uri="/videos/walk.mp4",
    sha256="ab" * 32,
    duration_ms=10_000,
    width=320,
    height=240,
    fps=25.0,
    model_id="photo-small",
    fingerprint="f1",
    calibration="c1",
    labels=[DOG, WIDE, CAT],
    video_id="vid_1",
)


def correction(name: str, right: bool, start_ms: int | None = None, end_ms: int | None = None) -> Correction:
    label = next(label for label in VIDEO.labels if label.name == name)
    is_whole = start_ms is None
    return Correction(
        name,
        right,
        "vid_1",
        "ab" * 32,
        label.id,
        start_ms,
        end_ms,
        score=label.score if is_whole else None,
        fingerprint="f1" if is_whole else None,
        calibration="c1" if is_whole else None,
    )


def subtitles(path: Path) -> list[tuple[int, int, str]]:
    """Start and end in milliseconds, and the text, as FFmpeg reads them."""
    with av.open(str(path)) as container:
        (stream,) = container.streams
        cues = []
        for packet in container.demux(stream):
            if packet.size and packet.pts is not None and packet.time_base is not None:
                start = round(packet.pts * packet.time_base * 1000)
                end = round((packet.pts + (packet.duration or 0)) * packet.time_base * 1000)
                cues.append((start, end, bytes(packet).decode()))
    return cues


def test_webvtt_has_a_cue_per_stretch(tmp_path: Path) -> None:
    path = tmp_path / "walk.vtt"
    path.write_text("".join(webvtt.webvtt(VIDEO)), encoding="utf-8")
    assert subtitles(path) == [
        (0, 2000, "dog (0.93)"),
        (0, 10_000, "outdoors (0.80)"),
        (6000, 8000, "dog (0.70)"),
    ]


@given(st.text(min_size=1).filter(lambda text: text.strip()), st.integers(0, 10**8), st.integers(0, 10**6))
def test_any_name_stays_within_its_cue(name: str, start_ms: int, length_ms: int) -> None:
    label = replace(DOG, name=name, stretches=[TaggedStretch(start_ms, start_ms + length_ms, 0.5)])
    text = "".join(webvtt.webvtt(replace(VIDEO, labels=[label, WIDE])))
    assert text.count("-->") == 2
    blocks = text.removesuffix("\n").split("\n\n")
    assert blocks[0] == "WEBVTT" and len(blocks) == 3
    for block in blocks[1:]:
        times, *lines = block.split("\n")
        assert re.fullmatch(r"\d{2,}:\d\d:\d\d\.\d{3} --> \d{2,}:\d\d:\d\d\.\d{3}", times)
        assert len(lines) == 1 and "<" not in lines[0]


def test_a_csv_row_per_stretch_and_back() -> None:
    file = io.StringIO(newline="")
    stretch_rows.write_rows(file, [replace(VIDEO, uri="=cmd()")])
    rows = list(csv.DictReader(io.StringIO(file.getvalue())))
    assert [(row["label"], row["start_ms"], row["end_ms"]) for row in rows] == [
        ("dog", "0", "2000"),
        ("dog", "6000", "8000"),
        ("outdoors", "0", "10000"),
    ]
    assert {row["uri"] for row in rows} == {"'=cmd()"}

    judged = io.StringIO(newline="")
    writer = csv.DictWriter(judged, [*rows[0], "right"])
    writer.writeheader()
    writer.writerows({**row, "right": right} for row, right in zip(rows, ("yes", "No", "no"), strict=True))
    assert list(stretch_rows.read_corrections(io.StringIO(judged.getvalue()))) == [
        correction("dog", True, 0, 2000),
        correction("dog", False, 6000, 8000),
        correction("outdoors", False),
    ]


def test_a_csv_written_by_hand_needs_no_quotes_and_its_reader_changes_no_limit() -> None:
    limit = csv.field_size_limit()
    text = "video_id,label,right\nvid_1,'tis,yes\nvid_1,'=1,no\n"
    assert [found.name for found in stretch_rows.read_corrections(io.StringIO(text))] == ["'tis", "=1"]
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize(
    "text",
    [
        "label\ndog\n",
        "label,right\ndog,yes\n",
        "label,right,video_id\ndog,perhaps,vid_1\n",
        "label,right,video_id,start_ms\ndog,yes,vid_1,soon\n",
        'label,right\n"dog',
    ],
)
def test_a_csv_that_is_no_correction_is_refused(text: str) -> None:
    with pytest.raises(NotCorrections):
        list(stretch_rows.read_corrections(io.StringIO(text)))


def test_label_studio_tasks_name_frames() -> None:
    task = label_studio.task(VIDEO, "https://media.example/walk.mp4")
    assert task["data"]["video"] == "https://media.example/walk.mp4"
    (prediction,) = task["predictions"]
    choices, *parts = prediction["result"]
    assert choices["value"] == {"choices": ["dog", "outdoors"]}
    assert [part["value"]["ranges"] for part in parts] == [[{"start": 1, "end": 50}], [{"start": 151, "end": 200}]]
    assert prediction["score"] == 0.93 and prediction["model_version"] == "photo-small f1"


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=1), min_size=1))
def test_a_labelling_config_has_every_label_once(names: list[str]) -> None:
    names = [name for name in names if all(c.isprintable() for c in name)] or ["dog"]
    root = ElementTree.fromstring(label_studio.labelling_config([*names, *names]))
    assert [tag.get("value") for tag in root.iter("Choice")] == list(dict.fromkeys(names))
    assert [tag.get("value") for tag in root.iter("Label")] == list(dict.fromkeys(names))


def annotated(*results: dict[str, Any], **members: Any) -> dict[str, Any]:
    return {"data": label_studio.task(VIDEO)["data"], "annotations": [{"result": list(results), **members}]}


def test_corrections_from_label_studio() -> None:
    chosen = {"value": {"choices": ["dog", "cat"]}, "type": "choices"}
    part = {"value": {"ranges": [{"start": 51, "end": 100}], "timelinelabels": ["cat"]}, "type": "timelinelabels"}
    assert list(label_studio.read_corrections([annotated(chosen, part)])) == [
        correction("dog", True),
        correction("cat", True),
        correction("outdoors", False),
        correction("cat", True, 2000, 4000),
    ]
    assert list(label_studio.read_corrections([annotated(chosen, was_cancelled=True)])) == []
    newest = annotated(chosen, updated_at="2026-01-01T00:00:00Z")
    newest["annotations"].append({"result": [], "updated_at": "2026-02-01T00:00:00Z"})
    assert [found.right for found in label_studio.read_corrections([newest])] == [False, False]


@pytest.mark.parametrize(
    "tasks",
    [{}, [{"annotations": [{"result": []}]}], [1], [{"data": {}, "annotations": [{"result": []}]}]],
)
def test_other_json_is_no_export_of_label_studio(tasks: Any) -> None:
    with pytest.raises(NotCorrections):
        list(label_studio.read_corrections(tasks))


def test_a_fiftyone_dataset_and_back(tmp_path: Path) -> None:
    remote = replace(VIDEO, uri="s3://bucket/run.mp4", sha256="cd" * 32)
    fiftyone.write_dataset(tmp_path / "set", [VIDEO, remote])
    document = json.loads((tmp_path / "set" / "labels.json").read_text())
    assert document["classes"] == ["cat", "dog", "outdoors"]
    assert [found["support"] for found in document["labels"]["/videos/walk.mp4"]] == [[1, 50], [151, 200], [1, 250]]
    paths = json.loads((tmp_path / "set" / "data.json").read_text())
    assert paths["cd" * 32] == "s3://bucket/run.mp4"

    # FiftyOne names what it exports by the file.
    kept = [found for found in document["labels"]["/videos/walk.mp4"] if found["label"] == "dog"][:1]
    document["labels"] = {"walk": kept}
    (tmp_path / "set" / "labels.json").write_text(json.dumps(document))
    assert list(fiftyone.read_corrections(tmp_path / "set")) == [
        correction("dog", True),
        correction("outdoors", False),
        correction("dog", True, 0, 2000),
    ]


def test_what_is_no_dataset_is_refused(tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text("[]")
    (tmp_path / "vidlex.json").write_text("{}")
    with pytest.raises(NotCorrections):
        list(fiftyone.read_corrections(tmp_path))


ANSWER = {
    "object": "video.classification",
    "video": {"sha256": "ab" * 32, "duration_ms": 10_000, "width": 320, "height": 240, "fps": 25.0},
    "model": {"id": "photo-small", "fingerprint": "f1"},
    "calibration": "c1",
    "video_id": "vid_1",
    "labels": [
        {"id": "lbl_1", "name": "dog", "score": 0.93, "matched": True, "stretches": [
            {"start_ms": 0, "end_ms": 2000, "score": 0.93}, {"start_ms": 6000, "end_ms": 8000, "score": 0.7}]},
        {"id": "lbl_2", "name": "outdoors", "score": 0.8, "matched": True, "stretches": []},
        {"id": "lbl_3", "name": "cat", "score": 0.2, "matched": False, "stretches": []},
    ],
}  # fmt: skip


@pytest.mark.parametrize("text", [json.dumps(ANSWER), json.dumps(ANSWER, indent=2), json.dumps([ANSWER])])
def test_answers_are_read_from_one_line_or_many(text: str) -> None:
    (found,) = read_results(io.StringIO(text), "/videos/walk.mp4")
    assert replace(found, labels=VIDEO.labels) == VIDEO
    assert [label.name for label in found.labels] == ["dog", "outdoors", "cat"]
    assert list(found.labels[0].stretches) == list(DOG.stretches)


def test_json_lines_are_read_without_failures() -> None:
    lines = [json.dumps(ANSWER), json.dumps({"uri": "x", "error_code": "undecodable_video"}), json.dumps(ANSWER)]
    assert len(list(read_results(io.StringIO("\n".join(lines))))) == 2


@pytest.mark.parametrize("text", ["{", "[1]", '{"a": 1}', "nonsense", '{"object": "video.classification"}', "[" * 9999])
def test_other_files_are_no_results(text: str) -> None:
    with pytest.raises(NotAResult):
        list(read_results(io.StringIO(text)))


@given(st.recursive(st.none() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)))
def test_any_json_is_a_result_or_refused(value: Any) -> None:
    with pytest.raises(NotAResult):
        from_json(value)
