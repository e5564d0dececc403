"""`vidlex calibrate` with a running service and the dummy model, whose features are mean colours."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from support.live import live_service
from vidlex.model.calibration.bank import BANK
from vidlex.model.calibration.fit import fit_domain
from vidlex.model.calibration.statistics import DomainStatistics
from vidlex.model.dummy import DummyClassifier
from vidlex.model.eval.calibration import expected_calibration_error
from vidlex.model.eval.encode_files import calibrate as calibrate_classifier
from vidlex.model.eval.encode_files import encode_files, find_files, read_picture
from vidlex.service.cli import app
from vidlex.service.commands.sample_videos import write_colour_video

runner = CliRunner()
NUM_VIDEOS, NUM_PICTURES = 5, 4


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with live_service(tmp_path_factory.mktemp("cli") / "data", VIDLEX_COLLECT_STATISTICS="true") as address:
        with httpx.Client(base_url=address, timeout=60, trust_env=False) as http:
            for name in ("red", "green", "blue"):
                http.post("/labels", json={"name": name}).raise_for_status()
        yield address


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reddish videos and pictures, and what is neither."""
    made = tmp_path_factory.mktemp("videos")
    (made / "more").mkdir()
    for i in range(NUM_VIDEOS):
        write_colour_video(made / f"{i}.mp4", (200, 20 * i, 80))
    for i in range(NUM_PICTURES):
        Image.new("RGB", (60, 40), (255, 30, 15 * i)).save(made / "more" / f"{i}.png")
    (made / "notes.md").write_text("not a video")
    return made


def vidlex(url: str, *arguments: str | Path, code: int = 0) -> Result:
    environment = {"VIDLEX_URL": url, "VIDLEX_MODEL": "dummy", "COLUMNS": "160"}
    result = runner.invoke(app, ["calibrate", *map(str, arguments)], env=environment)
    assert result.exit_code == code, result.output
    return result


def found(result: Result) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(result.stdout)
    return value


def test_a_folder_is_calibrated_shown_and_removed(url: str, folder: Path) -> None:
    dry = found(vidlex(url, folder, "--dry-run", "--json"))
    assert not dry["stored"] and found(vidlex(url, "--show", "--json"))["fingerprint"] is None
    table = vidlex(url, folder).stdout
    assert "9 videos; stored" in table and "red" in table and "%" in table
    shown = found(vidlex(url, "--show", "--json"))
    assert shown["fingerprint"] == dry["fingerprint"] and shown["num_videos"] == NUM_VIDEOS + NUM_PICTURES
    dummy = DummyClassifier()
    statistics = DomainStatistics.of(encode_files(dummy, find_files([folder])).features)
    expected = fit_domain(statistics, dummy.encode_labels(BANK), dummy.scorer)
    assert shown["fingerprint"] == expected.fingerprint(dummy.fingerprint)
    assert "no calibration of dummy" in vidlex(url, "--remove").stdout
    assert found(vidlex(url, "--show", "--json"))["fingerprint"] is None


def test_lists_and_broken_files(url: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"\0" * 100)
    names = [str(path) for path in find_files([folder])] + ["broken.mp4"]
    (tmp_path / "list.txt").write_text("\n".join(names) + "\n")
    result = vidlex(url, tmp_path / "list.txt", "--dry-run", "--json")
    assert found(result)["num_videos"] == len(names) - 1
    assert "broken.mp4" in result.stderr and "skipped" in result.stderr
    entries = [{"video": name, "positives": ["red"]} for name in names[:-1]]
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    assert find_files([tmp_path / "manifest.jsonl"]) == find_files([folder])
    assert find_files([folder, folder / "0.mp4"]) == find_files([folder])


def test_labelled_videos_fit_the_scores(url: str, folder: Path, tmp_path: Path) -> None:
    green = write_colour_video(tmp_path / "green.mp4", (0, 255, 0))
    entries = [{"video": str(path), "positives": ["red"], "negatives": ["green"]} for path in find_files([folder])]
    entries += [{"video": str(green), "positives": ["green"], "negatives": ["red"]}] * 2
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    assert found(vidlex(url, folder, "--labelled", tmp_path / "manifest.jsonl", "--dry-run", "--json"))["has_platt"]


def test_eval_measures_a_calibration_on_labelled_videos(folder: Path, tmp_path: Path) -> None:
    files = [path for path in find_files([folder]) if path.suffix == ".mp4"]
    entries = [
        {"video": str(path), "positives": ["red"], "negatives": ["green", "blue"], "split": "test"} for path in files
    ]
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    arguments = ["eval", str(tmp_path / "manifest.jsonl"), "--model", "dummy", "--json"]
    plain = found(runner.invoke(app, arguments))
    calibrated = found(runner.invoke(app, [*arguments, "--calibrate-on", str(folder)]))
    dummy = DummyClassifier()
    calibration = calibrate_classifier(dummy, [folder])
    assert calibration.scorer is not None
    names = sorted({"red", "green", "blue"})
    vectors = dummy.encode_labels(names)
    adjusted = calibration.adjust(encode_files(dummy, files).features @ vectors.T, vectors)
    targets = np.tile([name == "red" for name in names], (len(files), 1))
    error = expected_calibration_error(calibration.scorer.probability(adjusted), targets)
    assert calibrated["expected_calibration_error"] == pytest.approx(error, abs=1e-6)
    assert plain["expected_calibration_error"] != pytest.approx(error, abs=1e-3)


def test_a_namespace_of_its_own(url: str, folder: Path) -> None:
    vidlex(url, folder, "--namespace", "zoo")
    assert found(vidlex(url, "--show", "--json"))["fingerprint"] is None
    assert found(vidlex(url, "--show", "--json", "--namespace", "zoo"))["fingerprint"] is not None


def test_mistakes_are_explained(url: str, folder: Path, tmp_path: Path) -> None:
    for arguments in ((), ("--show", "--remove"), (str(folder), "--recent"), ("--recent", "--labelled", "m.jsonl")):
        vidlex(url, *arguments, code=2)
    assert "no videos" in vidlex(url, tmp_path, code=1).stderr
    assert "neither a file nor a folder" in vidlex(url, tmp_path / "absent", code=1).stderr
    other = vidlex(url, folder, "--model", "dummy:2", code=1).stderr
    assert "dummy-1" in other and "dummy-2" in other and "--model" in other
    assert "too few" in vidlex(url, folder / "more", code=1).stderr
    assert "No video" in vidlex(url, "--recent", code=1).stderr

    broken = [tmp_path / f"{i}.mp4" for i in range(8)]
    for path in broken:
        path.write_bytes(b"")
    assert "none of the files" in vidlex(url, *broken, code=1).stderr


def test_pictures_are_upright_and_cut_as_frames_are(tmp_path: Path) -> None:
    dummy = DummyClassifier()
    picture = np.zeros((40, 80, 3), np.uint8)
    picture[:, :40, 0] = 255
    image = Image.fromarray(picture)
    image.save(tmp_path / "a.png")
    exif = Image.Exif()
    exif[274] = 6  # to be turned by 90 degrees
    image.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    plain, turned = (read_picture(tmp_path / name, dummy.geometry) for name in ("a.png", "turned.jpg"))
    assert plain.shape == (32, 32, 3)
    assert (plain[:, 0, 0] > 200).all() and (plain[:, -1, 0] < 50).all()
    assert (turned[0, :, 0] > 200).all() and (turned[-1, :, 0] < 50).all()
