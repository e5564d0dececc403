"""The benchmark harness: turns, ratios, targets, and reports as JSON, as a table and as RESULTS.md."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from vidlex.service.bench.harness import (
    BenchError,
    BenchOptions,
    Case,
    Figure,
    Floor,
    Report,
    Side,
    Timing,
    alternate,
    compare,
    duration,
    quantity,
    ratio,
    report,
)
from vidlex.service.bench.machine import matrix_rate, memory_rate
from vidlex.service.bench.results import markdown, read_reports
from vidlex.service.cli import app

runner = CliRunner()


def side(name: str, seconds: float, calls: list[str]) -> Side:
    def run() -> float:
        calls.append(name)
        return seconds

    return Side(name, run)


def test_sides_alternate_after_the_warm_up() -> None:
    calls: list[str] = []
    sides = [side("a", 1.0, calls), side("b", 2.0, calls)]
    timings = alternate(sides, BenchOptions(repetitions=3, warmups=1), work=10, unit="frames")
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab"
    assert [timing.seconds for timing in timings] == [(1.0,) * 3, (2.0,) * 3]
    assert timings[1].per_second == 5.0

    calls.clear()
    alternate(sides, BenchOptions(quick=True))
    assert "".join(calls) == "ab"


def test_side_that_returns_none_is_timed() -> None:
    (timing,) = alternate([Side("work", lambda: None)], BenchOptions(quick=True))
    assert timing.seconds[0] >= 0


def test_ratio_compares_speeds_per_unit_of_work() -> None:
    ours = Timing(name="ours", seconds=(1.0, 2.0, 4.0), work=2)
    other = Timing(name="other", seconds=(1.5, 3.0, 3.0), work=1)
    found = ratio(ours, other, at_least=2.9)
    assert found.pairs == (3.0, 3.0, 1.5)
    assert found.of_medians == 3.0
    assert found.of_pairs == 3.0
    assert found.met is True
    assert ratio(ours, other, at_least=3.1).met is False
    assert ratio(ours, other).met is None


def test_case_reports_share_of_floor() -> None:
    calls: list[str] = []
    sides = [side("ours", 2.0, calls), side("theirs", 4.0, calls)]
    case = compare("x", sides, BenchOptions(), at_least={"theirs": 3}, floor=Floor(seconds=1.0, how="1 B at 1 B/s"))
    assert case.share_of_floor == 0.5
    assert case.targets == [False]
    with pytest.raises(ValueError, match="not a reference"):
        compare("x", sides, BenchOptions(), at_least={"their": 3})


@pytest.mark.parametrize(
    ("figure", "met"),
    [
        (Figure(name="x", value=1.0), None),
        (Figure(name="x", value=1.0, at_least=1.0), True),
        (Figure(name="x", value=1.0, at_most=0.9), False),
        (Figure(name="x", value=float("nan"), at_most=0.9), False),
    ],
)
def test_figure_meets_its_target(figure: Figure, met: bool | None) -> None:
    assert figure.met is met


def test_options_are_validated() -> None:
    with pytest.raises(ValueError, match="repetitions"):
        BenchOptions(repetitions=0)


def some_report(*, quick: bool = False) -> Report:
    calls: list[str] = []
    compared = compare(
        "a | long one",
        [side("ours", 0.5, calls), side("theirs", 1.0, calls)],
        BenchOptions(repetitions=3),
        work=8,
        unit="frames",
        at_least={"theirs": 2.5},
        note="A note.",
    )
    figures = Case(name="equal", figures=(Figure(name="largest difference", value=1e-6, at_most=1e-4),))
    return report("decode", [compared, figures], BenchOptions(quick=quick))


def test_report_round_trips_through_json(tmp_path: Path) -> None:
    first = some_report()
    document = first.document()
    assert json.loads(json.dumps(document))["cases"][0]["ratios"][0]["met"] is False
    path = tmp_path / "reports.json"
    path.write_text(json.dumps(document) + "\n\n" + first.model_dump_json() + "\n")
    assert read_reports([path]) == [first, first]
    assert [case.targets for case in first.cases] == [[False], [True]]
    facts = first.machine
    assert facts.num_cores >= 1 and facts.cpu and facts.memory_bytes > 2**20 and "numpy" in facts.versions


def test_invalid_report_file_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "reports.json"
    path.write_text('{"bench": 1}\n')
    with pytest.raises(BenchError, match="line 1 is not a report"):
        read_reports([path])
    with pytest.raises(BenchError, match="No such file"):
        read_reports([tmp_path / "none"])


def test_results_show_met_and_missed_targets(tmp_path: Path) -> None:
    path, out = tmp_path / "reports.json", tmp_path / "RESULTS.md"
    path.write_text(some_report().model_dump_json())
    done = runner.invoke(app, ["bench", "results", str(path), "--out", str(out)])
    assert done.exit_code == 0, done.output
    text = out.read_text()
    assert "| decode | a \\| long one | speed against theirs | 2.00x (2.00 to 2.00) | >= 2.5 | **missed** |" in text
    assert "| decode | equal | largest difference | 1e-06 | <= 1.000e-04 | met |".replace("1.000e-04", "0.0001") in text
    assert "500 ms (500 ms to 500 ms), 16 frames/s" in text
    assert "A note." in text


def test_results_reject_quick_runs(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="quick runs are not results: decode"):
        markdown([some_report(quick=True)])
    path = tmp_path / "reports.json"
    path.write_text(some_report(quick=True).model_dump_json())
    done = runner.invoke(app, ["bench", "results", str(path), "--out", str(tmp_path / "RESULTS.md")])
    assert done.exit_code == 1 and not (tmp_path / "RESULTS.md").exists()


def test_report_renders_as_table() -> None:
    console = Console(width=160, record=True, file=StringIO())
    console.print(some_report())
    text = console.export_text()
    assert "missed" in text and "theirs" in text and "1e-06" in text


def test_durations_and_quantities_are_formatted() -> None:
    assert [duration(x) for x in (12.3456, 0.01234, 1.5e-5, 0.0)] == ["12.3 s", "12.3 ms", "15 us", "0 us"]
    assert [quantity(x) for x in (0.0, 1234.5, 0.25, 2.5e9, 1e-5)] == ["0", "1,234", "0.25", "2.5e+09", "1e-05"]


def test_machine_rates_are_plausible() -> None:
    assert 1e8 < matrix_rate(side=256) < 1e15
    assert 1e8 < memory_rate(num_bytes=2**24) < 1e14
