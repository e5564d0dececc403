"""Manifests, the emoji dataset as files, and evaluation of a classifier on files."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from support.art import tiny_sheet
from vidlex.model import factory
from vidlex.model.data.manifest import Entry, ManifestError, read_manifest, write_manifest
from vidlex.model.dummy import DummyClassifier
from vidlex.model.emoji.build import build
from vidlex.model.emoji.world import World
from vidlex.model.emoji.writer import write_mp4
from vidlex.model.eval.evaluate import report, score
from vidlex.service.cli import app

names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12).filter(str.strip)


@given(st.lists(st.tuples(names, st.lists(names, max_size=3), st.booleans()), max_size=5))
def test_manifest_round_trip(rows: list[tuple[str, list[str], bool]]) -> None:
    import tempfile

    entries = [Entry(video, tuple(positives), closed=closed) for video, positives, closed in rows]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.jsonl"
        write_manifest(path, entries)
        assert list(read_manifest(path)) == entries


def test_manifest_may_have_a_byte_order_mark_crlf_and_empty_lines(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"video": "a.mp4", "positives": ["x"]}\r\n\r\n{"video": "b.mp4", "positives": []}\r\n'
    )
    assert [entry.video for entry in read_manifest(path)] == ["a.mp4", "b.mp4"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not a manifest entry"),
        ('{"positives": []}', "not a manifest entry"),
        ('{"video": "a", "positives": ["x"], "colour": 1}', "not a manifest entry"),
        ('{"video": 3, "positives": ["x"]}', "must be text"),
        ('{"video": "a", "positives": ["x"], "split": 1}', "split must be text"),
        ('{"video": "a", "positives": ["x"], "end_ms": "9"}', "start_ms and end_ms must be whole numbers"),
        ('{"video": "a", "positives": ["x"], "end_ms": true}', "start_ms and end_ms must be whole numbers"),
        ('{"video": "a", "positives": ["x"], "start_ms": -1}', "must not be negative"),
        ('{"video": "a", "positives": ["x"], "start_ms": 9, "end_ms": 9}', "end_ms must be larger"),
        ('{"video": "a", "positives": "dog"}', "must be lists of labels"),
        ('{"video": "a", "positives": [], "negatives": {"dog": 1}}', "must be lists of labels"),
        ('{"video": "a", "positives": [" "]}', "not empty"),
        ('{"video": "a\\u0000", "positives": ["x"]}', "valid"),
        ('{"video": "a", "positives": ["\\udc80"]}', "valid"),
        ('{"video": "a", "positives": ["x"], "closed": "false"}', "closed must be true or false"),
        ('{"video": "a", "labels": ["x"]}', r"unknown key 'labels'; the keys are video, positives"),
        ("null", "not a JSON object"),
        ("[" * 100_000, "not JSON"),
        ('{"video": "a", "positives": ["x"], "negatives": ["x"]}', "both positive and negative"),
        ('{"video": "' + "a" * (1 << 20) + '", "positives": []}', "longer than"),
    ],
)
def test_manifest_errors_name_the_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"video": "good.mp4", "positives": []}\n' + line + "\n")
    with pytest.raises(ManifestError, match=rf"m\.jsonl:2: .*{message}"):
        list(read_manifest(path))


def test_build_writes_videos_manifest_and_licences(tmp_path: Path) -> None:
    reports: list[tuple[int, int]] = []
    arguments = {"num_videos": 3, "seed": 4, "size": 64, "min_labels": 3, "max_labels": 9, "sheet": tiny_sheet()}
    manifest = build(tmp_path / "a", tmp_path, progress=lambda n, total: reports.append((n, total)), **arguments)  # type: ignore[arg-type]
    assert reports == [(1, 3), (2, 3), (3, 3)]
    entries = list(read_manifest(manifest))
    known = set(World(tmp_path, sheet=tiny_sheet(), split="test").labels)
    for entry in entries:
        assert 3 <= len(entry.positives) <= 9 and set(entry.positives) <= known and entry.closed
        with av.open(str(manifest.parent / entry.video)) as container:
            assert (container.streams.video[0].width, container.streams.video[0].frames) == (64, 48)
    assert {licence["art_licence"] for licence in json.loads((tmp_path / "a/ART.json").read_text())} == {
        "Apache-2.0",
        "CC-BY-4.0",
        "CC-BY-SA-4.0",
        "MIT",
    }
    again = build(tmp_path / "b", tmp_path, **arguments)  # type: ignore[arg-type]
    assert list(read_manifest(again)) == entries
    first = entries[0].video
    assert (again.parent / first).read_bytes() == (manifest.parent / first).read_bytes()


def test_score_of_known_colours_and_a_missing_file(tmp_path: Path) -> None:
    for name, channel in (("red", 0), ("green", 1)):
        frames = torch.zeros(8, 3, 32, 32, dtype=torch.uint8)
        frames[:, channel] = 255
        write_mp4(frames, tmp_path / f"{name}.mp4")
    entries = [
        Entry("red.mp4", ("red",), negatives=("green",)),
        Entry("gone.mp4", ("red",)),
        Entry("green.mp4", ("green",), closed=True),
    ]
    write_manifest(tmp_path / "m.jsonl", entries)
    scores = score(DummyClassifier(), tmp_path / "m.jsonl", ["red", "green", "blue"])
    assert scores.skipped == ("gone.mp4",)
    assert scores.targets.tolist() == [[True, False, False], [False, True, False]]
    assert scores.known.tolist() == [[True, True, False], [True, True, True]]
    assert np.allclose(scores.similarities, [[1, 0, 0], [0, 1, 0]], atol=0.05)
    metrics = report(DummyClassifier(), scores, {"red": "warm", "green": "cold", "blue": "cold"})
    assert metrics["micro_aupr"] == 1.0 and metrics["chance"] == pytest.approx(2 / 5)
    assert metrics["f1_at_default_threshold"] == 1.0
    assert metrics["by_kind"]["warm"]["num_positives"] == 1 and metrics["skipped_videos"] == ["gone.mp4"]


def test_score_of_a_split_and_of_a_window(tmp_path: Path) -> None:
    """One video is red, then green: its two windows are entries of two splits."""
    frames = torch.zeros(24, 3, 32, 32, dtype=torch.uint8)
    frames[:12, 0] = frames[12:, 1] = 255
    write_mp4(frames, tmp_path / "a.mp4", fps=12)
    path, names = tmp_path / "m.jsonl", ["red", "green"]
    red = Entry("a.mp4", ("red",), closed=True, split="train", end_ms=1000)
    green = Entry("a.mp4", ("green",), closed=True, split="val", start_ms=1000, end_ms=2000)
    both = Entry("a.mp4", ("red", "green"))
    write_manifest(path, [red, green, both])
    for split, expected in (("train", [[1, 0], [0.5, 0.5]]), ("val", [[0, 1], [0.5, 0.5]])):
        scores = score(DummyClassifier(), path, names, split=split)
        brightness = scores.similarities / scores.similarities.sum(axis=1, keepdims=True)
        assert np.allclose(brightness, expected, atol=0.06), (split, scores.similarities)
    assert len(score(DummyClassifier(), path, names, split="all").targets) == 3
    with pytest.raises(ManifestError, match=r"several splits, train \(1\), val \(1\): choose one with --split"):
        score(DummyClassifier(), path, names)
    with pytest.raises(ManifestError, match="no entries of the split 'test'"):
        write_manifest(path, [red])
        score(DummyClassifier(), path, names, split="test")
    assert len(score(DummyClassifier(), path, names).targets) == 1


def test_eval_refuses_a_label_that_labels_json_lacks_before_it_loads_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A labels file that is given selects labels."""
    write_mp4(torch.zeros(4, 3, 32, 32, dtype=torch.uint8), tmp_path / "a.mp4", fps=4)
    write_manifest(tmp_path / "m.jsonl", [Entry("a.mp4", ("red",), ("green",), split="val")])
    (tmp_path / "labels.json").write_text('["red"]')
    command = ["eval", str(tmp_path / "m.jsonl"), "--model", "dummy"]
    assert CliRunner().invoke(app, [*command, "--labels", str(tmp_path / "labels.json")]).exit_code == 0

    def refuse(*arguments: object, **named: object) -> None:
        raise AssertionError("the model is loaded")

    monkeypatch.setattr(factory, "load_classifier", refuse)
    for options, message in (
        ([], "a.mp4 has the label 'green', which is not in"),
        (["--split", "x"], "it has val (1)"),
    ):
        done = CliRunner().invoke(app, [*command, *options])
        assert done.exit_code == 1 and message in " ".join(done.stderr.split()), done.output


def test_score_raises_without_any_video(tmp_path: Path) -> None:
    write_manifest(tmp_path / "m.jsonl", [Entry("gone.mp4", ("red",))])
    with pytest.raises(ValueError, match="none of the 1 videos"):
        score(DummyClassifier(), tmp_path / "m.jsonl")
