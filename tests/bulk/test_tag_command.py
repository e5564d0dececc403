"""`vidlex tag` as a process with the dummy model: kill -9, Ctrl-C, broken files, exit codes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest

from support.bulk_runs import comparable
from support.live import live_service
from support.processes import PATIENCE_SECONDS
from support.serving import colour_video
from vidlex.service.bulk.rows import Row, rows_of

NUM_VIDEOS = 200
NUM_BROKEN = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos of different content that look the same: an MP4 may end in a box that no decoder reads."""
    top = tmp_path_factory.mktemp("videos")
    made = [
        colour_video(top.parent / f"{colour}.mp4", colour, frames_each=4).read_bytes() for colour in ("red", "green")
    ]
    for number in range(NUM_VIDEOS):
        unread = number.to_bytes(4, "big")
        (top / f"{number:04}.mp4").write_bytes(made[number % 2] + b"\0\0\0\x0cfree" + unread)
    for number in range(NUM_BROKEN):
        (top / f"{number:04}x.mp4").write_bytes(made[0][: 100 * (number + 1)])
    return top


def command(folder: Path, out: Path | str, *arguments: str) -> list[str]:
    words = [sys.executable, "-m", "vidlex.service.cli", "tag", str(folder), "--out", str(out), "--model", "dummy"]
    return [*words, "--label", "red", "--label", "green", "--json", *arguments]


def start(folder: Path, out: Path | str, *arguments: str) -> subprocess.Popen[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("VIDLEX_")}
    return subprocess.Popen(
        command(folder, out, *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment | {"VIDLEX_DECODE_WORKERS": "1"},
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], exit_code: int) -> dict[str, Any]:
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == exit_code, err
    return json.loads(out) if out else {"stderr": err}


def rows(out: Path) -> list[Row]:
    return list(rows_of(pq.read_table(out)))


