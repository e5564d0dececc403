"""What a run shows: counts, rates, busy shares, a bar on a terminal, JSON lines elsewhere."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.bulk_runs import write_files
from support.paths import TESTS
from vidlex.service.bulk.engine import BusyShares
from vidlex.service.bulk.progress import LineReporter, RunCounts, bottleneck, describe
from vidlex.service.bulk.results import TagFailure, TagResult, VideoFacts
from vidlex.service.bulk.run import Tagged

GOOD = TagResult("a.mp4", video=VideoFacts(2000, 0, 1, 1, 1.0, "h264"))
FAILED = TagResult("b.mp4", failure=TagFailure("undecodable_video", "x"))


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_rates_and_shares_are_those_since_the_last_time(clock: Clock) -> None:
    shares = BusyShares(10.0, 2, 0.0, 1)
    counts = RunCounts(100, lambda: shares, started=clock.now)
    for number in range(20):
        counts.add(Tagged(number, GOOD))
    clock.now += 10
    shares = BusyShares(28.0, 2, 1.0, 1)
    state = counts.snapshot()
    assert (state["done"], state["per_second"], state["seconds_left"]) == (20, 2.0, 40)
    assert (state["decode_busy"], state["device_busy"]) == (0.9, 0.1)
    assert describe(state) == "20/100, 2.0/s, 40 s left; decode 90 %, device 10 % busy"
    clock.now += 10
    counts.add(Tagged(20, FAILED))
    shares = BusyShares(28.0, 2, 11.0, 1)
    state = counts.snapshot()
    assert (state["decode_busy"], state["device_busy"], state["failed"]) == (0.0, 1.0, 1)
    summary = counts.summary()
    assert (summary["num_tagged"], summary["num_failed"], summary["seconds"]) == (20, 1, 20.0)
    assert summary["failures"] == {"undecodable_video": 1} and summary["video_seconds_per_second"] == 2.0
    assert (summary["decode_busy"], summary["device_busy"]) == (0.45, 0.55)


def test_the_rate_is_the_present_one(clock: Clock) -> None:
    counts = RunCounts(None, started=clock.now)
    for second in range(200):
        clock.now += 1
        for _ in range(10 if second < 100 else 1):
            counts.add(Tagged(0, GOOD))
        state = counts.snapshot()
    assert state["per_second"] == pytest.approx(1.0) and state["seconds_left"] is None
    assert state["decode_busy"] is None and describe(state) == "1100, 1.0/s"


def test_reused_results_are_counted_apart(clock: Clock) -> None:
    counts = RunCounts(3, started=clock.now)
    counts.add(Tagged(0, GOOD, is_new=False))
    counts.add(Tagged(1, GOOD))
    counts.add(Tagged(2, FAILED, is_new=False))
    clock.now += 4
    summary = counts.summary()
    assert (summary["num_tagged"], summary["num_reused"], summary["num_failed"]) == (1, 2, 1)
    assert summary["videos_per_second"] == 0.25


def test_the_bottleneck() -> None:
    assert "CPU cores" in str(bottleneck(0.97, 0.3))
    assert "device" in str(bottleneck(0.6, 0.95))
    assert "disk or the network" in str(bottleneck(0.2, 0.1))
    assert bottleneck(0.7, 0.7) is None and bottleneck(None, None) is None


def test_lines_are_json_every_ten_seconds(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    report = LineReporter(RunCounts(300, started=clock.now))
    for number in range(250):
        clock.now += 0.1
        report.add(Tagged(number, GOOD))
    report.close()
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["done"] for line in lines] == pytest.approx([100, 200, 250], abs=2)
    assert lines[0]["event"] == "tagging" and lines[0]["seconds_left"] == pytest.approx(20, abs=1)


CODE = """
import sys, time
from pathlib import Path
from support.bulk_runs import FakeEngine
from vidlex.service.bulk.options import TagOptions
from vidlex.service.bulk.progress import RunCounts, reporter
from vidlex.service.bulk.run import run_numbered
from vidlex.service.bulk.sources import Sources

engine = FakeEngine(before=lambda file: time.sleep(0.05))
report = reporter(RunCounts(30, engine.busy), as_json=False)
for tagged in run_numbered(Sources([sys.argv[1]]), engine, TagOptions()):
    report.add(tagged)
report.close()
"""


def test_a_terminal_has_a_bar(tmp_path: Path) -> None:
    write_files(tmp_path, 30)
    master, slave = os.openpty()
    environment = os.environ | {"PYTHONPATH": str(TESTS), "TERM": "xterm", "COLUMNS": "140"}
    command = [sys.executable, "-c", CODE, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=slave, env=environment) as process:
        os.close(slave)
        shown = b""
        try:
            while chunk := os.read(master, 4096):
                shown += chunk
        except OSError:  # the terminal is closed
            pass
        assert process.wait(60) == 0 and process.stdout is not None and process.stdout.read() == b""
    os.close(master)
    assert re.search(r"\d+/30, (\d failed, )?[\d.]+/s, \d+ s left; decode 0 %, device 0 % busy", shown.decode())
