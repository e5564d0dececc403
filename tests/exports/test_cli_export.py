"""`vidlex export` and `vidlex feedback import` on files."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from vidlex.service.bulk.formats import write
from vidlex.service.bulk.results import Receipt, Stretch, TagFailure, TaggedLabel, TagResult, VideoFacts
from vidlex.service.bulk.rows import row_of, schema, table_of
from vidlex.service.cli import app

runner = CliRunner()

GOOD = TagResult(
    "/videos/walk.mp4",
    result_id="ef" * 32,
    sha256="ab" * 32,
    num_bytes=1,
    video=VideoFacts(10_000, 0, 320, 240, 25.0, "h264"),
    labels=[
        TaggedLabel("lbl_1", "dog", 0.9, 0.5, matched=True, stretches=[Stretch(0, 2000, 1000, 0.9)]),
        TaggedLabel("lbl_2", "cat", 0.1, 0.5, matched=False),
    ],
    receipt=Receipt("d", "e", "dummy", "dummy-1", None, "v", 1, "uniform", 8, 0),
)
BAD = TagResult("/videos/broken.mp4", failure=TagFailure("undecodable_video", "no"))


@pytest.fixture(scope="module", params=["jsonl", "parquet"])
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("results") / f"tags.{request.param}"
    write(request.param, path, [table_of([row_of(GOOD), row_of(BAD)])], schema())
    return path


def run(*arguments: str | Path) -> Result:
    result = runner.invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result


def test_label_studio_tasks_and_their_config(results: Path, tmp_path: Path) -> None:
    run("export", "label-studio", results, "--out", tmp_path / "tasks.json", "--url-prefix", "https://m.example/")
    (task,) = json.loads((tmp_path / "tasks.json").read_text())
    assert task["data"]["video"] == "https://m.example/walk.mp4"
    config = run("export", "label-studio-config", results).output
    assert '<Choice value="dog"/>' in config and '<Choice value="cat"/>' in config


def test_fiftyone_needs_a_folder(results: Path, tmp_path: Path) -> None:
    assert runner.invoke(app, ["export", "fiftyone", str(results)]).exit_code == 2
    run("export", "fiftyone", results, "--out", tmp_path / "set")
    assert json.loads((tmp_path / "set" / "labels.json").read_text())["labels"]["/videos/walk.mp4"]


def test_a_judged_csv_is_imported(results: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    run("export", "csv", results, "--out", path)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "right"])
        writer.writeheader()
        writer.writerows({**row, "right": "no"} for row in rows)
    counted = run("feedback", "import", path, "--format", "csv", "--dry-run", "--json")
    assert json.loads(counted.output) == {"judgements": 1, "right": 0, "wrong": 1, "stored": False}


def test_webvtt_is_of_one_video(results: Path, tmp_path: Path) -> None:
    assert run("export", "webvtt", results).output.startswith("WEBVTT\n")
    two = tmp_path / "two.jsonl"
    write("jsonl", two, [table_of([row_of(GOOD), row_of(GOOD)])], schema())
    assert runner.invoke(app, ["export", "webvtt", str(two)]).exit_code == 2


@pytest.mark.parametrize(("name", "text"), [("a.jsonl", "no"), ("a.parquet", "no"), ("missing.jsonl", None)])
def test_other_files_are_errors(tmp_path: Path, name: str, text: str | None) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    result = runner.invoke(app, ["export", "csv", str(tmp_path / name)])
    assert result.exit_code == 1 and "error:" in result.output


@pytest.mark.parametrize("kind", ["csv", "label-studio", "fiftyone"])
def test_other_files_hold_no_corrections(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "other"
    path.mkdir() if kind == "fiftyone" else path.write_text("other")
    result = runner.invoke(app, ["feedback", "import", str(path), "--format", kind, "--dry-run"])
    assert result.exit_code == 1 and "error:" in result.output