@pytest.fixture(scope="module")
def unbroken(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    out = tmp_path_factory.mktemp("out") / "tags.parquet"
    summary = finish(start(folder, out), 1)
    assert (summary["num_videos"], summary["num_tagged"]) == (NUM_VIDEOS + NUM_BROKEN, NUM_VIDEOS)
    assert 0 < summary["decode_busy"] <= 1
    return rows(out)


def test_rows_are_right(folder: Path, unbroken: list[Row]) -> None:
    assert [row["uri"] for row in unbroken] == sorted(str(path) for path in folder.iterdir())
    assert sum(row["error_code"] is not None for row in unbroken) == NUM_BROKEN
    for row in unbroken:
        if row["error_code"] is None:
            number = int(Path(row["uri"]).stem)
            assert row["labels"][0]["name"] == ("red", "green")[number % 2]
            assert row["receipt"]["model_id"] == "dummy" and row["duration_ms"] == 400
            assert row["timings_ms"]["decode"] > 0


def wait_for_parts(parts: Path, number: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not parts.is_dir() or len(list(parts.glob("part-*"))) < number:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


def test_kill_9_at_three_moments_and_resume_give_the_same_rows(
    folder: Path, unbroken: list[Row], tmp_path: Path
) -> None:
    out, parts = tmp_path / "tags.parquet", tmp_path / ".tags.parquet.parts"
    arguments = ["--checkpoint-seconds", "0.1"]
    num_parts = 0
    for _ in range(3):
        process = start(folder, out, *arguments)
        wait_for_parts(parts, num_parts + random.randint(1, 3), process)
        time.sleep(random.random() * 0.2)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        num_parts = len(list(parts.glob("part-*")))
        arguments = ["--checkpoint-seconds", "0.1", "--resume"]
    summary = finish(start(folder, out, "--resume"), 1)
    assert comparable(rows(out)) == comparable(unbroken)
    assert summary["num_reused"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["tags.parquet"]


def test_an_interrupt_keeps_what_is_done(folder: Path, tmp_path: Path) -> None:
    out, parts = tmp_path / "tags.parquet", tmp_path / ".tags.parquet.parts"
    arguments = ["--checkpoint-seconds", "0.1"]
    for number in (signal.SIGINT, signal.SIGTERM):
        num_parts = 1 + len(list(parts.glob("part-*")))
        process = start(folder, out, *arguments)
        wait_for_parts(parts, num_parts, process)
        os.killpg(process.pid, number)
        problem = json.loads(finish(process, 130)["stderr"].splitlines()[-1])["error"]["detail"]
        num_kept = int(problem.removeprefix("interrupted; ").partition(" ")[0])
        assert problem.endswith("are kept; repeat the command with --resume") and num_kept > 0
        arguments = ["--checkpoint-seconds", "0.1", "--resume"]
    assert "was not finished; continue it with --resume" in finish(start(folder, out), 2)["stderr"]


def test_segments_of_the_first_videos(folder: Path, unbroken: list[Row], tmp_path: Path) -> None:
    out = tmp_path / "tags.parquet"
    summary = finish(start(folder, out, "--limit", "3", "--segments", "--features"), 1)
    assert summary["out"] == [str(out), str(tmp_path / "tags.segments.parquet")] and summary["num_videos"] == 3
    (segment,) = rows(out)[0]["segments"]
    assert len(segment["features"]) and segment["labels"][0]["name"] == rows(out)[0]["labels"][0]["name"]
    assert pq.read_table(summary["out"][1])["uri"].to_pylist() == [
        row["uri"] for row in unbroken[:3] if row["error_code"] is None
    ]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with live_service(tmp_path_factory.mktemp("service") / "data") as address:
        for name in ("red", "green"):
            httpx.post(f"{address}/labels", json={"name": name}, trust_env=False).raise_for_status()
        yield address


def test_a_service_gives_the_same_rows(folder: Path, unbroken: list[Row], tmp_path: Path, url: str) -> None:
    arguments = ["--engine", "service", "--url", url, "--limit", "20", "--json"]
    words = [sys.executable, "-m", "vidlex.service.cli", "tag", str(folder), *arguments]
    candidates = tmp_path / "candidates.parquet"
    (tmp_path / "labels.txt").write_text("red\ngreen\n")
    for out, labels in ((candidates, ["--labels", f"{tmp_path}/labels.txt"]), (tmp_path / "stored.parquet", [])):
        done = subprocess.run([*words, "--out", out, *labels], capture_output=True, text=True, check=False)
        assert done.returncode == 1, done.stderr
        for row, local in zip(rows(out), unbroken[:20], strict=True):
            assert (row["uri"], row["sha256"], row["error_code"]) == (
                local["uri"],
                local["sha256"],
                local["error_code"],
            )
            assert [found["name"] for found in row["labels"] or ()] == [
                found["name"] for found in local["labels"] or ()
            ]
    with_ids = [found["id"] is not None for row in rows(tmp_path / "stored.parquet") for found in row["labels"] or ()]
    assert all(with_ids) and with_ids
    of_local = [row["result_id"] for row in unbroken[:20] if row["error_code"] is None]
    assert [row["result_id"] for row in rows(candidates) if row["error_code"] is None] == of_local


def test_a_service_that_is_not_there(folder: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "vidlex.service.cli", "tag", str(folder), "--out", str(tmp_path / "o.parquet")]
    words += ["--engine", "service", "--url", "http://127.0.0.1:9", "--label", "red"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 3 and "127.0.0.1:9" in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "exit_code", "problem"),
    [
        (["nothing", "--out", "o.parquet", "--label", "x"], 2, "nothing: no such file or folder"),
        ([".", "--out", "o.txt", "--label", "x"], 2, "OUT ends in .parquet"),
        ([".", "--out", "o.parquet", "--label", "x", "--namespace", "y"], 2, "one of them only"),
        ([".", "--out", "o.parquet", "--label", "x", "--model", "nothing"], 2, "nothing"),
        ([".", "--out", "o.parquet", "--label", "x", "--num-frames", "9999"], 2, "num_frames must be from"),
        ([".", "--out", "o.parquet", "--engine", "service", "--features"], 2, "--features needs"),
        ([".", "--out", "o.parquet", "--label", ""], 1, "Label 1 is not valid"),
        ([".", "--out", "o.parquet", "--data-dir", "empty"], 1, "label store"),
    ],
)
def test_mistakes_end_with_one_line(
    folder: Path, tmp_path: Path, arguments: list[str], exit_code: int, problem: str
) -> None:
    (tmp_path / "a.mp4").write_bytes((folder / "0000.mp4").read_bytes())
    words = [sys.executable, "-m", "vidlex.service.cli", "tag", *arguments]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("VIDLEX_")}
    done = subprocess.run(
        words, cwd=tmp_path, capture_output=True, text=True, env=environment | {"VIDLEX_MODEL": "dummy"}, check=False
    )
    assert done.returncode == exit_code, done.stderr
    assert problem in done.stderr and "Traceback" not in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "o.parquet").exists() and not (tmp_path / ".o.parquet.parts").exists()


def test_a_folder_is_not_for_classify(folder: Path) -> None:
    for source in (str(folder), "https://host/a.mp4", "s3://bucket/a.mp4"):
        words = [sys.executable, "-m", "vidlex.service.cli", "classify", source]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 2 and "use `vidlex tag" in done.stderr
