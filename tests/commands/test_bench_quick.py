"""Quick runs of every benchmark."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from typer.testing import CliRunner

from support.paths import ROOT
from vidlex.service.bench.harness import BenchOptions, Report
from vidlex.service.cli import app
from vidlex.service.commands.experiments.bench import benchmarks

runner = CliRunner()


def test_list_contains_every_benchmark_module() -> None:
    listed = json.loads(runner.invoke(app, ["bench", "--list", "--json"]).stdout)
    assert listed == benchmarks()
    folder = ROOT / "service" / "bench"
    modules = [importlib.import_module(f"vidlex.service.bench.{path.stem}") for path in folder.glob("[a-z]*.py")]
    assert {module.__name__.rpartition(".")[2] for module in modules if hasattr(module, "run")} == set(listed)
    for name, description in listed.items():
        assert 20 < len(description) < 200, name
        help_text = runner.invoke(app, ["bench", name, "--help"], env={"COLUMNS": "200"}).stdout
        assert all(f"--{field.name.replace('_', '-')}" in help_text for field in fields(BenchOptions))


@pytest.mark.parametrize("name", benchmarks())
def test_quick_run_reports_measurements(name: str) -> None:
    report = Report.model_validate_json(_output(["bench", name, "--quick", "--json"], name).splitlines()[-1])
    assert (report.bench, report.quick) == (name, True)
    assert any(case.timings or case.figures for case in report.cases)


def _output(arguments: list[str], name: str) -> str:
    if name != "bulk":
        done = runner.invoke(app, arguments)
        assert done.exit_code == 0, done.output
        return done.stdout.strip()
    # A process that has used one cluster of Ray cannot use another one, as those of `test_ray_nodes`.
    command = [sys.executable, "-m", "vidlex.service.cli", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


def test_unknown_benchmark_is_an_error(tmp_path: Path) -> None:
    done = runner.invoke(app, ["bench", "all", "--only", "speed", "--out", str(tmp_path / "out.json")])
    assert done.exit_code == 1
    assert "unknown benchmark speed" in done.stderr
